"""Check a case: the compiled model against the serial code, or the refusal.

The main comparison is in float64, where a rounding is 2^-29 of what it is in float32: outputs, the
gradients of all inputs and parameters, what was left behind in the model, and the next random
number.  Two calls follow one another, so that state is carried and gradients flow through it.  In
float32 the outputs are equal bit by bit where the plan promises that, else `snncc.verify` judges.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import snncc
from snncc.equivalence.translation import run_stepwise
from snncc.errors import UnsupportedError
from snncc.frontend.state.sources import gather, preserved
from snncc.ir.tape import Position
from snncc.passes.neurons import as_written
from snncc.reporting.report import Plan
from tests.compatibility.case import Case, Model, Sizes

# A third pair of sizes, where they may differ: it must not be recorded at all.
OTHER_SIZES = (13, 4)
# Relative error of sums of a few hundred terms in another order.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}
# Relative error of gradients where the serial code cannot run in float64.
SINGLE_GRADIENTS = 1e-4


@dataclass(frozen=True)
class Record:
    """What came of a case.

    Attributes:
        status: As `Case.expect`.
        code: The code of the refusal.
        neurons: How many neuron kernels run.
        numerics: What the plan promises for the network.
        layers: How the other parts run, by number of parts.
        stream: How a stream relates to the sequence, or why there is none.
    """

    status: str
    code: str = ""
    neurons: int = 0
    numerics: str = ""
    layers: tuple[tuple[str, int], ...] = ()
    stream: str = ""


def check(case: Case) -> Record:
    """Compile the model of a case and compare it with its serial code.

    Returns:
        What came of it.

    Raises:
        AssertionError: Something differs, or the case is compiled where it should be refused.
    """
    if case.expect == "refused":
        return _check_refused(case, case.code)
    options = dict(case.options)
    if case.expect == "serial part":
        _check_refused(case, "unsupported.serial-recurrence")
        options["fallback"] = "serial"
    with default_dtype(torch.float64 if case.double else torch.float32):
        Pair(case, options).compare()
    pair = Pair(case, options)
    pair.compare_values()
    return replace(_record(case, pair.fast.plans), stream=pair.compare_stream())


def _record(case: Case, plans: tuple[Plan, ...]) -> Record:
    plan = plans[0]
    # A counter of batches is one number that no option allows or refuses.
    serial = [x for x in plan.layers if x.kind == "serial" and x.operator != "counter"]
    kinds = [layer.kind for layer in plan.layers if layer.kind != "neuron"]

    assert case.neurons == len(plan.neurons), str(plan)
    assert (case.expect == "serial part") == bool(serial), str(plan)
    return Record(
        status=case.expect,
        neurons=len(plan.neurons),
        numerics=plan.numerics.value,
        layers=tuple((kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)),
    )


def _check_refused(case: Case, code: str) -> Record:
    """The serial code runs; the compiler refuses with a line, and leaves the model alone."""
    model = made(case)
    args = inputs(case, case.sizes[0], seed=1)
    before = state_of(model)
    with pytest.raises(snncc.SnnccError) as refusal:
        snncc.compile(model, **case.options)(*args)

    assert code == refusal.value.code, str(refusal.value)
    assert refusal.value.location is not None or not case.located, str(refusal.value)
    assert_equal("state", before, state_of(model), 0.0)
    case.serial(model)(*args)
    return Record("refused", code)


class Pair:
    """One model twice, from one seed: the serial code and the compiled model."""

    def __init__(self, case: Case, options: dict[str, Any]) -> None:
        self.case = case
        self.model, self.twin = made(case), made(case)
        self.fast = snncc.compile(self.twin, **options)
        self.serial = case.script(case.serial(self.model))
        self.run = case.script(self.fast)

    @property
    def is_bitwise(self) -> bool:
        return all(plan.numerics is snncc.Numerics.BITWISE for plan in self.fast.plans)

    def compare(self) -> None:
        """Compare all that a training step sees, at each pair of sizes."""
        for sizes in self.case.sizes:
            self.compare_at(sizes)
        assert self.case.programs == len(self.fast.plans), str(self.fast)
        if self.case.free:
            again = AssertionError("recorded again")
            with mock.patch("snncc.compilation.specializations.record", side_effect=again):
                self.compare_at(other_sizes(self.case))

    def compare_at(self, sizes: Sizes) -> None:
        self.reset()
        expected = self.observe(self.serial, self.model, sizes)
        actual = self.observe(self.run, self.twin, sizes)
        self.agree(expected, actual)
        useful = any(g.abs().sum() > 0 for g in expected["gradients"])
        assert useful == self.case.differentiable, "the gradients say nothing"

    def compare_values(self) -> None:
        """Compare the values alone, in the precision that kernels are used in."""
        for sizes in self.case.sizes:
            self.compare_without_gradients(sizes)
        self.reset()
        args = inputs(self.case, self.case.sizes[0], seed=5)
        report = snncc.verify(self.model, self.fast, *args)
        assert report.ok, str(report)

    def compare_stream(self) -> str:
        """Compare a stream with the sequence, whose products are taken step by step as well.

        Returns:
            Whether they are equal bit by bit or to rounding, or why the model needs all steps.
        """
        self.reset()
        args = inputs(self.case, self.case.sizes[0], seed=6)
        with torch.no_grad():
            compiled = self.fast.specialize(*args)
            tape = compiled.recording.tape
            values = [x.detach() for x in gather(tape, self.fast.program, args, {})]
            with preserved(self.fast.program, args, {}):
                torch.manual_seed(3)
                expected = run_stepwise(as_written(compiled.graph), values)
            before = state_of(self.twin)
            try:
                stream = self.fast.stream(*args)
            except UnsupportedError as refusal:
                if refusal.code != "unsupported.stream":
                    raise
                return str(refusal.notes[0])
            with preserved(self.fast.program, args, {}):
                torch.manual_seed(3)
                actual = stream.whole_sequence(args, {})
            assert_equal("state", before, state_of(self.twin), 0.0)
        # A stream may lack what the model only leaves behind in itself.
        kept = [i for i, y in enumerate(actual) if y is not None]
        assert {leaf.index for leaf in tape.output_leaves if isinstance(leaf, Position)} <= {*kept}
        expected, actual = ([values[i] for i in kept] for values in (expected, actual))
        is_equal = all(map(_is_equal, expected, actual))
        if not is_equal:
            assert_equal("stream", list(expected), actual, ROUNDING[torch.float32])
        return "bitwise" if is_equal else "rounding"

    def compare_without_gradients(self, sizes: Sizes) -> None:
        self.reset()
        with torch.no_grad():
            expected = self.observe(self.serial, self.model, sizes)
            actual = self.observe(self.run, self.twin, sizes)
        if self.is_bitwise or torch.get_default_dtype() is torch.float64:
            self.agree(expected, actual)

    def agree(self, expected: dict[str, list[Any]], actual: dict[str, list[Any]]) -> None:
        exact = 0.0 if self.is_bitwise else ROUNDING[torch.get_default_dtype()]
        gradients = self.case.grad_tolerance if self.case.double else SINGLE_GRADIENTS
        allowed = {"outputs": exact, "state": exact, "gradients": gradients}
        for what, values in expected.items():
            assert_equal(what, values, actual[what], allowed.get(what, 0.0))

    def reset(self) -> None:
        self.case.reset(self.model)
        self.case.reset(self.twin)

    def observe(self, run: Model, model: Model, sizes: Sizes) -> dict[str, list[Any]]:
        """Call twice and return what a user can see of it."""
        torch.manual_seed(3)
        calls = [inputs(self.case, sizes, seed) for seed in (1, 2)]
        outputs = [leaves_of(run(*args)) for args in calls]
        drawn = torch.rand(())
        state = state_of(model)
        results = [*outputs[0], *outputs[1], *state]
        tensors = [x for x in results if isinstance(x, Tensor) and not is_parameter(x)]
        leaves = [x for x in pytree.tree_leaves(calls) if isinstance(x, Tensor)]
        leaves += [x for x in state if is_parameter(x)]
        return {
            "outputs": detached([*outputs[0], *outputs[1]]),
            "state": detached(state),
            "random": [drawn],
            "gradients": _gradients(tensors, leaves),
        }


def _is_equal(x: Any, y: Any) -> bool:
    if not isinstance(x, Tensor):
        return bool(x == y)
    return x.dtype == y.dtype and torch.equal(x.nan_to_num(), y.nan_to_num())


def made(case: Case) -> Model:
    """Return the model of a case, always with the same parameters."""
    torch.manual_seed(0)
    model = case.make()
    if isinstance(model, nn.Module):
        model.train(case.training)
    return model


def other_sizes(case: Case) -> Sizes:
    """Return sizes that differ from those of a case where its own two differ."""
    (T, B), pair = case.sizes[0], zip(*case.sizes, strict=True)
    free = [a != b for a, b in pair]
    return (OTHER_SIZES[0] if free[0] else T, OTHER_SIZES[1] if free[1] else B)


def inputs(case: Case, sizes: Sizes, seed: int) -> tuple[Any, ...]:
    """Return arguments of a case; the generator goes on as if none had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return case.inputs(*sizes)


def leaves_of(result: Any) -> list[Any]:
    """Return the tensors and Python values of a result, and of dataclasses in it."""
    found: list[Any] = []
    for leaf in pytree.tree_leaves(result):
        is_open = is_dataclass(leaf) or isinstance(leaf, SimpleNamespace)
        found += [type(leaf).__name__, *leaves_of(vars(leaf))] if is_open else [leaf]
    return found


def is_parameter(value: Any) -> bool:
    """Tell whether a value is a parameter, which has no history."""
    return isinstance(value, nn.Parameter)


def detached(values: list[Any]) -> list[Any]:
    """Return values of which tensors are copies without history."""
    return [x.detach().clone() if isinstance(x, Tensor) else x for x in values]


def _gradients(tensors: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Return the gradients of a weighted sum; what is not reached has a gradient of zeros."""
    weights = torch.Generator().manual_seed(4)
    loss = [
        (x * torch.randn(x.shape, generator=weights, dtype=x.dtype)).sum()
        for x in tensors
        if x.requires_grad
    ]
    leaves = [x for x in leaves if x.requires_grad]
    if not loss or not leaves or not torch.is_grad_enabled():
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(sum(loss), leaves, allow_unused=True)  # type: ignore[arg-type]
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def assert_equal(what: str, expected: list[Any], actual: list[Any], allowed: float) -> None:
    """Assert that two lists of tensors and Python values agree to a relative error."""
    assert len(expected) == len(actual), f"{what}: {len(expected)} values, then {len(actual)}"
    for position, (x, y) in enumerate(zip(expected, actual, strict=True)):
        name = f"{what} {position}"
        if not isinstance(x, Tensor):
            assert type(x) is type(y), name
            assert x == y or (allowed and math.isclose(x, y, rel_tol=allowed)), name
            continue
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        assert what == "gradients" or x.requires_grad == y.requires_grad, name
        if allowed == 0.0 or not x.is_floating_point():
            assert torch.equal(x.nan_to_num(), y.nan_to_num()), f"{name} differs"
        else:
            scale = float(x.abs().max()) if x.numel() else 0.0
            torch.testing.assert_close(y, x, rtol=allowed, atol=allowed * scale, msg=name)


def state_of(model: Model) -> list[Any]:
    """Return every tensor and number that a model holds, in a fixed order."""
    found: list[Any] = []
    seen: set[int] = set()
    stack: list[Any] = [model]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor | int | float | str) or value is None:
            found.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            stack.extend(_parts(value))
    return found


def _parts(value: Any) -> Iterator[Any]:
    """Yield what a container, a module or an object of the tests holds."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set) or type(value).__name__ == "deque":
        yield from value
    elif isinstance(value, nn.Module | SimpleNamespace) or is_dataclass(value):
        yield from vars(value).values()
    elif isinstance(value, functools.partial):
        yield from (value.args, value.keywords)
    elif type(value).__module__.startswith("tests."):
        yield from getattr(value, "__dict__", {}).values()
    for cell in getattr(value, "__closure__", None) or ():
        yield cell.cell_contents


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of a type, as a user does who works in that type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def over_time(time_dim: int = 0) -> Callable[[Model], Model]:
    """Return the script around a step module: its serial code over a whole sequence.

    What comes behind the sequence among the arguments is state; the step returns it last.
    """

    def serial(step: Model) -> Model:
        def run(x: Any, *state: Any) -> Any:
            outputs = []
            for x_t in x.unbind(time_dim):
                result = step(x_t, *state)
                if state:
                    y, *state = result  # type: ignore[assignment]
                else:
                    y = result
                outputs.append(y)
            stacked = pytree.tree_map(lambda *ys: torch.stack(ys, time_dim), *outputs)
            return (stacked, *state) if state else stacked

        return run

    return serial
