"""``verify()``: evidence that a compiled model is the model it was compiled from.

The comparison has four parts, each run on the user's own input:

1. *Structure.*  The compiled graph, with the products that were batched over time taken one step at
   a time and the neurons run by the reference interpreter, is compared with the user's code: bit by
   bit.  It shows that capture, re-rolling and hoisting changed nothing.
2. *Products.*  Each product that was batched over time is compared with the same product taken one
   step at a time, on the inputs that it has in this run: within rounding.
   Where norms were folded, both are done with the norms as they were, and each layer is then
   compared with and without them (`snncc.equivalence.folds`): a spike that differs has to be within
   rounding of its threshold.
3. *Kernels.*  Each neuron kernel gets the inputs that it had in this run and is compared with the
   reference interpreter: spikes bit by bit where the plan says ``bitwise``; gradients within a
   relative bound.
4. *Network.*  Outputs, state left behind and gradients against the user's code.  Where the
   first three hold, what differs here comes from sums taken in another order: a rounding has moved
   a potential across the threshold.  The report says where, and calls it *explained*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.arguments import Check
from snncc.compilation.dump import Dump
from snncc.compilation.pipeline import Compiled, cutting_time, sequence_graph
from snncc.compilation.runnable import executable
from snncc.equivalence.certificate import (
    OUTPUT_TOLERANCE,
    Comparison,
    Report,
    compare,
    compare_all,
    compare_gradients,
)
from snncc.equivalence.events import compare_events
from snncc.equivalence.folds import compare_folds, moved_spikes
from snncc.equivalence.observation import (
    Arguments,
    Cotangents,
    Seen,
    differentiate,
    leaves_of,
    observe,
    results_of,
    unwritten,
)
from snncc.equivalence.scans import compare_scan
from snncc.equivalence.translation import call_stepwise, interpret_graph, is_product, run_stepwise
from snncc.errors import EquivalenceError, OptionError
from snncc.frontend.precision import without_autocast
from snncc.frontend.state.sources import gather, preserved
from snncc.ir import sequence_ops
from snncc.ir.custom_gradient import run_graph
from snncc.ir.loop_call import LoopCall
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Scan
from snncc.ir.numerics import Numerics
from snncc.model.given import require_model
from snncc.model.module import CompiledModule, program_of
from snncc.options import Options
from snncc.passes.folding.fold_membrane_norm import INTO_SCALE, INTO_STATE
from snncc.passes.loops.open_layers import OpenLayers, has_layers
from snncc.passes.neurons import as_written, serial_program
from snncc.reporting.layers import layers_of
from snncc.reporting.recurrent_layer import recurrent_layer
from snncc.reporting.report import Layer
from snncc.runtime.products import convolution
from snncc.runtime.products import linear as products


def verify(
    model: Callable[..., Any],
    fast: CompiledModule,
    *args: Any,
    gradients: bool = True,
    seed: int = 0,
    **kwargs: Any,
) -> Report:
    """Compare a compiled model with the model it was compiled from, on given inputs.

    Args:
        model: The original model.
        fast: The compiled model.
        *args: Inputs of the model.
        gradients: Whether to compare gradients too.
        seed: Seed of the random cotangents.
        **kwargs: Keyword inputs of the model.

    Returns:
        The certificate.  Buffers, attributes and random state of the model are left as they were.
    """
    if not isinstance(fast, CompiledModule):
        raise OptionError(
            "The second argument of 'verify' is not a compiled model.",
            code="option.verify",
            hints=[
                "Pass the result of 'snncc.compile(model)'; of a distributed one, its 'module'."
            ],
        )
    require_model(model)
    gradients = _option("gradients").flag(gradients) and fast.options.mode != "serial"
    seed = _option("seed").whole(seed, 0, 2**63 - 1)
    compiled = fast.specialize(*args, **kwargs)
    if fast.options.mode == "async":
        return _queue(model, fast, compiled, (args, kwargs), gradients, seed)
    _require_original(compiled)
    seeds = Cotangents(seed)
    expected, actual = _observed(model, fast, (args, kwargs), gradients, seeds)
    if gradients and fast.options.mode == "online":
        cut = _cut_gradients(compiled, model, fast.options, (args, kwargs), seeds)
        expected = replace(expected, gradients=cut)
    twin = fast.program
    values = gather(compiled.recording.tape, twin, args, kwargs)
    graph = _with_norms(compiled, values, fast)
    stepwise = _stepwise(compiled, graph, values, twin, (args, kwargs))
    allowed = _structural_tolerance(compiled, expected.outputs)
    comparisons = [*compare_all("structure", "output", expected.outputs, stepwise, allowed)]
    with without_autocast(), preserved(twin, args, kwargs):
        comparisons += _products(graph, values)
        if graph is not compiled.graph:
            comparisons += compare_folds(as_written(graph), as_written(compiled.graph), values)
        comparisons += _kernels(compiled, values, fast.options, seeds, gradients)
    network = _network(compiled, expected, actual)
    comparisons += _explained(network, comparisons, compiled)
    notes = _notes(comparisons, fast.options.mode, gradients=gradients)
    return Report(tuple(comparisons), compiled.plan.numerics, notes)


def _observed(
    model: Callable[..., Any],
    fast: CompiledModule,
    arguments: Arguments,
    gradients: bool,
    seeds: Cotangents,
) -> tuple[Seen, Seen]:
    """Return what a call of the model shows, and what one of the compiled model does."""
    given = [leaves_of(m, *arguments) for m in (model, fast)]
    serial, leaves = program_of(model, fast.options), given if gradients else [{}, {}]
    if fast.options.mode == "online":  # its gradients are compared with other code
        leaves = [{}, leaves[1]]
    with unwritten(given[0]):
        expected = observe(serial, serial, arguments, leaves[0], seeds)
    with unwritten(given[1]):
        return expected, observe(fast, fast.program, arguments, leaves[1], seeds)


def _stepwise(
    compiled: Compiled,
    graph: torch.fx.Graph,
    values: Sequence[Any],
    twin: Callable[..., Any],
    arguments: Arguments,
) -> list[Tensor]:
    """Return what the loops of a graph give as they are written, one step after another."""
    # A recurrent layer of torch rounds in another way where it is to have a gradient.
    with_graph = torch.is_grad_enabled() and has_layers(graph)
    with without_autocast(), preserved(twin, *arguments), torch.set_grad_enabled(with_graph):
        outputs = run_stepwise(as_written(graph), values)
        return results_of(compiled.recording.tape, twin, outputs, arguments)


def _require_original(compiled: Compiled) -> None:
    if compiled.plan.numerics is Numerics.SUBSTITUTED:
        raise EquivalenceError(
            "The compiled model has other neurons than the original.",
            code="verify.substituted",
            notes=["Sigmoids stand for thresholds, or neurons were substituted, as was asked for."],
            hints=["Compare accuracies, or compile with mode='fused' or sweeps='exact'."],
        )


def _queue(  # noqa: PLR0913 - those of `verify`
    model: Callable[..., Any],
    fast: CompiledModule,
    compiled: Compiled,
    arguments: Arguments,
    gradients: bool,
    seed: int,
) -> Report:
    """Return the certificate of a queue of spikes: that of the layered network, and its own."""
    args, kwargs = arguments
    layered = CompiledModule(fast.original, fast.options.layered())
    report = verify(model, layered, *args, gradients=gradients, seed=seed, **kwargs)
    values = gather(compiled.recording.tape, fast.program, args, kwargs)
    with without_autocast(), preserved(fast.program, args, kwargs):
        comparisons, notes = compare_events(compiled, values, gradients=gradients)
    found = (*report.comparisons, *comparisons)
    return Report(found, compiled.plan.numerics, (*report.notes, *notes))


def _option(name: str) -> Check:
    hint = "Leave it out: gradients are compared, from the seed 0."
    return Check(f"Option '{name}'", code="option.verify", hint=hint)


def _with_norms(compiled: Compiled, values: Sequence[Any], fast: CompiledModule) -> torch.fx.Graph:
    """Return the sequence graph of a model as it is without norms folded."""
    if not fast.options.fold_norms:
        return compiled.graph
    options = replace(fast.options, fold_norms=False)
    name = type(fast.original).__name__
    return sequence_graph(compiled.recording, options, values, Dump(name))


def _structural_tolerance(compiled: Compiled, outputs: Sequence[Tensor]) -> float:
    """Return the relative error that is allowed to a network.

    One whose membrane norms are folded, or whose recurrent layers are loops, rounds elsewhere.
    """
    notes = (INTO_STATE, INTO_SCALE)
    folded = any(node.meta.get("folded") in notes for node in compiled.graph.nodes)
    opened = has_layers(compiled.recording.rolled.graph) and not has_layers(compiled.graph)
    return OUTPUT_TOLERANCE.get(outputs[0].dtype, 0.0) if (folded or opened) and outputs else 0.0


def _products(graph: torch.fx.Graph, values: Sequence[Any]) -> list[Comparison]:
    """Compare each product over time with the same product step by step."""
    found: list[Comparison] = []

    def call(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stepwise = call_stepwise(node, args, kwargs)
        if is_product(node) or node.meta.get("skips_zeros"):
            skips = node.meta.get("skips_zeros")
            target: Any = convolution.skipping(node.target) if skips else node.target
            if target is sequence_ops.linear:
                target = products.linear
            batched = target(*args, **kwargs)
            allowed = OUTPUT_TOLERANCE.get(batched.dtype, 0.0)
            found.append(compare("product", node.name, stepwise, batched, allowed))
        return stepwise

    with torch.no_grad():
        interpret_graph(graph, values, call)
    return found


def _kernels(
    compiled: Compiled, values: Sequence[Any], options: Options, seeds: Cotangents, gradients: bool
) -> list[Comparison]:
    """Compare each neuron and recurrent loop with the reference on the inputs that it has here."""
    runner = {layer.name: layer for layer in layers_of(compiled.graph, compiled.target)}
    calls: list[tuple[torch.fx.Node, tuple[Any, ...]]] = []

    def call(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target: Any = node.target
        if isinstance(target, NeuronCall | LoopCall):
            # A loop may change buffers that it was called with.
            calls.append((node, tuple(x.clone() if isinstance(x, Tensor) else x for x in args)))
        return target(*args, **kwargs)

    with torch.no_grad():
        interpret_graph(compiled.graph, values, call)
    found: list[Comparison] = []
    for node, args in calls:
        wanted = [gradients and w for w in _wanted(node.target)]
        reference, inputs = _run_alone(_reference(node.target), args, wanted)
        kernel, twins = _run_alone(_single(node, options), args, wanted)
        exact = _promise(node, runner)
        if exact is Numerics.ITERATED:
            found += _first_steps(node, args, kernel)
        dtype = next(x.dtype for x in (*reference, *inputs.values()) if x.is_floating_point())
        allowed = 0.0 if exact in (Numerics.BITWISE, Numerics.ITERATED) else OUTPUT_TOLERANCE[dtype]
        name = str(node.target.__name__)  # type: ignore[union-attr]
        if _moves_spikes(node.target):
            found += compare_scan(node.target.program, args, options)  # type: ignore[union-attr]
        else:
            found += compare_all("kernel", name, reference, kernel, allowed)
        if gradients:
            a = differentiate(reference, {f"{name} {k}": x for k, x in inputs.items()}, seeds)
            b = differentiate(kernel, {f"{name} {k}": x for k, x in twins.items()}, seeds)
            found += compare_gradients("kernel", a, b)
    return found


def _moves_spikes(target: Any) -> bool:
    """Tell whether a neuron runs forward by chunks of time."""
    form = target.program.forward.form if isinstance(target, NeuronCall) else None
    return isinstance(form, Scan) and form.forward


def _reference(target: Any) -> Callable[..., Any]:
    """Return what a kernel is compared with, which rounds as kernels do."""
    reference: Callable[..., Any] = target.wide if isinstance(target, NeuronCall) else target
    return reference


def _promise(node: torch.fx.Node, lines: dict[str, Layer]) -> Numerics:
    """Return what the plan promises of a neuron or loop, given its input."""
    if isinstance(node.target, LoopCall):
        return recurrent_layer(node, node.target, node.name, "c").numerics
    return lines[node.name].numerics if node.name in lines else Numerics.BITWISE


def _run_alone(
    target: Any, args: tuple[Any, ...], wanted: Sequence[bool]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the results of a call on copies of its arguments, and the copies with gradients."""
    inputs = [
        x.detach().clone().requires_grad_(w) if isinstance(x, Tensor) else x
        for x, w in zip(args, wanted, strict=True)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        results = list(target(*inputs))
    return results, {f"d{i}": x for i, (x, w) in enumerate(zip(inputs, wanted, strict=True)) if w}


def _first_steps(
    node: torch.fx.Node, args: tuple[Any, ...], kernel: list[Tensor]
) -> list[Comparison]:
    """Compare the steps that a number of sweeps promises: the first ones, bit by bit."""
    program = node.target.program  # type: ignore[union-attr]
    sweeps, outputs = program.forward.form.sweeps, len(program.forward.outputs)
    reference = NeuronCall(serial_program(program)).wide(*args)
    name = f"{program.forward.name}, first {sweeps} steps"
    expected, actual = ([x[:sweeps] for x in side[:outputs]] for side in (reference, kernel))
    return compare_all("kernel", name, expected, actual, 0.0)


def _wanted(target: Any) -> list[bool]:
    """Return for each argument of a call whether its kernels compute its gradient."""
    if isinstance(target, LoopCall):
        return list(target.wanted)
    forward, adjoint = target.program.forward, target.program.adjoint
    if adjoint is None:
        return [False] * (1 + len(forward.step_inputs) + len(forward.lane_inputs))
    steps = [name is not None for name in adjoint.step_gradients]
    return [False, *steps, *(bool(finals) for finals in adjoint.lane_gradients)]


def _single(node: torch.fx.Node, options: Options) -> Callable[..., tuple[Any, ...]]:
    """Return one neuron or loop, compiled, as a function of its arguments."""
    graph = torch.fx.Graph()
    places = [graph.placeholder(f"a{i}") for i, _ in enumerate(node.args)]
    graph.output(graph.call_function(node.target, tuple(places)))  # type: ignore[arg-type]
    return executable(graph, options)


def _cut_gradients(
    compiled: Compiled,
    model: Callable[..., Any],
    options: Options,
    arguments: Arguments,
    seeds: Cotangents,
) -> dict[str, Tensor]:
    """Return the gradients of the serial code, as recorded, with the states of loops detached."""
    program, leaves = program_of(model, options), leaves_of(model, *arguments)
    recording, graph = compiled.recording, compiled.recording.rolled.graph
    opens = () if has_layers(compiled.graph) else (OpenLayers(),)
    for each in (*opens, cutting_time(recording)):
        after = each.run(graph)
        assert isinstance(after, torch.fx.Graph)  # or it would not be compiled
        graph = after
    with unwritten(leaves), without_autocast(), preserved(program, *arguments):
        outputs = run_graph(graph, gather(recording.tape, program, *arguments))
        results = results_of(recording.tape, program, outputs, arguments)
        return differentiate(results, leaves, seeds)


def _network(compiled: Compiled, expected: Seen, actual: Seen) -> list[Comparison]:
    def allowed(like: Tensor) -> float:
        exact = compiled.plan.numerics is Numerics.BITWISE
        return 0.0 if exact else OUTPUT_TOLERANCE.get(like.dtype, 0.0)

    dtype = expected.outputs[0] if expected.outputs else torch.empty(0)
    comparisons = compare_all("network", "output", expected.outputs, actual.outputs, allowed(dtype))
    missing = torch.empty(0)
    comparisons += [
        compare("network", f"state {name}", x, actual.state.get(name, missing), allowed(x))
        for name, x in expected.state.items()
    ]
    return comparisons + compare_gradients("network", expected.gradients, actual.gradients)


def _explained(
    network: list[Comparison], parts: list[Comparison], compiled: Compiled
) -> list[Comparison]:
    """Return the comparisons of a network; where all parts agree, roundings explain the rest."""
    explained = compiled.plan.numerics is not Numerics.BITWISE and all(c.ok for c in parts)
    return [replace(c, explained=explained and not c.within) for c in network]


def _notes(comparisons: list[Comparison], mode: str, *, gradients: bool) -> tuple[str, ...]:
    notes = moved_spikes(comparisons)
    if any(c.explained for c in comparisons):
        notes += ["Structure and kernels are exact and the products agree to rounding:"]
        notes += ["where the network differs, a sum in another order crossed a threshold."]
    if mode == "serial":
        notes += ["Gradients are not compared: mode 'serial' has none."]
    if mode == "online" and gradients:
        notes += ["Gradients are those of the serial code with its states detached at each step."]
    return tuple(notes)
