"""``verify()``: evidence that a compiled model is the model it was compiled from.

The comparison has four parts, each run on the user's own input:

1. *Structure.*  The compiled graph, with the products that were batched over time taken one step at
   a time and the neurons run by the reference interpreter, is compared with the user's code: bit by
   bit.  It shows that capture, re-rolling and hoisting changed nothing.
2. *Products.*  Each product that was batched over time is compared with the same product taken one
   step at a time, on the inputs that it has in this run: within rounding.
3. *Kernels.*  Each neuron kernel gets the inputs that it had in this run and is compared with the
   reference interpreter: spikes bit by bit where the plan says ``bitwise``; gradients within a
   relative bound.
4. *Network.*  Outputs and gradients of the compiled model against the user's code.  Where the
   first three hold, what differs here comes from sums taken in another order: a rounding has moved
   a potential across the threshold.  The report says where, and calls it *explained*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.errors import EquivalenceError, OptionError
from snncc.frontend.sources import gather, preserved
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.numerics import Numerics
from snncc.ir.program import NeuronProgram
from snncc.layers import layers_of
from snncc.module import CompiledModule, program_of
from snncc.options import Options
from snncc.pipeline import Compiled, executable
from snncc.report import render
from snncc.translation import call_stepwise, interpret_graph, is_product, run_stepwise

# Relative error allowed to gradients that sum the same terms in another order, per dtype: a few
# hundred roundings, the length of the longest sums here.
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
# Relative error allowed to the outputs of a network whose products are batched over time, as long
# as no spike differs.
OUTPUT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of a report.

    Attributes:
        part: ``structure``, ``product``, ``kernel`` or ``network``.
        name: What was compared.
        values: How many numbers.
        differing: How many are not equal bit by bit.
        error: Largest difference relative to the largest magnitude.
        allowed: The bound on ``error``; 0 means that nothing may differ.
        first: Where the first difference is, as an index tuple ([t, b, n] for a sequence).
        explained: Whether the other comparisons show that a difference is one of rounding.
    """

    part: str
    name: str
    values: int
    differing: int
    error: float
    allowed: float
    first: tuple[int, ...] | None
    explained: bool = False

    @property
    def within(self) -> bool:
        """Whether the difference is within the bound."""
        return self.differing == 0 or self.error <= self.allowed

    @property
    def ok(self) -> bool:
        """Whether the difference is within the bound, or explained."""
        return self.within or self.explained


@dataclass(frozen=True)
class Report:
    """An equivalence certificate: ``print(report)``, ``report.ok``, ``report.comparisons``."""

    comparisons: tuple[Comparison, ...]
    numerics: Numerics
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every comparison is within its bound."""
        return all(c.ok for c in self.comparisons)

    def require(self) -> Report:
        """Return the report.

        Raises:
            EquivalenceError: A comparison is beyond its bound.
        """
        for c in self.comparisons:
            if not c.ok:
                raise EquivalenceError(
                    f"The {c.part} comparison of '{c.name}' is beyond its bound.",
                    code="verify.differs",
                    notes=[
                        f"{c.differing} of {c.values} values differ, first at {c.first}",
                        f"relative error {c.error:.2e}, allowed {c.allowed:.0e}",
                    ],
                )
        return self

    def __str__(self) -> str:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("part", "what", "values", "differing", "rel. error", "allowed", "ok"):
            table.add_column(title, justify="left" if title in ("part", "what") else "right")
        for c in self.comparisons:
            table.add_row(
                c.part,
                c.name,
                str(c.values),
                str(c.differing) + (f" (first {list(c.first)})" if c.first else ""),
                f"{c.error:.1e}" if c.differing else "0",
                "bitwise" if c.allowed == 0 else f"{c.allowed:.0e}",
                "yes" if c.within else "explained" if c.explained else "NO",
            )
        verdict = "equivalent" if self.ok else "NOT equivalent"
        head = f"{verdict} (network: {self.numerics.value})"
        return "\n".join([head, render(table), *(f"  {note}" for note in self.notes)])


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
            hints=["Pass the result of 'snncc.compile(model)'."],
        )
    compiled = fast.specialize(*args, **kwargs)
    if compiled.plan.numerics is Numerics.SUBSTITUTED:
        raise EquivalenceError(
            "The compiled model has other neurons than the original.",
            code="verify.substituted",
            notes=["Sigmoids stand for thresholds, or neurons were substituted, as was asked for."],
            hints=["Compare accuracies, or compile with mode='fused' or sweeps='exact'."],
        )
    serial, twin = program_of(model, fast.options), fast.program
    seeds = _Cotangents(seed)
    with preserved(serial, args, kwargs):
        expected = _flat(serial(*args, **kwargs))
        wanted = _differentiate(expected, _leaves(model, args, kwargs), seeds) if gradients else {}
    with preserved(twin, args, kwargs):
        actual = _flat(fast(*args, **kwargs))
        found = _differentiate(actual, _leaves(fast, args, kwargs), seeds) if gradients else {}
    values = gather(compiled.recording.tape, twin, args, kwargs)
    with preserved(twin, args, kwargs), torch.no_grad():
        stepwise = _user_outputs(compiled, run_stepwise(compiled.graph, values))
    comparisons = [*_compare_all("structure", "output", expected, stepwise, 0.0)]
    with preserved(twin, args, kwargs):
        comparisons += _products(compiled, values)
        comparisons += _kernels(compiled, values, fast.options, seeds, gradients)
    network = _network(compiled, expected, actual, wanted, found)
    inexact = compiled.plan.numerics is not Numerics.BITWISE
    explained = inexact and all(c.ok for c in comparisons)
    comparisons += [replace(c, explained=explained and not c.within) for c in network]
    return Report(tuple(comparisons), compiled.plan.numerics, _notes(comparisons))


def _products(compiled: Compiled, values: Sequence[Any]) -> list[Comparison]:
    """Compare each product over time with the same product step by step."""
    found: list[Comparison] = []

    def call(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stepwise = call_stepwise(node, args, kwargs)
        if is_product(node):
            target: Any = node.target
            batched = target(*args, **kwargs)
            allowed = OUTPUT_TOLERANCE.get(batched.dtype, 0.0)
            found.append(compare("product", node.name, stepwise, batched, allowed))
        return stepwise

    with torch.no_grad():
        interpret_graph(compiled.graph, values, call)
    return found


def _kernels(
    compiled: Compiled, values: Sequence[Any], options: Options, seeds: _Cotangents, gradients: bool
) -> list[Comparison]:
    """Compare each neuron kernel with the reference on the inputs that it has here."""
    runner = {layer.name: layer for layer in layers_of(compiled.graph, options.target)}
    calls: list[tuple[torch.fx.Node, tuple[Any, ...]]] = []

    def call(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(node.target, NeuronCall):
            calls.append((node, args))
        target: Any = node.target
        return target(*args, **kwargs)

    with torch.no_grad():
        interpret_graph(compiled.graph, values, call)
    found: list[Comparison] = []
    for node, (length, *tensors) in calls:
        wanted = _wanted(node.target.program)  # type: ignore[union-attr]
        inputs = [
            x.detach().clone().requires_grad_(gradients and w)
            for x, w in zip(tensors, wanted, strict=True)
        ]
        reference = list(node.target(length, *inputs))  # type: ignore[operator]
        kernel = list(_single(node, options)(length, *inputs))
        exact = runner[node.name].numerics if node.name in runner else Numerics.BITWISE
        if exact is Numerics.ITERATED:
            found += _first_steps(node, reference, kernel)
            continue
        allowed = 0.0 if exact is Numerics.BITWISE else OUTPUT_TOLERANCE[inputs[0].dtype]
        name = str(node.target.__name__)  # type: ignore[union-attr]
        found += _compare_all("kernel", name, reference, kernel, allowed)
        if gradients:
            leaves = {f"{name} d{i}": x for i, x in enumerate(inputs)}
            a = _differentiate(reference, leaves, seeds)
            b = _differentiate(kernel, leaves, seeds)
            found += _compare_gradients("kernel", a, b)
    return found


def _first_steps(
    node: torch.fx.Node, reference: list[Tensor], kernel: list[Tensor]
) -> list[Comparison]:
    """Compare the steps that a number of sweeps promises: the first ones, bit by bit."""
    program = node.target.program  # type: ignore[union-attr]
    sweeps, outputs = program.forward.form.sweeps, len(program.forward.outputs)
    name = f"{program.forward.name}, first {sweeps} steps"
    expected, actual = ([x[:sweeps] for x in side[:outputs]] for side in (reference, kernel))
    return _compare_all("kernel", name, expected, actual, 0.0)


def _wanted(program: NeuronProgram) -> list[bool]:
    """Return for each input of a neuron whether its kernels compute its gradient."""
    if program.adjoint is None:
        forward = program.forward
        return [False] * (len(forward.step_inputs) + len(forward.lane_inputs))
    steps = [name is not None for name in program.adjoint.step_gradients]
    return steps + [bool(finals) for finals in program.adjoint.lane_gradients]


def _single(node: torch.fx.Node, options: Options) -> Callable[..., tuple[Any, ...]]:
    """Return the compiled kernel of one neuron as a function of its arguments."""
    graph = torch.fx.Graph()
    places = [graph.placeholder(f"a{i}") for i, _ in enumerate(node.args)]
    graph.output(graph.call_function(node.target, tuple(places)))  # type: ignore[arg-type]
    return executable(graph, options)


def _network(
    compiled: Compiled,
    expected: list[Tensor],
    actual: list[Tensor],
    wanted: dict[str, Tensor],
    found: dict[str, Tensor],
) -> list[Comparison]:
    exact = compiled.plan.numerics is Numerics.BITWISE
    dtype = expected[0].dtype if expected else torch.float32
    allowed = 0.0 if exact else OUTPUT_TOLERANCE.get(dtype, 0.0)
    comparisons = list(_compare_all("network", "output", expected, actual, allowed))
    return comparisons + _compare_gradients("network", wanted, found)


def _compare_gradients(
    part: str, wanted: dict[str, Tensor], found: dict[str, Tensor]
) -> list[Comparison]:
    return [
        compare(
            part,
            f"grad {name}",
            g,
            found.get(name, torch.zeros_like(g)),
            GRADIENT_TOLERANCE.get(g.dtype, 0.0),
        )
        for name, g in wanted.items()
    ]


def _compare_all(
    part: str, name: str, expected: list[Tensor], actual: list[Tensor], allowed: float
) -> list[Comparison]:
    return [
        compare(part, f"{name} {i}" if len(expected) > 1 else name, a, b, allowed)
        for i, (a, b) in enumerate(zip(expected, actual, strict=True))
    ]


def compare(part: str, name: str, a: Tensor, b: Tensor, allowed: float) -> Comparison:
    """Compare two tensors; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return Comparison(
            part,
            f"{name}: {b.dtype} {tuple(b.shape)} for {a.dtype} {tuple(a.shape)}",
            a.numel(),
            a.numel(),
            math.inf,
            allowed,
            None,
        )
    a, b = a.detach(), b.detach()
    equal = (a == b) | (a.isnan() & b.isnan())
    differing = int((~equal).sum())
    if differing == 0:
        return Comparison(part, name, a.numel(), 0, 0.0, allowed, None)
    first = tuple(int(i) for i in (~equal).nonzero()[0])
    scale = float(a.double().abs().max().nan_to_num(1.0, 1.0)) or 1.0
    error = float((a.double() - b.double()).abs().max()) / scale
    error = math.inf if math.isnan(error) else error
    return Comparison(part, name, a.numel(), differing, error, allowed, first)


class _Cotangents:
    """Random cotangents that are the same for tensors of the same shape and position."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, outputs: list[Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return [
            torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device) for y in outputs
        ]


def _differentiate(
    outputs: list[Tensor], leaves: dict[str, Tensor], seeds: _Cotangents
) -> dict[str, Tensor]:
    """Return the gradients of the outputs with respect to named leaves."""
    pairs = [(y, g) for y, g in zip(outputs, seeds(outputs), strict=True) if y.requires_grad]
    named = {name: x for name, x in leaves.items() if x.requires_grad}
    if not pairs or not named:
        return {}
    ys, gs = zip(*pairs, strict=True)
    grads = torch.autograd.grad(ys, list(named.values()), gs, allow_unused=True)
    return {
        name: torch.zeros_like(x) if g is None else g
        for (name, x), g in zip(named.items(), grads, strict=True)
    }


def _leaves(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    inputs, _ = pytree.tree_flatten((args, kwargs))
    leaves = {f"input {i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor)}
    return leaves | (dict(model.named_parameters()) if isinstance(model, nn.Module) else {})


def _flat(result: Any) -> list[Tensor]:
    return [x for x in pytree.tree_flatten(result)[0] if isinstance(x, Tensor)]


def _user_outputs(compiled: Compiled, outputs: tuple[Any, ...]) -> list[Tensor]:
    leaves = compiled.recording.tape.output_leaves
    return [outputs[i] for i in leaves if isinstance(i, int) and not isinstance(i, bool)]


def _notes(comparisons: list[Comparison]) -> tuple[str, ...]:
    if any(c.explained for c in comparisons):
        return (
            "Structure and kernels are exact and the products agree to rounding:",
            "where the network differs, a sum in another order crossed a threshold.",
        )
    return ()
