"""In-place operators, views and aliases are recorded as pure functions."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from snncc.errors import CaptureError
from snncc.frontend.capture import capture
from snncc.ir.custom_gradient import run_graph
from tests.frontend.recordings import check, names, randn

# Reads that are forwarded to what was written change the order in which gradients are summed.
SUMS = 1e-6


def slices(x: Tensor) -> Tensor:
    buf = torch.zeros(3, 4)
    for t in range(3):
        buf[t] = x[t] if t == 0 else 0.5 * buf[t - 1] + x[t]
    return buf


def last_axis(x: Tensor) -> Tensor:
    u, out = torch.zeros(4), torch.zeros(4, 3)
    for t in range(3):
        u = 0.2 * u * (1 - out[..., max(t - 1, 0)]) + x[t]
        out[..., t] = u > 0.3
    return out


def middle_axis(x: Tensor) -> Tensor:
    out = torch.zeros(2, 3, 4)
    for t in range(3):
        out[:, t] = x[t]  # broadcast over the first dim
    return out


def numbers(x: Tensor) -> Tensor:
    y = x.clone()
    y[0] = 1.5
    y[:, 1:3] = 2
    y[2, 3] = -1
    y[...] = y * 2
    y[1, ::2] = x[0, :2]
    return y


def aliases(x: Tensor) -> tuple[Tensor, ...]:
    a = b = torch.zeros(3, 4)
    a += x
    c = a
    a = a * 2
    c -= 1
    return a, b, c


def views(x: Tensor) -> tuple[Tensor, ...]:
    b = torch.zeros(3, 6)
    left, right = b[:, :3], b[:, 3:]
    left += x[:, :3]
    right[0] = x[0, 1:]
    flat = b.view(-1)
    flat[0] = 1.0
    b.t()[1] *= 2
    b.unsqueeze(0).permute(2, 0, 1)[4] += 1
    top = b[0]
    b[0] = top * 3
    b.flatten().unflatten(0, (3, 6)).squeeze().transpose(0, 1)[2].add_(x[:, 0])
    b.narrow(1, 0, 2).neg_()
    b.diagonal().fill_(0.5)
    b[:, 3:].fill_diagonal_(0.25)
    for part in b.detach().chunk(3, dim=1):
        part.mul_(1.5)
    for part in b.detach().unbind():
        part[5] = 0.25
    return b, flat, left, right, top


def masks(x: Tensor) -> tuple[Tensor, ...]:
    y, ref = x.clone(), torch.full_like(x, 2)
    y[y > 0.5] = 0.0
    ref[x > 0] -= 1.0
    y[ref < 2] = y[ref < 2] * 0.5 + 1
    y[x < -1] = x[x < -1]
    y.masked_fill_(y > 1, 0.75)
    rows = x.clone()
    rows[torch.tensor([True, False, True])] = 3.0
    rows[:, [0, 2]] = x[:, [1, 3]]
    rows[torch.tensor([0]), 1] = 7.0
    return y, ref, rows


def types(x: Tensor) -> tuple[Tensor, ...]:
    y = x.clone()
    y += torch.ones(4, dtype=torch.float64)
    count = torch.zeros(3, 4, dtype=torch.int64)
    count += (x > 0).long()
    count += x > 0.5
    y.gt_(0.5)
    y[0] = x[0].double()
    return y, count


def copies(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.empty(3, 4)
    y.copy_(x)
    z = y.clone()
    z.zero_()
    z.copy_(x[0])
    z.fill_(x[0, 0])
    return y, z, y.contiguous().mul_(2)


def reshaped_in_place(x: Tensor) -> Tensor:
    y = x * 2
    y.unsqueeze_(0).transpose_(0, 1)
    y.squeeze_()
    y.t_()
    return y


def detached(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    d = y.detach()
    d[0] = 5.0
    s = torch.sigmoid(x).detach_()
    s.add_(x)
    return y, d, s


def without_grad(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 2
    with torch.no_grad():
        y.mul_(0.5)
        y[0] = 3.0
        part = y[1] + 0
        part = part * 2
    y[2] += x[0]
    return y, part * x[0]


@pytest.mark.parametrize(
    "function",
    [
        slices, last_axis, middle_axis, numbers, aliases, views, masks, types, copies,
        reshaped_in_place, detached, without_grad,
    ],
)  # fmt: skip
def test_means_the_same(function: Callable[[Tensor], object]) -> None:
    """What is read after a write is what eager code reads."""
    check(function, randn(3, 4), gradient_error=SUMS)


def test_read_of_written_slice_is_what_was_written() -> None:
    """A slice of a preallocated buffer is forwarded; nothing selects from the buffer."""
    tape = check(slices, randn(3, 4), gradient_error=SUMS)

    selected = [n.args[0].name for n in tape.graph.nodes if n.target is torch.select]
    assert selected == ["x"] * 3
    assert names(tape).count("select_scatter") == 3


def test_masked_write_of_a_number_selects() -> None:
    """``x[mask] = number`` is one where."""

    def function(x: Tensor) -> Tensor:
        y = x.clone()
        y[x > 1] = 0.0
        return y

    assert names(check(function, randn(3, 4))) == ["gt", "where"]


def test_masked_update_selects() -> None:
    """``ref[ref > 0] -= 1`` computes everywhere and selects afterwards."""

    def function(x: Tensor) -> Tensor:
        ref = x.clone()
        ref[ref > 0] -= 1.0
        return ref

    assert names(check(function, randn(3, 4))) == ["gt", "sub", "where"]


def test_masked_update_keeps_gradients_finite() -> None:
    """What is not selected is not read by operators without a finite derivative there."""

    def function(x: Tensor) -> Tensor:
        y = x.relu() + 0.0
        y[y > 0] = torch.log(y[y > 0]) + 1.0 / y[y > 0]
        z = y.clone()
        z[z.sum(1) > 0] = z[z.sum(1) > 0].square()
        return y + z

    tape = check(function, randn(3, 4))

    assert "getitem" not in names(tape)
    x = randn(3, 4).requires_grad_()
    (result,) = run_graph(tape.graph, (x,))
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_clone_is_a_value_of_its_own() -> None:
    """A clone has no node, and is not touched by writes to the original."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.clone()
        z = y.clone()
        y += 1
        return y, z

    assert names(check(function, randn(3))) == ["add"]


def test_write_to_an_argument_is_reported() -> None:
    """A change of the caller's tensor is undone by capture and part of the tape."""

    def function(x: Tensor, buf: Tensor) -> Tensor:
        buf.mul_(0.5).add_(x.detach())
        buf[0] = 7.0
        return buf * x

    buf = torch.ones(3)
    tape = check(function, randn(3), buf, again=(randn(3, seed=4), torch.full((3,), 2.0)))

    (write,) = tape.writes
    assert (write.source.name, write.in_place) == ("buf", True)
    assert torch.equal(buf, torch.ones(3))


def test_same_tensor_twice_may_be_two_next_time() -> None:
    """Arguments that happen to be one object are recorded as two."""
    x = randn(3)

    check(lambda a, b: a * b.sin(), x, x, again=(randn(3, seed=1), randn(3, seed=2)))


def test_refuses_a_write_through_an_unknown_view() -> None:
    """A write to windows that overlap is an error with the line."""
    with pytest.raises(CaptureError, match="memory that other") as caught:
        capture(lambda x: (x * 2).unfold(0, 2, 1)[0].zero_(), (randn(4).detach(),), {})

    assert caught.value.code == "capture.alias"
    assert caught.value.notes == ("It writes through the result of 'unfold'.",)


def test_refuses_a_write_behind_the_gradient() -> None:
    """``.data`` changes what the gradient was going to be computed from."""
    with pytest.raises(CaptureError) as caught:
        capture(lambda x: torch.sigmoid(x).data.mul_(2), (randn(4),), {})

    assert caught.value.code == "capture.alias"


def test_refuses_a_write_to_memory_of_two_arguments() -> None:
    """Two arguments in one memory may be two memories in the next call."""
    y = torch.ones(4)
    with pytest.raises(CaptureError) as caught:
        capture(lambda a, b: a.sum() + b.mul_(2), (y[:2], y), {})

    assert caught.value.code == "capture.alias"
    assert torch.equal(y, torch.ones(4))


Step = tuple[int, float, float, float]


def program(steps: list[Step]) -> Callable[..., list[Tensor]]:
    """Return a function that applies random views and in-place operators to a pool of tensors."""

    def run(x: Tensor, w: Tensor, c: Tensor) -> list[Tensor]:
        pool = [x * 1, w * 2, torch.zeros(4, 4), c.clone()]
        for operator, a, b, at in steps:
            p, q = pool[int(a * len(pool))], pool[int(b * len(pool))]
            result = OPERATORS[operator](p, q, at) if p.dim() else p * 1
            pool += [result] if isinstance(result, Tensor) else list(result or ())
        return pool

    return run


def fitted(q: Tensor, shape: torch.Size) -> Tensor:
    """Return the elements of ``q`` in another shape, repeated or cut, in memory of their own."""
    flat = q.reshape(-1)
    count = shape.numel()
    return flat.repeat(count // flat.numel() + 1)[:count].reshape(shape).clone()


def row(p: Tensor, at: float) -> int:
    return int(at * p.shape[0])


def write_row(p: Tensor, q: Tensor, at: float) -> None:
    p[row(p, at)] = fitted(q, p.shape[1:])


def write_number(p: Tensor, q: Tensor, at: float) -> None:
    p[row(p, at)] = 1.5


def write_mask(p: Tensor, q: Tensor, at: float) -> None:
    p[p > at] = 0.25


def write_column(p: Tensor, q: Tensor, at: float) -> None:
    p[..., 0:1] = fitted(q, torch.Size((*p.shape[:-1], 1)))


def subtract_masked(p: Tensor, q: Tensor, at: float) -> None:
    p[p > 0] -= at


def scale_without_grad(p: Tensor, q: Tensor, at: float) -> Tensor:
    with torch.no_grad():
        p.mul_(1.25)
        return p[..., None]


OPERATORS: list[Callable[[Tensor, Tensor, float], object]] = [
    lambda p, q, at: p[row(p, at)],
    lambda p, q, at: p[..., :2],
    lambda p, q, at: p.reshape(-1),
    lambda p, q, at: p.permute(*reversed(range(p.dim()))),
    lambda p, q, at: p.unsqueeze(0),
    lambda p, q, at: p.squeeze(),
    lambda p, q, at: p.detach(),
    lambda p, q, at: p.contiguous(),
    lambda p, q, at: p.view(p.shape),
    lambda p, q, at: p.chunk(2, 0),
    lambda p, q, at: p.unbind(0)[:2],
    lambda p, q, at: p.add_(fitted(q, p.shape)),
    lambda p, q, at: p.copy_(fitted(q, p.shape)),
    lambda p, q, at: p.mul_(at),
    lambda p, q, at: p.clamp_(-at, at),
    lambda p, q, at: p.masked_fill_(fitted(q, p.shape) > at, 0.75),
    lambda p, q, at: p.detach().mul_(1.1),
    lambda p, q, at: torch.sigmoid(p),
    lambda p, q, at: fitted(p, torch.Size((4, 4))) * fitted(q, torch.Size((4, 4))),
    lambda p, q, at: torch.where(fitted(q, p.shape) > 0, p, at),
    lambda p, q, at: p.clone(),
    write_row, write_number, write_mask, write_column, subtract_masked, scale_without_grad,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_mean_the_same(seed: int) -> None:
    """Programs of random views and in-place operators replay, unless eager refuses them too."""
    source = random.Random(seed)
    draw = source.random
    steps = [(source.randrange(len(OPERATORS)), draw(), draw(), draw()) for _ in range(10)]
    run, arguments = program(steps), (randn(4, 4), randn(4, 4, seed=1), randn(4, 4, seed=2))
    try:
        outputs = [x for x in run(*arguments) if x.requires_grad]
        torch.autograd.grad(outputs, arguments, outputs, allow_unused=True)
    except RuntimeError as error:
        pytest.skip(f"eager: {error}")

    check(run, *arguments, gradient_error=1e-4)
