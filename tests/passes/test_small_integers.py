"""Integer, bool and complex states in kernels: what is proven, what is checked, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import snncc
from snncc.frontend.capture import capture
from snncc.frontend.reroll import reroll
from snncc.passes.hoisting.find_recurrences import Group, Kind, find_recurrences
from snncc.passes.scalars.small_integers import EXACT, SmallIntegers

Step = Callable[[Tensor, Tensor, Tensor], Any]


def loop_of(step: Step, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a loop of a float and an integer state; ``step`` returns the new integers."""

    def run(x: Tensor) -> Tensor:
        v, n = torch.zeros_like(x[0]), torch.zeros(x.shape[1:], dtype=dtype)
        out = []
        for x_t in x:
            v = 0.5 * v + x_t
            s = (v > 0.5).to(x.dtype) * (n < 100)
            n = step(n, s, v)
            out.append(s + 0.5 * n)
        return torch.stack(out)

    return run


SMALL: dict[str, tuple[Step, torch.dtype, int]] = {
    "count-down": (lambda n, s, v: torch.where(s > 0, 3, n - 1), torch.int64, 2**24 - 1),
    "clamped": (lambda n, s, v: (n - 1).clamp(min=0) + 2 * s.long(), torch.int64, 2**24 - 3),
    "counter": (lambda n, s, v: n + s.long(), torch.int64, 2**24 - 1),
    "reset-product": (lambda n, s, v: (n + 1) * (1 - s.int()), torch.int32, 2**24 - 1),
    "narrow": (lambda n, s, v: n + (v > 0), torch.int16, 2**15 - 2),
    "bounded": (lambda n, s, v: s.to(torch.int8) * 5 - (v < 0).to(torch.int8), torch.int8, 0),
    "large-steps": (lambda n, s, v: n + 1000 * s.long(), torch.int64, 2**24 // 1000 - 1),
}
LARGE: dict[str, tuple[Step, torch.dtype]] = {
    "doubles": (lambda n, s, v: n * 2 + 1, torch.int64),
    "of-a-float": (lambda n, s, v: v.long(), torch.int64),
    "wraps": (lambda n, s, v: n + s.to(torch.int8), torch.int8),
    "too-fast": (lambda n, s, v: n + 10_000 * s.long(), torch.int64),
    "remainder": (lambda n, s, v: (n + 1) % 4, torch.int64),
    "unsigned": (lambda n, s, v: n - (v > 0).to(torch.uint8), torch.uint8),
}


# The potential feeds the count: its part of the loop is fused, and the count runs in torch.
PARTLY_FUSED = {"wraps", "too-fast"}


def groups_of(step: Step, dtype: torch.dtype) -> tuple[Group, ...]:
    """Return the groups of the one loop."""
    rolled = reroll(capture(loop_of(step, dtype), (torch.randn(6, 2, 3),), {}))
    (loop,) = rolled.loops
    return find_recurrences(loop)


@pytest.mark.parametrize("name", SMALL)
def test_small_integers_run_in_the_kernel(name: str) -> None:
    """They are held exactly for as many steps as they grow slowly enough."""
    step, dtype, most = SMALL[name]
    (group,) = (g for g in groups_of(step, dtype) if g.kind is not Kind.INVARIANT)

    assert group.kind is Kind.NEURON
    assert (group.most_steps or 0) == most
    run = loop_of(step, dtype)
    x = torch.randn(9, 2, 3)
    assert torch.equal(snncc.compile(run)(x), run(x))


@pytest.mark.parametrize("name", LARGE)
def test_integers_of_any_size_stay_in_torch(name: str) -> None:
    """What may leave the exact range, or wrap around, runs in torch."""
    step, dtype = LARGE[name]
    run = loop_of(step, dtype)
    x = torch.randn(6, 2, 3)
    fast = snncc.compile(run, fallback="serial")

    assert torch.equal(fast(x), run(x))
    assert {"serial", "recurrent"} & {layer.kind for layer in fast.plans[0].layers}
    if name in PARTLY_FUSED:
        assert torch.equal(snncc.compile(run)(x), run(x))
        return
    with pytest.raises(snncc.UnsupportedError) as refusal:
        snncc.compile(run)(x)
    assert refusal.value.code == "unsupported.serial-recurrence"
    assert "integers" in str(refusal.value) or "remainder" in str(refusal.value)


def test_too_many_steps_are_refused() -> None:
    """The limit of the proof is checked at each call, on kernels and on the reference."""
    step, dtype, most = SMALL["large-steps"]
    run = loop_of(step, dtype)
    for target in ("c", "torch"):
        fast = snncc.compile(run, target=target)
        fast(torch.ones(7, 1, 1))
        fast(torch.ones(9, 1, 1))
        with pytest.raises(snncc.LaunchError, match=f"exactly for {most} steps") as refusal:
            fast(torch.ones(most + 1, 1, 1))

        assert refusal.value.code == "launch.steps"


def test_large_integers_from_outside_are_refused() -> None:
    """A counter that a caller passes in is looked at."""

    def run(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        for x_t in x:
            n = n + (x_t > 0)
        return n * 0.5, n

    fast = snncc.compile(run)
    x = torch.randn(6, 2, 3)
    for n in (torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), 2**22)):
        for a, b in zip(run(x, n), fast(x, n), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    with pytest.raises(snncc.LaunchError) as refusal:
        fast(x, torch.full((2, 3), 2**40))

    assert refusal.value.code == "launch.integer-state"


def test_single_counters_stay_integers() -> None:
    """What counts for all lanes, like the batches of a norm, is not limited."""

    def run(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros_like(x[0])
        for x_t in x:
            v, n = 0.5 * v + x_t, n + 1
        return v, n

    fast = snncc.compile(run)
    v, n = fast(torch.ones(6, 2, 3), torch.tensor(2**60))

    assert int(n) == 2**60 + 6
    assert torch.equal(v, run(torch.ones(6, 2, 3), n)[0])


def test_no_integer_is_nothing_to_prove() -> None:
    """A loop of floats has no small integers."""

    def run(x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for x_t in x:
            v = 0.5 * v + x_t
        return v

    (loop,) = reroll(capture(run, (torch.randn(6, 2, 3),), {})).loops
    small = SmallIntegers(loop)

    assert not any(node in small for node in loop.body.nodes)
    assert small.most_steps > EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_stop_at_integers_and_bools(dtype: torch.dtype) -> None:
    """Autograd does not look through a conversion, so neither do kernels."""

    def run(x: Tensor) -> Tensor:
        v, fired = torch.zeros_like(x[0]), torch.zeros_like(x[0], dtype=torch.bool)
        for x_t in x:
            y = 0.5 * v + x_t
            v = torch.where(fired, 0.25 * y, y) * (y > 0) + y.relu().sign().int() * y
            fired = y > 1.0
        return v

    x = torch.randn(7, 2, 3, dtype=dtype, requires_grad=True)
    fast = snncc.compile(run)

    expected, actual = run(x), fast(x)
    assert torch.equal(expected, actual)
    (a,), (b,) = (torch.autograd.grad(y.sum(), x) for y in (expected, actual))
    torch.testing.assert_close(b, a)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states(dtype: torch.dtype) -> None:
    """Values, final states and gradients are those of torch, also with respect to complex ones."""

    def run(x: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        out = []
        for x_t in x:
            z = z * w - x_t * 0.5j + (1 - x_t) * z.conj() * 0.1
            z = torch.where(z.real > 1, -z, z) + torch.complex(x_t, z.detach().imag)
            out.append(z.imag * z.real)
        return torch.stack(out), z

    real = dtype.to_real()
    x = torch.randn(6, 2, 3, dtype=real, requires_grad=True)
    z, w = (torch.randn(2, 3, dtype=dtype, requires_grad=True) for _ in range(2))
    fast = snncc.compile(run)

    for a, b in zip(run(x, z, w), fast(x, z, w), strict=True):
        torch.testing.assert_close(b, a)
        wanted = [x, z, w]
        weights = torch.randn(a.shape, dtype=a.dtype)
        found = [torch.autograd.grad(y, wanted, weights, retain_graph=True) for y in (a, b)]
        torch.testing.assert_close(*found)
    assert [n.numerics for n in fast.plans[0].neurons] == [snncc.Numerics.REASSOCIATED]


def test_modulus_of_a_complex_number_stays_in_torch() -> None:
    """It is rounded by a function of the maths library of its own."""

    def run(x: Tensor) -> Tensor:
        z = torch.zeros(x.shape[1:], dtype=torch.complex64)
        out = []
        for x_t in x:
            z = z * 0.5j + x_t / (1 + z.abs())
            out.append(z.real)
        return torch.stack(out)

    fast, x = snncc.compile(run), torch.randn(6, 2, 3)

    assert torch.equal(fast(x), run(x))
    assert {"serial", "recurrent"} & {layer.kind for layer in fast.plans[0].layers}
