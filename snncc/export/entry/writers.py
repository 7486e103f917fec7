"""One writer for each format: a compiled model, with an example, to the files of a bundle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.compilation.streamed import with_open_layers
from snncc.errors import OptionError
from snncc.export.bundle import CUDA, NIR, ONNX, Bundle, write_bundle
from snncc.export.c.footprint import footprint
from snncc.export.c.library import FloatNumbers, Sequence
from snncc.export.c.library import write_library as library_files
from snncc.export.cuda.library import check_arches
from snncc.export.cuda.library import write_cuda_library as cuda_files
from snncc.export.entry.stepped import SteppedModel
from snncc.export.network.nodes import Network
from snncc.export.network.trace import trace
from snncc.export.quantized.choice import Quantization
from snncc.export.quantized.library import write_quantized
from snncc.export.replay import require_onnx
from snncc.nir.to_nir import to_nir


def write_library(
    model: SteppedModel,
    folder: Path,
    name: str,
    choice: Quantization | None = None,
) -> Bundle:
    """Write a C library, in floats or in whole numbers."""
    result = _traced(model)
    facts = _facts(result, model, name)
    example = _sequence(model, model.inputs, model.outputs)
    if choice is None:
        numbers = FloatNumbers(result, name)
        files = library_files(result, name, numbers, example)
        return write_bundle(folder, files, facts | footprint(result, numbers, files, name))
    examples = [example, *(_another(model, arguments) for arguments in choice.examples)]
    files, more = write_quantized(result, name, choice, examples)
    return write_bundle(folder, files, facts | more)


def _traced(model: SteppedModel) -> Network:
    """Return one step of a network, its sizes known."""
    program, leaves = model.program, model.leaves
    axes = program.input_axes
    step = [x if a is None else x.narrow(a, 0, 1) for x, a in zip(leaves, axes, strict=True)]
    names = [source.name for source in model.sources]
    return trace(program, step, model.own, names, model.wanted)


def write_cuda(model: SteppedModel, folder: Path, name: str, arches: tuple[str, ...]) -> Bundle:
    """Write a library for GPUs of NVIDIA."""
    check_arches(arches)
    result = _traced(model)
    example = _sequence(model, model.inputs, model.outputs)
    files, more = cuda_files(result, name, example, arches)
    return write_bundle(folder, files, _facts(result, model, name) | more, CUDA)


def write_onnx(model: SteppedModel, folder: Path, name: str) -> Bundle:
    """Write ONNX models; the package ``onnx`` is needed for nothing else."""
    require_onnx()
    from snncc.export.onnx.files import onnx_facts, onnx_files
    from snncc.export.onnx.model import Exporter, sources_of

    axes = model.program.input_axes
    sources = sources_of([s.name for s in model.sources], model.leaves, model.own, axes)
    graph = with_open_layers(model.compiled.graph, on_gpu=False)
    models = Exporter(model.program, graph, sources, model.wanted).models(model.serves)
    files = onnx_files(models, name, model.inputs, model.outputs)
    facts = model.versions(name) | onnx_facts(models)
    return write_bundle(folder, files, facts, ONNX)


def write_nir(model: SteppedModel, folder: Path, name: str, dt: float) -> Bundle:
    """Write a NIR graph; the package ``nir`` is needed for nothing else."""
    graph = to_nir(model.whole.fast, *model.whole.example, dt=dt)
    from snncc.export.nir_files import nir_facts, nir_files

    example = _sequence(model, model.inputs, model.outputs)
    files = nir_files(graph, name, example.inputs, example.outputs)
    return write_bundle(folder, files, model.versions(name) | nir_facts(graph, dt), NIR)


def _facts(network: Network, model: SteppedModel, name: str) -> dict[str, Any]:
    """Return what the manifest says of a library."""
    shapes = network.shapes
    return model.versions(name) | {
        "numerics": "as PyTorch, but with norms folded, and products summed in order of inputs",
        "number": "float64" if network.is_double else "float32",
        "inputs": {b.name: list(shapes[b.name]) for b in network.inputs},
        "outputs": {b.name: list(shapes[b.name]) for b in network.outputs},
        "every_step": list(network.every_step),
    }


def _sequence(model: SteppedModel, inputs: list[Tensor], outputs: list[Tensor]) -> Sequence:
    """Return a run of the model, time first."""
    own = zip(model.program.input_axes, model.own, strict=True)
    axes = [a for a, is_own in own if is_own]
    ends = [model.program.output_axes[i] for i in model.wanted]
    lengths = (x.shape[a] for x, a in zip(inputs, axes, strict=True) if a is not None)
    steps = next(lengths, model.program.length)
    return Sequence(_time_first(inputs, axes), _time_first(outputs, ends), steps)


def _another(model: SteppedModel, arguments: tuple[Any, ...]) -> Sequence:
    """Return one more example, which has the sizes of the first but for time."""
    joined = model.joined(arguments)
    given, spec = pytree.tree_flatten((joined, {}))
    first = pytree.tree_leaves(model.example)
    if spec != model.tape.in_spec or [*map(_kind, given)] != [*map(_kind, first)]:
        raise OptionError(
            "An example has other arguments than 'example_inputs', or arguments of other types.",
            code="option.arithmetic",
            hints=["Give tuples of as many arguments, tensors of the same types among them."],
        )
    kinds = zip(
        model.gathered(joined), model.leaves, model.own, model.program.input_axes, strict=True
    )
    pairs = [(x, like, a) for x, like, is_own, a in kinds if is_own]
    for x, like, axis in pairs:
        if _without(x, axis) != _without(like, axis):
            raise OptionError(
                f"An example has the shape {tuple(x.shape)} beside {tuple(like.shape)}.",
                code="option.arithmetic",
                hints=["Give examples of the sizes of 'example_inputs' but for the time axis."],
            )
    return _sequence(model, [x for x, _, _ in pairs], model.expected(arguments))


def _kind(value: Any) -> Any:
    return value.dtype if isinstance(value, Tensor) else type(value)


def _without(x: Tensor, axis: int | None) -> tuple[int, ...]:
    """Return a shape without the time axis."""
    return tuple(n for d, n in enumerate(x.shape) if d != axis)


def _time_first(tensors: Iterable[Tensor], axes: Iterable[int | None]) -> tuple[Tensor, ...]:
    return tuple(x if a is None else x.movedim(a, 0) for x, a in zip(tensors, axes, strict=True))
