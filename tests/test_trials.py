"""Sizes are taken to be free after trials, and calls of many sizes are not recorded each time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.compilation import specializations
from tests.compatibility.neurons import lif
from tests.models import Stateful

Model = Callable[[Tensor], Tensor]


def half(x: Tensor) -> Tensor:
    """Reads the first half of the steps."""
    v = torch.zeros_like(x[0])
    for t in range(x.shape[0] // 2):
        v, _ = lif(v, x[t])
    return v


def half_of_length(x: Tensor) -> Tensor:
    """Does so by a number that nothing ties to the input."""
    v = torch.zeros_like(x[0])
    for t in range(len(x) // 2):
        v, _ = lif(v, x[t])
    return v


def every_second(x: Tensor) -> Tensor:
    """Drops what an odd last step computes."""
    v, w = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        v, s = lif(v, x[t])
        if t % 2 == 1:
            w = 0.5 * w + s
    return w


def half_of_batch(x: Tensor) -> Tensor:
    """Adds up the rows of half of the batch."""
    v, rows = torch.zeros_like(x[0]), len(x[0]) // 2
    for t in range(x.shape[0]):
        v, _ = lif(v, x[t])
    return sum((v[row] for row in range(rows)), torch.zeros(x.shape[2]))


def steps(x: Tensor) -> Tensor:
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        v, s = lif(v, x[t])
        out.append(s)
    return torch.stack(out)


def batch_first(x: Tensor) -> Tensor:
    return steps(x.transpose(0, 1)).transpose(0, 1)


def delayed(x: Tensor) -> Tensor:
    """Looks back further than a small trial is long."""
    v = [torch.zeros_like(x[0])] * 30
    for t in range(x.shape[0]):
        v.append(0.5 * v[-1] + 0.25 * v[-30] + x[t])
    return v[-1]


def long_only(x: Tensor) -> Tensor:
    """Refuses what a small trial gives it."""
    if len(x) < 30:
        raise ValueError("too short")
    return steps(x)


def mean_by_length(x: Tensor) -> Tensor:
    return steps(x).sum(0) / len(x)


@contextmanager
def counted() -> Iterator[list[tuple[int, ...]]]:
    """Collect the shapes of the inputs that are recorded."""
    shapes: list[tuple[int, ...]] = []
    record = specializations.record

    def counting(model, args, kwargs):
        shapes.append(tuple(args[0].shape))
        return record(model, args, kwargs)

    with mock.patch("snncc.compilation.specializations.record", counting):
        yield shapes


@pytest.mark.parametrize(
    "model", [half, half_of_length, every_second, half_of_batch], ids=lambda m: m.__name__
)
def test_sizes_are_not_free_that_look_so_in_two_recordings(model: Model) -> None:
    """Ten and eleven steps, or rows, give one program; twenty do not."""
    fast = snncc.compile(model)
    for T, B in ((10, 10), (11, 11), (20, 10), (31, 20), (10, 31), (5, 4), (11, 10)):
        x = torch.randn(T, B, 4)

        assert torch.equal(model(x), fast(x))


@pytest.mark.parametrize("model", [steps, batch_first, Stateful()], ids=["steps", "batch", "state"])
@pytest.mark.parametrize("seed", [0, 1])
def test_calls_of_many_sizes_are_recorded_few_times(model: Model, seed: int) -> None:
    """Ten lengths and ten batch sizes take two recordings, and two small trials."""
    order = random.Random(seed)
    calls = [(T, B) for T in range(11, 31, 2) for B in range(5, 25, 2)]
    order.shuffle(calls)
    fast = snncc.compile(model)
    with counted() as recorded:
        for T, B in calls[:30]:
            x = torch.randn(T, B, 3)
            if isinstance(model, nn.Module):
                model.reset()
            with torch.no_grad():
                result = fast(x)
            if isinstance(model, nn.Module):
                model.reset()

            assert torch.equal(model(x), result)

    # A third one where the first two happen to share a size.
    assert len(recorded) <= 3 + 4


def test_calls_of_many_batches_are_recorded_few_times() -> None:
    """A trial of the batch does not take the whole length."""
    fast = snncc.compile(steps)
    with counted() as recorded:
        for B in range(5, 25):
            fast(torch.randn(60, B, 3))

    assert recorded == [(60, 5, 3), (60, 6, 3), (13, 3, 3), (22, 8, 3)]


def test_lengths_that_are_numbers_take_few_recordings_each() -> None:
    """A program that holds its length as a number serves that length, for all batches.

    It takes two recordings, and a trial of the batch that cannot be shorter than they are.
    """
    fast = snncc.compile(mean_by_length)
    with counted() as recorded:
        for T in (30, 31, 32, 30, 31, 32):
            for B in range(7, 17):
                x = torch.randn(T, B, 3)

                assert torch.equal(mean_by_length(x), fast(x))

    for T in (30, 31, 32):
        assert sum(shape[0] == T for shape in recorded) == 3


@pytest.mark.parametrize("model", [delayed, long_only], ids=lambda m: m.__name__)
def test_models_that_need_many_steps_are_tried_with_more(model: Model) -> None:
    """Where a small trial shows nothing, one with more steps than were seen does."""
    fast = snncc.compile(model)
    with counted() as recorded:
        for T in (40, 44, 47, 53, 41):
            x = torch.randn(T, 3, 4)

            assert torch.equal(model(x), fast(x))

    assert sum(shape[0] in (47, 53, 41) for shape in recorded) == 0
    assert max(shape[0] for shape in recorded) == 2 * 44 + 1


def test_trial_leaves_no_trace() -> None:
    """Arguments, buffers and random numbers are as after the recording alone."""

    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x.mul_(0.5)
            return steps(x) * torch.rand(x.shape[1:]) * self.calls

    model, twin = Counter(), Counter()
    fast = snncc.compile(model)
    for T, B in ((20, 4), (24, 6), (22, 9)):
        x = torch.randn(T, B, 4)
        y = x.clone()
        torch.manual_seed(T)
        expected = twin(x), torch.rand(())
        torch.manual_seed(T)
        actual = fast(y), torch.rand(())

        assert torch.equal(expected[0], actual[0])
        assert torch.equal(expected[1], actual[1])
        assert torch.equal(x, y)
        assert torch.equal(twin.calls, model.calls)
