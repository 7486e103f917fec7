"""``snncc emit``: the kernels of a model as source text, and compiled for a GPU that is not there.

The kernels are those that the inputs of the factory ask for: their types, strides and sizes decide
how arrays are addressed.  Nothing is run but the recording and the reference interpreter.  Those of
neurons are named after them, and the fused steps of recurrent loops after the loop and the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx
from rich.table import Table
from torch import Tensor

from snncc.arguments import Check
from snncc.codegen.base import KernelSource, KernelSpec
from snncc.codegen.lower import saved_values
from snncc.equivalence.translation import interpret_graph
from snncc.errors import BundleError
from snncc.frontend.state.sources import gather
from snncc.ir.loop_call import LoopCall
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.program import NeuronProgram
from snncc.ir.time_loop import TimeLoop
from snncc.ir.walk import bool_lets
from snncc.model.module import CompiledModule
from snncc.options import GPU_TARGETS, TargetName
from snncc.runtime.backward import BackwardCall
from snncc.runtime.gpu.binaries import (
    Binary,
    bytes_of_a_step,
    check_arch,
    compile_offline,
    machine_of_arch,
)
from snncc.runtime.gpu.calls import Call
from snncc.runtime.gpu.cuda_source import specialize
from snncc.runtime.gpu.engine import GpuEngine
from snncc.runtime.gpu.step_kernel import BoundGpuStep
from snncc.runtime.launch import LoadedKernel
from snncc.runtime.loops.recurrent import CompiledLoop, StepTarget
from snncc.runtime.operators import Neuron
from snncc.runtime.plans import ForwardPlan, Resources

SUFFIXES = {"c": "c", "triton": "py", "cuda": "cu"}
_TARGET = Check(
    "The language of kernels", code="option.emit", hint="Choose one of 'c', 'triton', 'cuda'."
)


@dataclass(frozen=True)
class Emitted:
    """One kernel that was written.

    Attributes:
        name: The name of its files.
        source: Its text.
        binary: What came out of it for a GPU; None for a CPU.
        loads: Bytes that it loads for each neuron-step, by its instructions.
        stores: Bytes that it stores.
    """

    name: str
    source: KernelSource
    binary: Binary | None = None
    loads: float = 0.0
    stores: float = 0.0


def emit(
    fast: CompiledModule, inputs: tuple[Any, ...], folder: Path, arch: str
) -> tuple[Emitted, ...]:
    """Write every kernel of a model.

    Args:
        fast: The compiled model; its target is the language.
        inputs: Inputs of the model.
        folder: The folder to write.
        arch: For GPU languages the architecture that they are compiled for.

    Returns:
        The kernels, in the order of the network.

    Raises:
        OptionError: The target has no kernels, or there is no such architecture.
        BundleError: They cannot be written.
    """
    target = fast.options.target
    _TARGET.choice(target, SUFFIXES)
    if target in GPU_TARGETS:
        check_arch(arch, target)
    found: list[Emitted] = []
    for called, arguments in _calls(fast, inputs):
        if isinstance(called, LoopCall):
            found += emitted_steps(called, arguments, target, arch)
            continue
        program, (length, *tensors) = called.program, arguments
        if target in GPU_TARGETS:
            neuron = Neuron(program, target=target)
            found += (compiled(call, arch) for call in _gpu_calls(neuron, tensors, length, arch))
        else:
            sources = _c_sources(program, tensors, length)
            found += (Emitted(source.name, source) for source in sources)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kernel in found:
            _write(kernel, folder)
        if any(kernel.binary for kernel in found):
            (folder / "resources.json").write_text(json.dumps(_resources(found), indent=1) + "\n")
    except OSError as error:
        raise BundleError(
            f"The kernels cannot be written to '{folder}'.",
            code="bundle.write",
            notes=[str(error)],
            hints=["Make room, or name another folder."],
        ) from error
    return tuple(found)


def _calls(
    fast: CompiledModule, inputs: tuple[Any, ...]
) -> list[tuple[NeuronCall | LoopCall, tuple[Any, ...]]]:
    """Return the neurons and recurrent loops of a model with the arguments that they have there."""
    compiled = fast.specialize(*inputs)
    values = gather(compiled.recording.tape, fast.program, inputs, {})
    return calls_within(compiled.graph, values)


def calls_within(
    graph: torch.fx.Graph, values: Sequence[Any]
) -> list[tuple[NeuronCall | LoopCall, tuple[Any, ...]]]:
    """Return the neurons and recurrent loops of a graph with their arguments."""
    calls: list[tuple[NeuronCall | LoopCall, tuple[Any, ...]]] = []

    def call(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target: Any = node.target
        if isinstance(target, NeuronCall | LoopCall):
            # A loop may change buffers that it is called with.
            held = tuple(x.clone() if isinstance(x, Tensor) else x for x in args)
            calls.append((target, held))
        return target(*args, **kwargs)

    with torch.no_grad():
        interpret_graph(graph, values, call)
    return calls


def emitted_steps(
    call: LoopCall, arguments: tuple[Any, ...], target: TargetName, arch: str
) -> Iterator[Emitted]:
    """Yield the kernels of the fused steps of a loop: forward, in training, and its reverse."""
    machine = machine_of_arch(arch) if target in GPU_TARGETS else None
    steps = StepTarget(target, num_threads=1, machine=machine)
    for part, loop, operands in _loops(call, arguments):
        bound = CompiledLoop(loop, steps).plan(operands).bound
        for node, kernel in bound.items():
            name = f"{call.__name__}_{part}_{node.target.recurrence.name}"  # type: ignore[union-attr]
            if isinstance(kernel, BoundGpuStep):
                yield compiled(kernel.call, arch, name)
            else:
                yield Emitted(name, kernel.source)


def _loops(
    call: LoopCall, arguments: tuple[Any, ...]
) -> Iterator[tuple[str, TimeLoop, tuple[Any, ...]]]:
    """Yield the loops of a call with their operands."""
    yield "forward", call.forward, arguments
    if call.adjoint is None:
        return
    yield "training", call.adjoint.training, arguments
    with torch.no_grad():
        kept = call.adjoint.training(*arguments)
    cotangents = [torch.ones_like(x) for x in kept[: len(call.adjoint.differentiable)]]
    values = (*arguments, *kept, *cotangents)
    for reverse, operands in calls_within(call.adjoint.backward, values):
        assert isinstance(reverse, LoopCall)
        yield "backward", reverse.forward, operands


def _c_sources(
    program: NeuronProgram, tensors: list[Tensor], length: int
) -> Iterator[KernelSource]:
    """Yield the C kernels of a neuron: inference, training where it stores values, backward."""
    neuron = Neuron(program, target="c")
    sources: dict[KernelSpec, KernelSource] = {}

    def kernel(spec: KernelSpec) -> LoadedKernel:
        sources[spec] = neuron.source(spec)
        return LoadedKernel(lambda _: None, sources[spec].signature)

    bools = bool_lets(program.forward.lets)
    resources = Resources(program, kernel, saved_values(program), bools, None)
    for training in (False, True):
        plan = ForwardPlan(resources, tensors, length, training=training, threads=1)
    if program.adjoint is not None:
        kernel(plan.differentiate(_backward_call(neuron, tensors, length)).spec)
    yield from sources.values()


def _gpu_calls(neuron: Neuron, tensors: list[Tensor], length: int, arch: str) -> Iterator[Call]:
    """Yield the calls of a neuron on a GPU: inference, training if it keeps values, backward."""
    program = neuron.program
    engine = GpuEngine(program, neuron.source, machine_of_arch(arch))
    yield engine.plan(tensors, length, training=False).call
    if program.adjoint is not None:
        training = engine.plan(tensors, length, training=True)
        if training.results.saved:
            yield training.call
        yield training.differentiate(_backward_call(neuron, tensors, length)).call


def _backward_call(neuron: Neuron, tensors: Sequence[Tensor], length: int) -> BackwardCall:
    """Return the call for all results of a neuron and the gradients of all its inputs."""
    adjoint = neuron.program.adjoint
    assert adjoint is not None
    shapes = neuron.shapes(tensors, length, training=False)
    needs = [name is not None for name in adjoint.step_gradients]
    needs += [bool(names) for names in adjoint.lane_gradients]
    return BackwardCall(adjoint, tensors, shapes[: neuron.results], needs)


def compiled(call: Call, arch: str, name: str = "") -> Emitted:
    """Compile the kernel of a call; without a name its files have that of its function."""
    source = call.kernel.source
    binary = compile_offline(source, call.variant, arch)
    if source.target == "cuda":
        source = specialize(source, call.variant)
    return Emitted(name or source.name, source, binary, *bytes_of_a_step(binary, call))


def _write(kernel: Emitted, folder: Path) -> None:
    source = kernel.source
    (folder / f"{kernel.name}.{SUFFIXES[source.target]}").write_text(source.text, encoding="utf-8")
    for suffix in ("ptx", "cubin", "amdgcn", "hsaco"):
        stage = kernel.binary.stages.get(suffix) if kernel.binary else None
        if stage is not None:
            file = folder / f"{kernel.name}.{suffix}"
            file.write_bytes(stage if isinstance(stage, bytes) else stage.encode())


def _resources(kernels: Sequence[Emitted]) -> list[dict[str, Any]]:
    return [
        {
            "kernel": kernel.name,
            "arch": kernel.binary.arch,
            "registers": kernel.binary.registers,
            "spilled_bytes": kernel.binary.spilled,
            "shared_bytes": kernel.binary.shared,
            "loaded_bytes_per_neuron_step": kernel.loads,
            "stored_bytes_per_neuron_step": kernel.stores,
        }
        for kernel in kernels
        if kernel.binary is not None
    ]


def table(kernels: Sequence[Emitted]) -> Table:
    """Return what the kernels take of a GPU, one line each."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("kernel", overflow="fold")
    for title in ("registers", "spilled B", "shared B", "load B/step", "store B/step"):
        result.add_column(title, justify="right")
    for row in _resources(kernels):
        _, _, *numbers = row.values()
        result.add_row(row["kernel"], *(f"{number:g}" for number in numbers))
    return result
