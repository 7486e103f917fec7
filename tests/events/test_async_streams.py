"""Streams of ``mode="async"``: a time step at a time, its queue inside."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import snncc
from snncc.errors import LaunchError
from tests.events.models import Chain, Convolutional, Wired, dyadic, spikes
from tests.events.test_async_mode import delayed, folded, scaled, shown, started, widened
from tests.events.test_feedback import FEEDBACK

ORDERS: dict[str, dict[str, Any]] = {
    "momentum": {"group_size": 2},
    "one": {"group_size": 1, "target": "torch"},
    "random": {"group_size": 1, "order": "random"},
    "noise": {"group_size": 2, "order_noise": 0.7, "target": "torch"},
    "queued input": {"group_size": 2, "prioritize_input": False},
    "early stop": {"group_size": 1, "stop": 0},
    "dropout": {"group_size": 1000, "refractory_dropout": 0.5},
}


def opened(model: Any, x: Tensor, **options: Any) -> tuple[Any, Any]:
    """Return a model that runs as a queue of spikes, and its stream."""
    fast = snncc.compile(model, mode="async", **options)
    return fast, fast.stream(x)


def results(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else out


def require_step(step: Any, whole: Any, *, length: int, size: int) -> None:
    """Compare what some steps give with the model's results for the sequence so far."""
    for found, expected in zip(results(step), results(whole), strict=True):
        if found.dim() < expected.dim():
            expected = expected[-1]
        elif len(expected) == length and found.shape != expected.shape:
            expected = expected[length - size :]
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)


def require_stream(fast: Any, step: Any, x: Tensor, path: Path) -> None:
    """Steps, chunks, and steps after a state was saved and loaded give what the model gives."""
    whole = []
    for n in range(1, len(x) + 1):
        torch.manual_seed(0)
        whole.append(fast(x[:n]))
    counted = {name: n.clone() for name, n in fast.last_events.items()}
    for _ in range(2):
        torch.manual_seed(0)
        step.reset()
        total = {name: torch.zeros_like(n) for name, n in counted.items()}
        for t, x_t in enumerate(x):
            require_step(step(x_t), whole[t], length=t + 1, size=1)
            total = {name: n + step.last_events[name] for name, n in total.items()}
        assert all(torch.equal(total[name], counted[name]) for name in counted)
    torch.manual_seed(0)
    step.reset()
    require_step(step.chunk(x[:2]), whole[1], length=2, size=2)
    step.save(path)
    step.reset()
    step.load(path)
    require_step(step.chunk(x[2:]), whole[-1], length=len(x), size=len(x) - 2)


@pytest.mark.parametrize("order", ORDERS)
def test_steps_are_those_of_the_sequence(order: str, tmp_path: Path) -> None:
    """Draws included, bit by bit, whatever the order; counts add up to those of the call."""
    rng = random.Random(order)
    model, x = dyadic(Chain([4, 6, 5, 3]), rng), spikes(rng, 6, 3, 4)
    fast, step = opened(model, x, **ORDERS[order])

    require_stream(fast, step, x, tmp_path / "state.npz")


@pytest.mark.parametrize("prioritize_input", [True, False], ids=["frame", "queued"])
def test_convolutions_stream(prioritize_input: bool, tmp_path: Path) -> None:
    """Norms, pooling, a readout whose last membrane is the result; membranes have their axes."""
    rng = random.Random(0)
    model, x = dyadic(Convolutional(), rng).eval(), spikes(rng, 4, 2, 1, 6, 6)
    fast, step = opened(model, x, prioritize_input=prioritize_input)

    require_stream(fast, step, x, tmp_path / "state.npz")

    assert [tuple(state.shape) for state in step.state.values()] == [
        (2, 3, 6, 6), (2, 4, 3, 3), (2, 3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "model", [delayed, shown, started, widened, scaled, folded], ids=lambda f: f.__name__
)
def test_functions_stream(model: Any, tmp_path: Path) -> None:
    """Sums, traces, last states, states from outside, layers over all steps at once."""
    x = spikes(random.Random(3), 5, 3, 4)
    fast, step = opened(model, x, group_size=2, order="random")

    require_stream(fast, step, x, tmp_path / "state.npz")


@pytest.mark.parametrize("seed", range(6))
def test_feedback_streams(seed: int) -> None:
    """Spikes of the step before, and what the first step has in their place, are states."""
    rng = random.Random(seed)
    model = Wired([rng.choice(FEEDBACK) for _ in range(2)], rng)
    model, x = dyadic(model, rng), spikes(rng, 6, 2, 4)
    fast, step = opened(model, x, group_size=2, target="torch")

    whole, steps = fast(x), torch.stack([step(x_t) for x_t in x])
    step.reset()
    chunks = torch.cat([step.chunk(x[:2]), step.chunk(x[2:])])

    assert torch.equal(steps, whole)
    assert torch.equal(chunks, whole)


def test_what_is_no_number_stays_in_its_sample() -> None:
    """A stream goes on after it, and silence, as the whole call does."""
    rng = random.Random(1)
    model, x = dyadic(Chain([4, 6, 5, 3], strict=True), rng), spikes(rng, 30, 3, 4)
    x[2, 1, 0], x[3, 2, 1], x[5:25] = float("nan"), float("inf"), 0.0
    fast, step = opened(model, x, group_size=1)

    found = torch.stack([step(x_t) for x_t in x])

    torch.testing.assert_close(found, fast(x), rtol=0.0, atol=0.0, equal_nan=True)


def test_weights_are_read_at_a_reset() -> None:
    """Matrices are made once and not in each step; a mask starts single samples anew."""
    rng = random.Random(2)
    model, x = dyadic(Chain([4, 6, 5, 3]), rng), spikes(rng, 6, 3, 4)
    fast, step = opened(model, x, group_size=1)
    for x_t in x:
        step(x_t)
    dyadic(model, random.Random(5))
    step.reset()
    found = [step(x_t) for x_t in x]

    assert torch.equal(torch.stack(found), fast(x))
    step.reset(torch.tensor([False, True, False]))
    assert torch.equal(step(x[0])[1], found[0][1])
    drawing = snncc.compile(model, mode="async", order="random").stream(x)
    drawing(x[0])
    with pytest.raises(LaunchError, match="one sample alone cannot start anew"):
        drawing.reset(torch.tensor([False, True, False]))


def test_streams_in_threads_do_not_meet() -> None:
    """Two streams of one model run at once; each has its state and its counts."""
    rng = random.Random(4)
    model, x = dyadic(Chain([4, 6, 5, 3]), rng), spikes(rng, 40, 2, 3, 4)
    fast = snncc.compile(model, mode="async", group_size=1)
    whole = [fast(x[:, i]) for i in range(2)]
    streams = [fast.stream(x[:, 0]) for _ in range(2)]
    found: list[list[Tensor]] = [[], []]

    def run(i: int) -> None:
        found[i] = [streams[i](x_t) for x_t in x[:, i]]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(torch.equal(torch.stack(found[i]), whole[i]) for i in range(2))
    assert len(streams[0].last_events["events"]) == 3
