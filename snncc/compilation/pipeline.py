"""The stages of a compilation, in order: one call each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.compilation.dump import Dump
from snncc.compilation.refusals import refusal
from snncc.compilation.runnable import KernelCall, with_kernels
from snncc.compilation.select_form import select_forms
from snncc.compilation.streamed import hides_steps
from snncc.equivalence.translation import check_translation
from snncc.errors import TargetError, UnsupportedError
from snncc.frontend.capture import capture
from snncc.frontend.reroll import Rolled, reroll
from snncc.ir import validate as invariants
from snncc.ir.events.network import EventOrder
from snncc.ir.graph_function import function_of
from snncc.ir.loop_call import LoopCall
from snncc.ir.nodes import FixedPoint, Form, ParallelReset, Scan
from snncc.ir.numerics import Numerics
from snncc.ir.program import Place
from snncc.ir.tape import SourceKind, Tape
from snncc.ir.time_loop import TimeLoop
from snncc.options import GPU_TARGETS, Options, TargetName, settings
from snncc.passes import Pass, Rejection, passes_for, queueing, substituting
from snncc.passes.dynamic_decay.gates import DecayGates
from snncc.passes.dynamic_decay.substitute_dynamic_decay import SubstituteDynamicDecay
from snncc.passes.events.queue_spikes import QueueSpikes
from snncc.passes.folding.fold_norms import FoldNorms
from snncc.passes.gradients.cut_time import CutTime
from snncc.passes.hoisting.hoist_stateless import EXACT_LOOPS
from snncc.passes.loops.open_layers import has_layers
from snncc.passes.neurons import neuron_nodes
from snncc.reporting.layers import plan_of
from snncc.reporting.report import Plan, Timings
from snncc.runtime.costs.work import prices_of
from snncc.runtime.events.runner import EventRunner
from snncc.runtime.forms.parallel_reset import ParallelResetNeuron
from snncc.runtime.neuron import Neuron

HALVES = (torch.float16, torch.bfloat16)
# Passes that the user asked for: where one does not apply, that is an error.
_WANTED = (CutTime, FoldNorms, QueueSpikes, SubstituteDynamicDecay)
PLACES = {"auto": None, "recompute": Place.SCRATCH, "save": Place.MEMORY}


@dataclass(eq=False)
class Recording:
    """One run of the model, recorded and rolled into loops.

    ``exact`` says that it serves the sizes of the call that it was made for, and no others;
    ``flat`` that its loop is too short to be seen, so that it runs operator by operator.
    ``arguments`` are those of the call, their tensors replaced by zeros that take no memory.
    """

    tape: Tape
    rolled: Rolled
    timings: Timings
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    exact: bool = False
    flat: bool = False


@dataclass(eq=False)
class Compiled:
    """One specialisation of a model, ready to run.

    Attributes:
        recording: What it was compiled from.
        graph: The sequence graph after all passes.
        run: Maps the tensors of ``recording.tape.sources`` to the outputs of the graph.
        plan: What runs how.
        target: The language of its kernels.
        options: How it was compiled.
        fixed_points: The neurons that run by sweeps.
        parallel_resets: The neurons that run chunks of time at once.
        event_networks: The networks that run as queues of spikes.
        gates: The parameters of substituted neurons, in mode ``"dynamic_decay"``.
    """

    recording: Recording
    graph: torch.fx.Graph
    run: Callable[..., tuple[Any, ...]]
    plan: Plan
    target: TargetName
    options: Options
    fixed_points: tuple[Neuron, ...] = ()
    parallel_resets: tuple[ParallelResetNeuron, ...] = ()
    event_networks: tuple[EventRunner, ...] = ()
    gates: DecayGates | None = None


def record(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    values_only: bool = False,
) -> Recording:
    """Capture one run of the model and re-roll its loops (L0, L1).

    Args:
        model: The model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        values_only: Whether to leave out what matters to gradients alone.

    Raises:
        CaptureError: The model's Python cannot be captured.
    """
    timings = Timings()
    with _timed(timings, "capture"), _own_saving():
        tape = capture(model, args, kwargs)
        tape.result = None  # it holds the graph of autograd, and with it all of the run's values
    with _timed(timings, "reroll"):
        rolled = reroll(tape, values_only=values_only)
    return Recording(tape, rolled, timings, pytree.tree_map_only(Tensor, _zeros, (args, kwargs)))


@contextmanager
def _own_saving() -> Iterator[None]:
    """Keep what autograd saves in a recording from hooks, as of a checkpoint around the call.

    They would count it as a part of the call, and it is none when the call is repeated.
    """
    hooks: Any = torch._C._autograd  # has no types
    if not hooks._saved_tensors_hooks_is_enabled():
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


def _zeros(like: Tensor) -> Tensor:
    """Return zeros of the size and type of a tensor, as a view of one number."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)


def build(
    recording: Recording,
    options: Options,
    leaves: Sequence[Tensor],
    name: str,
    gates: DecayGates | None = None,
) -> Compiled:
    """Compile a recording (L2 to L4).

    Args:
        recording: The recorded model.
        options: How to compile it.
        leaves: The tensors of the recording's sources.
        name: Name of the model, for dumps.
        gates: The parameters of substituted neurons, in mode ``"dynamic_decay"``.

    Raises:
        UnsupportedError: Part of the model cannot be compiled exactly and no fallback was allowed.
    """
    dump = Dump.open(name)
    if dump.is_wanted:  # the record of a long run is large as a graph
        dump.graph("capture", recording.tape.graph)
    dump.graph("reroll", recording.rolled.graph)
    target = target_of(options, leaves)
    graph = sequence_graph(recording, options, leaves, dump, gates)
    _require_exact(graph, options, on_gpu=target in GPU_TARGETS)
    _require_valid(graph)
    with _timed(recording.timings, "codegen"):
        runnable = with_kernels(graph, options)
        run = function_of(runnable)
    calls = [n.target.neuron for n in runnable.nodes if isinstance(n.target, KernelCall)]
    neurons = [n for n in calls if isinstance(n, Neuron)]
    fixed_points = tuple(n for n in neurons if isinstance(n.program.forward.form, FixedPoint))
    resets = tuple(n for n in calls if isinstance(n, ParallelResetNeuron))
    events = tuple(n.target for n in runnable.nodes if isinstance(n.target, EventRunner))
    notes: tuple[str, ...] = ()
    notes += ("so few steps run as recorded, operator by operator",) if recording.flat else ()
    notes += ("gradients end at the step that they are of",) if options.mode == "online" else ()
    sources, described = recording.tape.sources, _described(recording.tape, leaves)
    plan = plan_of(graph, target, sources, described, notes)
    if dump.folder is not None:
        dump.text("report.txt", str(plan))
    ways = fixed_points, resets, events
    return Compiled(recording, graph, run, plan, target, options, *ways, gates)


def sequence_graph(
    recording: Recording,
    options: Options,
    leaves: Sequence[Tensor],
    dump: Dump,
    gates: DecayGates | None = None,
) -> torch.fx.Graph:
    """Return the sequence graph of a recording after all passes (L2).

    Args:
        recording: The recorded model.
        options: How to compile it.
        leaves: The tensors of the recording's sources.
        dump: Where stages are written to.
        gates: The parameters of substituted neurons, in mode ``"dynamic_decay"``.

    Raises:
        UnsupportedError: Part of the model cannot be compiled exactly and no fallback was allowed.
    """
    requires = tuple(leaf.requires_grad for leaf in leaves)
    target = target_of(options, leaves)
    passes = passes_for(
        PLACES[options.storage],
        requires,
        form_of(options, target),
        on_gpu=target in GPU_TARGETS,
        skip_zeros=options.skip_zeros and target == "c",
        pack_spikes=_packs_spikes(options, target),
        fold_norms=options.fold_norms,
        open_layers=_opens_layers(recording, options, leaves),
        cut_time=cutting_time(recording) if options.mode == "online" else None,
    )
    if gates is not None:
        passes = substituting(passes, SubstituteDynamicDecay(gates, tuple(leaves)))
    if options.mode == "async":
        passes = queueing(passes, queue_of(options, recording))
    graph = _through(passes, recording, leaves, dump)
    if options.mode == "auto":
        graph = select_forms(graph, leaves, target, options.num_threads)
    return graph


def _packs_spikes(options: Options, target: TargetName) -> bool:
    """Tell whether products keep spikes as bits; by default where that was seen to cost nothing."""
    chosen = target == "c" if options.keep_spikes == "auto" else options.keep_spikes == "bits"
    return chosen and target != "torch"


def _opens_layers(recording: Recording, options: Options, leaves: Sequence[Tensor]) -> bool:
    """Tell whether recurrent layers of torch become loops: where a mode needs their steps.

    Raises:
        UnsupportedError: Their steps cannot be told apart.
    """
    if options.mode not in ("serial", "online") or not has_layers(recording.rolled.graph):
        return False
    fused = replace(options, mode="fused")
    graph = sequence_graph(recording, fused, leaves, Dump("layers"))
    on_gpu = target_of(options, leaves) in GPU_TARGETS
    return hides_steps(graph, recording.tape, [x.detach() for x in leaves], on_gpu=on_gpu)


def cutting_time(recording: Recording) -> CutTime:
    """Return the pass that ends gradients of a recording at the step that they are of."""
    return CutTime(_are_inputs(recording))


def queue_of(options: Options, recording: Recording) -> QueueSpikes:
    """Return the pass that makes one queue of spikes of a network."""
    order = EventOrder(
        group_size=options.group_size,
        policy=options.order,
        noise=options.order_noise,
        refractory_dropout=options.refractory_dropout,
        stop=None if options.stop == "quiet" else options.stop,
    )
    return QueueSpikes(order, _are_inputs(recording), options.prioritize_input)


def _are_inputs(recording: Recording) -> tuple[bool, ...]:
    """Return for each placeholder of a recording whether it is an input of the model."""
    return tuple(source.kind is SourceKind.INPUT for source in recording.rolled.sources)


def _through(
    passes: Sequence[Pass],
    recording: Recording,
    leaves: Sequence[Tensor],
    dump: Dump,
) -> torch.fx.Graph:
    """Return the graph of a recording after all passes, each checked where that is asked for."""
    graph = recording.rolled.graph
    for each in passes:
        with _timed(recording.timings, each.name), _noting(each.name, dump.name):
            after = each.run(graph)
        if isinstance(after, Rejection):
            if recording.flat and not isinstance(each, _WANTED):
                continue
            raise refusal(each, after, recording.tape, recording.rolled)
        if after is graph:  # there was nothing to do
            continue
        if settings().validate and each.numerics not in (Numerics.SUBSTITUTED, Numerics.ITERATED):
            check_translation(each, graph, after, leaves)
        graph = after
        dump.graph(each.name, graph)
    return graph


def target_of(options: Options, leaves: Sequence[Tensor]) -> TargetName:
    """Return the language of the kernels for tensors on some device.

    Raises:
        TargetError: There are no kernels for the device.
    """
    device = next((leaf.device for leaf in leaves if leaf.device.type != "cpu"), None)
    if options.target == "auto":
        chosen: TargetName = "c" if device is None else "triton"
    else:
        chosen = options.target
    if options.mode == "async" and chosen in GPU_TARGETS:
        raise TargetError(
            f"Mode 'async' has no kernels of target '{chosen}'.",
            code="target.device",
            notes=["Its queue of spikes runs on the CPU, or by the reference."],
            hints=["Leave 'target' out, and have model and input on the CPU."],
        )
    if device is not None and (device.type != "cuda" or chosen == "c"):
        raise TargetError(
            f"A tensor is on '{device}', for which target '{chosen}' has no kernels.",
            code="target.device",
            notes=["There are kernels for the CPU, and for CUDA and ROCm devices."],
            hints=["Leave 'target' out, or move model and input with '.to(\"cpu\")'."],
        )
    return chosen


def _require_valid(graph: torch.fx.Graph) -> None:
    """Check the invariants of everything that code is generated from."""
    for node in neuron_nodes(graph):
        invariants.validate(node.target.program.forward)  # type: ignore[union-attr]
    calls = (node.target for node in graph.nodes if isinstance(node.target, LoopCall))
    for loop in (loop for call in calls for loop in call.loops):
        invariants.validate_loop(loop)


def _require_exact(graph: torch.fx.Graph, options: Options, *, on_gpu: bool) -> None:
    """Refuse parts that stay serial, unless the user allowed it."""
    if options.fallback == "serial":
        return
    for node in graph.nodes:
        if isinstance(node.target, TimeLoop) and node.meta["rejection"].code not in EXACT_LOOPS:
            culprit, reason = node.meta.get("culprit"), node.meta["rejection"].reason
            dtype = None if culprit is None else culprit.meta.get("dtype")
            halves = [f"kernels for the CPU compute in float32 and float64; it is {dtype}"]
            raise UnsupportedError(
                "A state is updated by an operator that cannot be part of a neuron kernel.",
                code="unsupported.serial-recurrence",
                location=None if culprit is None else culprit.meta.get("where"),
                notes=[reason, *(halves if dtype in HALVES and not on_gpu else [])],
                hints=["Pass fallback='serial' to run this part one step after another."],
            )


def form_of(options: Options, target: TargetName) -> Form | None:
    """Return the form that the options ask for; None stands for fused time."""
    if options.mode == "scan" or (options.mode == "dynamic_decay" and options.chunk is not None):
        return Scan()
    if options.mode == "parallel_reset":
        return ParallelReset()
    if options.mode == "auto" and prices_of(target) is not None:
        return Scan(forward=False)  # what `select_forms` may choose
    if options.mode != "fpt":
        return None
    if options.sweeps == "exact":
        return FixedPoint()
    draws = options.spikes == "bernoulli"
    return FixedPoint(options.sweeps, options.schedule, options.backward_scale, draws)


def _described(tape: Tape, leaves: Sequence[Tensor]) -> str:
    inputs = [
        f"{source.name} {str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
        for source, leaf in zip(tape.sources, leaves, strict=True)
        if source.kind.value == "input"
    ]
    return ", ".join(inputs) or "no tensor input"


@contextmanager
def _timed(timings: Timings, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings.seconds[stage] = time.perf_counter() - start


@contextmanager
def _noting(stage: str, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"while running pass '{stage}' on '{name}'")
        raise
