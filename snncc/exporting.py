"""``export()``: a compiled model as files that run without Python."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.arguments import Check, shown
from snncc.compilation.chunk_programs import chunk_program, require_row_a_step
from snncc.compilation.pipeline import Compiled
from snncc.errors import OptionError
from snncc.export.bundle import CUDA, NIR, ONNX, PROGRAM, Bundle, write_bundle
from snncc.export.c.footprint import footprint
from snncc.export.c.library import FloatNumbers, Sequence, write_library
from snncc.export.cuda.library import check_arches, write_cuda_library
from snncc.export.names import is_library_name
from snncc.export.network import Network
from snncc.export.quantized.choice import Quantization, quantization_of
from snncc.export.quantized.library import write_quantized
from snncc.export.replay import require_onnx
from snncc.export.torch_program import Pinned, program_files, resized
from snncc.export.trace import trace
from snncc.frontend.state.sources import gather, preserved
from snncc.interchange.nir_checks import STEP
from snncc.interchange.to_nir import to_nir
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.loop_call import loop_of
from snncc.ir.tape import Position, Source, SourceKind, Tape
from snncc.module import CompiledModule, example_of
from snncc.version import __version__


@dataclass(frozen=True, eq=False)
class _Network:
    """A compiled model that is to be exported, and an example.

    Attributes:
        fast: The model.
        example: Its arguments.
        compiled: The specialisation that serves the example.
        graph: Its sequence graph, norms folded.
        program: It, for a chunk of time.
        leaves: The tensors that it reads.
        wanted: Which outputs of the program the model returns.
        outputs: What the PyTorch model returns for the example.
    """

    fast: CompiledModule
    example: tuple[Any, ...]
    compiled: Compiled
    graph: torch.fx.Graph
    program: ChunkProgram
    leaves: list[Tensor]
    wanted: list[int]
    outputs: list[Tensor]

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the leaves are."""
        return self.compiled.recording.tape.sources

    @property
    def own(self) -> list[bool]:
        """For each leaf whether it is an input."""
        return [source.kind is SourceKind.INPUT for source in self.sources]

    @property
    def inputs(self) -> list[Tensor]:
        """The inputs of the example."""
        return [x for x, is_own in zip(self.leaves, self.own, strict=True) if is_own]

    @property
    def steps(self) -> int:
        """How many steps the example has."""
        axes = zip(self.leaves, self.program.input_axes, strict=True)
        return next((x.shape[a] for x, a in axes if a is not None), self.program.length)

    def serves(self, leaves: Iterable[Tensor]) -> bool:
        """Tell whether the network is the same for other inputs."""
        flat, spec = pytree.tree_flatten(self.example)
        for source, leaf in zip(self.sources, leaves, strict=True):
            if source.kind is SourceKind.INPUT and source.index is not None:
                flat[source.index] = leaf
        return self.serves_call(pytree.tree_unflatten(flat, spec))

    def serves_call(self, arguments: tuple[Any, ...]) -> bool:
        """Tell whether the network is the same for other arguments."""
        try:
            with torch.no_grad():
                return self.fast.specialize(*arguments) is self.compiled
        except Exception:  # the model raises what it likes where sizes do not fit
            return False

    def expected(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        """Return what the PyTorch model returns for some arguments."""
        return _expected(self.fast, arguments)


Writer = Callable[[_Network, Path, str], Bundle]

_FOLDER = Check("The folder of an export", code="option.export", hint="Name the folder to write.")
_ARCH = Check("Option 'arch'", code="option.arch", hint="Name GPUs: arch=('sm_80', 'sm_90').")


def export(  # noqa: PLR0913 - all but the first two are keywords
    fast: CompiledModule,
    folder: str | os.PathLike[str],
    *,
    format: str = "c",
    example_inputs: tuple[Any, ...],
    name: str = "network",
    arithmetic: str | Quantization = "float",
    arch: str | Iterable[str] = ("sm_80", "sm_90"),
    dt: float = 1e-4,
) -> Bundle:
    """Write a compiled model as files that run without Python and torch.

    They come with a test vector, the outputs of the PyTorch model for the example, which
    `verify_bundle` compares.

    Args:
        fast: The compiled model; it is exported as it is now, in evaluation mode.
        folder: Where to; it is made, or replaced if it is a bundle.
        format: ``"c"``: a C11 library without dependencies, of the sizes of the example: give a
            batch of one for a device.  ``"cuda"``: the same on a GPU of NVIDIA, by its driver.
            ``"onnx"``: two ONNX models, one of the whole sequence and one of a step with its
            states.  ``"pt2"``: a program of `torch.export` for processes with torch and snncc.
            ``"nir"``: a graph in the Neuromorphic Intermediate Representation, see `to_nir`.
        example_inputs: Arguments of the model, with the time axis.
        name: A C identifier; every name in a library, and of a model's files, starts with it.
        arithmetic: ``"float"``, or whole numbers for a library: ``"int8"``, ``"int16"``, or a
            `Quantization` with more examples than the one, which decide the scales.
        arch: The GPUs that a CUDA library has binaries for.
        dt: For a NIR graph the length of a step, in seconds.

    Raises:
        OptionError: The format, the name or the model is not possible.
        UnsupportedError: The network has no form of that format, with the user's line.
        BundleError: The folder holds something else, or cannot be written.
    """
    choice = quantization_of(arithmetic)
    place = _FOLDER.path(folder)
    arches = _ARCH.words(arch)
    writers: dict[str, Writer] = {
        "c": functools.partial(_write_library, choice=choice),
        "cuda": functools.partial(_write_cuda, arches=arches),
        "onnx": _write_onnx,
        "pt2": _write_program,
        "nir": functools.partial(_write_nir, dt=STEP.positive(dt)),
    }
    if not (isinstance(format, str) and format in writers):
        raise OptionError(
            f"There is no format {shown(format)}.",
            code="option.format",
            hints=[f"Choose {', '.join(map(repr, writers))}."],
        )
    if not is_library_name(name):
        raise OptionError(
            f"{shown(name)} is no name for a library.",
            code="option.name",
            hints=["Use up to 100 letters, digits and underscores, and no word of C or C++."],
        )
    if choice is not None and format != "c":
        raise OptionError(
            f"There is no '{choice.arithmetic}' in the format '{format}'.",
            code="option.arithmetic",
            hints=["Choose format='c', or arithmetic='float'."],
        )
    if not isinstance(fast, CompiledModule):
        raise OptionError(
            "What is to be exported is not a compiled model.",
            code="option.export",
            hints=["Pass the result of 'snncc.compile'."],
        )
    return writers[format](_network(fast, example_of(example_inputs)), place, name)


def _network(fast: CompiledModule, example_inputs: tuple[Any, ...]) -> _Network:
    model = fast.program
    with torch.no_grad():
        compiled = fast.specialize(*example_inputs)
    tape = compiled.recording.tape
    leaves = [leaf.detach() for leaf in gather(tape, model, example_inputs, {})]
    wanted = _wanted(tape)
    folded = fast.without_norms(compiled, leaves)
    program = chunk_program(folded, leaves)
    require_row_a_step(program)
    if program.has_first:
        fast.stream(*example_inputs)  # which compares the first step with the model on one step
    outputs = _expected(fast, example_inputs)
    network = _Network(
        fast, example_inputs, compiled, folded.graph, program, leaves, wanted, outputs
    )
    if not network.steps:
        raise OptionError(
            "The example has no time axis that can be told.",
            code="option.example",
            notes=["A single step shows no loop over time."],
            hints=["Give an example of three steps or more."],
        )
    return network


def _expected(fast: CompiledModule, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Return what a model returns; with other neurons than the user's what was compiled counts."""
    model = fast.program
    reference = fast if fast.options.mode == "dynamic_decay" else model
    with torch.no_grad(), preserved(model, arguments):
        return [y.detach() for y in pytree.tree_leaves(reference(*arguments))]


def _write_library(
    network: _Network,
    folder: Path,
    name: str,
    choice: Quantization | None = None,
) -> Bundle:
    """Write a C library, in floats or in whole numbers."""
    result = _traced(network)
    facts = _facts(result, name, network.steps)
    example = _sequence(network, network.inputs, network.outputs)
    if choice is None:
        numbers = FloatNumbers(result, name)
        files = write_library(result, name, numbers, example)
        return write_bundle(folder, files, facts | footprint(result, numbers, files, name))
    examples = [example, *(_another(network, arguments) for arguments in choice.examples)]
    files, more = write_quantized(result, name, choice, examples)
    return write_bundle(folder, files, facts | more)


def _traced(network: _Network) -> Network:
    """Return one step of a network, its sizes known."""
    program, leaves = network.program, network.leaves
    axes = program.input_axes
    step = [x if a is None else x.narrow(a, 0, 1) for x, a in zip(leaves, axes, strict=True)]
    names = [source.name for source in network.sources]
    return trace(program, step, network.own, names, network.wanted)


def _write_cuda(network: _Network, folder: Path, name: str, arches: tuple[str, ...]) -> Bundle:
    """Write a library for GPUs of NVIDIA."""
    check_arches(arches)
    result = _traced(network)
    example = _sequence(network, network.inputs, network.outputs)
    files, more = write_cuda_library(result, name, example, arches)
    return write_bundle(folder, files, _facts(result, name, network.steps) | more, CUDA)


def _sequence(network: _Network, inputs: list[Tensor], outputs: list[Tensor]) -> Sequence:
    """Return a run of the model, time first."""
    own = zip(network.program.input_axes, network.own, strict=True)
    axes = [a for a, is_own in own if is_own]
    ends = [network.program.output_axes[i] for i in network.wanted]
    lengths = (x.shape[a] for x, a in zip(inputs, axes, strict=True) if a is not None)
    steps = next(lengths, network.program.length)
    return Sequence(_time_first(inputs, axes), _time_first(outputs, ends), steps)


def _kind(value: Any) -> Any:
    return value.dtype if isinstance(value, Tensor) else type(value)


def _another(network: _Network, arguments: tuple[Any, ...]) -> Sequence:
    """Return one more example, which has the sizes of the first but for time."""
    model, tape = network.fast.program, network.compiled.recording.tape
    given, spec = pytree.tree_flatten((arguments, {}))
    first = pytree.tree_leaves(network.example)
    if spec != tape.in_spec or [*map(_kind, given)] != [*map(_kind, first)]:
        raise OptionError(
            "An example has other arguments than 'example_inputs', or arguments of other types.",
            code="option.arithmetic",
            hints=["Give tuples of as many arguments, tensors of the same types among them."],
        )
    leaves = gather(tape, model, arguments, {})
    kinds = zip(leaves, network.leaves, network.own, network.program.input_axes, strict=True)
    pairs = [(x.detach(), like, a) for x, like, is_own, a in kinds if is_own]
    for x, like, axis in pairs:
        if _without(x, axis) != _without(like, axis):
            raise OptionError(
                f"An example has the shape {tuple(x.shape)} beside {tuple(like.shape)}.",
                code="option.arithmetic",
                hints=["Give examples of the sizes of 'example_inputs' but for the time axis."],
            )
    return _sequence(network, [x for x, _, _ in pairs], network.expected(arguments))


def _without(x: Tensor, axis: int | None) -> tuple[int, ...]:
    """Return a shape without the time axis."""
    return tuple(n for d, n in enumerate(x.shape) if d != axis)


def _time_first(tensors: Iterable[Tensor], axes: Iterable[int | None]) -> tuple[Tensor, ...]:
    return tuple(x if a is None else x.movedim(a, 0) for x, a in zip(tensors, axes, strict=True))


def _write_onnx(network: _Network, folder: Path, name: str) -> Bundle:
    """Write ONNX models; the package ``onnx`` is needed for nothing else."""
    require_onnx()
    from snncc.export.onnx.files import onnx_facts, onnx_files
    from snncc.export.onnx.model import Exporter, sources_of

    axes = network.program.input_axes
    sources = sources_of([s.name for s in network.sources], network.leaves, network.own, axes)
    models = Exporter(network.program, network.graph, sources, network.wanted).models(
        network.serves
    )
    files = onnx_files(models, name, network.inputs, network.outputs)
    facts = _versions(name, network.steps) | onnx_facts(models)
    return write_bundle(folder, files, facts, ONNX)


def _write_program(network: _Network, folder: Path, name: str) -> Bundle:
    """Write a program of torch, which needs snncc for its operators."""
    free = _free(network)
    pinned = Pinned(network.fast, functools.partial(network.fast.run, network.compiled), free)
    files, dynamic = program_files(pinned, network.expected, network.example, free, name)
    facts = _versions(name, network.steps) | {"dynamic": list(dynamic)}
    return write_bundle(folder, files, facts, PROGRAM)


def _free(network: _Network) -> dict[str, list[int | None]]:
    """Return which sizes a network leaves free, and where they are in the arguments."""
    leaves = pytree.tree_leaves(network.example)
    kinds = zip(network.sources, network.program.input_axes, strict=True)
    times = {s.index: axis for s, axis in kinds if s.index is not None}
    batches = {
        i: next((d for d in range(leaves[i].dim()) if d != time), None) for i, time in times.items()
    }
    is_unrolled = any(loop_of(node) is not None for node in network.graph.nodes)
    found: dict[str, list[int | None]] = {}
    for name, places in (("time", {} if is_unrolled else times), ("batch", batches)):
        sizes = {i: leaves[i].shape[axis] for i, axis in places.items() if axis is not None}
        size = next(iter(sizes.values()), 1)
        axes = [places[i] if sizes.get(i) == size else None for i in range(len(leaves))]
        if size > 1 and network.serves_call(
            resized(network.example, {name: axes}, {name: size + 1})
        ):
            found[name] = axes
    return found


def _write_nir(network: _Network, folder: Path, name: str, dt: float) -> Bundle:
    """Write a NIR graph; the package ``nir`` is needed for nothing else."""
    graph = to_nir(network.fast, *network.example, dt=dt)
    from snncc.export.nir_files import nir_facts, nir_files

    example = _sequence(network, network.inputs, network.outputs)
    files = nir_files(graph, name, example.inputs, example.outputs)
    return write_bundle(folder, files, _versions(name, network.steps) | nir_facts(graph, dt), NIR)


def _versions(name: str, steps: int) -> dict[str, Any]:
    """Return what every manifest says."""
    return {
        "name": name,
        "snncc": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "steps": steps,
    }


def _facts(network: Network, name: str, steps: int) -> dict[str, Any]:
    """Return what the manifest says of a library."""
    shapes = network.shapes
    return _versions(name, steps) | {
        "numerics": "as PyTorch, but with norms folded, and products summed in order of inputs",
        "number": "float64" if network.is_double else "float32",
        "inputs": {b.name: list(shapes[b.name]) for b in network.inputs},
        "outputs": {b.name: list(shapes[b.name]) for b in network.outputs},
        "every_step": list(network.every_step),
    }


def _wanted(tape: Tape) -> list[int]:
    """Return which outputs of a tape's graph the model returns."""
    places = [leaf.index for leaf in tape.output_leaves if isinstance(leaf, Position)]
    if len(places) < len(tape.output_leaves):
        raise OptionError(
            "The model returns something that is no tensor.",
            code="option.export",
            hints=["Return tensors only."],
        )
    return places
