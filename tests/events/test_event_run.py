"""The reference of event networks against the layered network and a loop written by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from snncc.ir.events.draws import Purpose, uniform
from snncc.ir.events.layered import is_layered, run_layered
from snncc.ir.events.network import (
    EventEdge,
    EventGroup,
    EventNetwork,
    EventOrder,
    EventTensors,
)
from snncc.ir.events.run import COUNTS, run_events
from snncc.ir.nodes import Op
from tests.events.by_hand import ByHand, drawn
from tests.events.networks import (
    all_results,
    chain,
    fire,
    integrate,
    tensors_of,
)

D = torch.float64


def _random_layers(rng: random.Random, group_size: int) -> tuple[EventNetwork, list[int]]:
    """Return layers, some side by side, each of which hears one or two of those below."""
    levels = [rng.choice([1, 1, 2]) for _ in range(rng.randint(1, 3))]
    groups, sizes, edges, below = list[EventGroup](), list[int](), list[EventEdge](), range(0)
    for level, width in enumerate(levels):
        level_groups = range(len(groups), len(groups) + width)
        for index in level_groups:
            reset, compare = rng.choice(["hard", "soft"]), rng.choice([Op.GT, Op.GE])
            step = fire(reset, compare, detach=rng.random() < 0.5)
            step = integrate() if level and rng.random() < 0.2 else step
            groups.append(EventGroup(f"layer{index}", step, starts=not level))
            sizes.append(rng.randint(1, 4))
            firing = [source for source in below if groups[source].fires]
            heard = rng.sample(firing, min(len(firing), rng.randint(1, 2)))
            edges += [EventEdge(source, index) for source in heard]
            if level and not heard:
                groups[-1] = replace(groups[-1], starts=True)
        below = level_groups
    order = rng.sample(range(len(groups)), rng.randint(0, 2) if len(groups) > 1 else 0)
    late = [EventEdge(i, j, is_delayed=True) for i in order for j in order if groups[i].fires]
    return EventNetwork(
        tuple(groups), (*edges, *late), all_results(groups), EventOrder(group_size)
    ), sizes


def _require_equal_gradients(
    found: Sequence[Tensor], expected: Sequence[Tensor], inputs: Sequence[Tensor]
) -> None:
    """Compare gradients for some cotangents; contributions are summed in another order."""
    pairs = [(x, y) for x, y in zip(found, expected, strict=True) if y.requires_grad]
    cotangents = [torch.randn_like(x) for x, _ in pairs]
    ours, theirs = (
        torch.autograd.grad([pair[i] for pair in pairs], inputs, cotangents, materialize_grads=True)
        for i in (0, 1)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_draws_are_those_of_the_formula() -> None:
    """Torch's signed integers give what whole numbers modulo 2^64 give."""
    places = [(0, 0, 0, 0), (3, 17, 5, 1234), (2**31, 9, 2**20, 7)]
    seeds = [0, 1, 2**63 - 1, 123456789]

    expected = [drawn(seed, p.value, *at) for seed in seeds for p in Purpose for at in places]

    found = [uniform(seed, p, *at).item() for seed in seeds for p in Purpose for at in places]
    assert found == expected
    together = uniform(5, Purpose.ORDER, torch.arange(200)[:, None], 0, 0, torch.arange(200))
    assert together.min() >= 0.0
    assert together.max() < 1.0
    assert abs(together.mean() - 0.5) < 0.01
    assert len(together.unique()) == together.numel()


def test_wide_groups_are_the_layered_network() -> None:
    """Where all that is queued is delivered at once, a network of levels is the layered one.

    Branches side by side, biases, thresholds below zero, soft resets that leave more than a
    threshold, weights of zero and feedback of the step before included; gradients too.
    """
    rng = random.Random(1)
    drawn_networks = (_random_layers(rng, group_size=8) for _ in range(1000))
    layered = (each for each in drawn_networks if is_layered(each[0]))
    for network, sizes in itertools.islice(layered, 150):
        tensors = tensors_of(network, sizes, rng, rng.randint(1, 4), rng.randint(1, 3))
        flat = [x.requires_grad_() for x in network.flatten(tensors)]

        expected = run_layered(network, tensors)
        found = run_events(network, network.unflatten(flat)).results

        assert all(map(torch.equal, found, expected))
        _require_equal_gradients(found, expected, flat)


@pytest.mark.parametrize(
    "order",
    [
        EventOrder(1),
        EventOrder(2, noise=0.5),
        EventOrder(2, policy="random"),
        EventOrder(1, refractory_dropout=0.6),
        EventOrder(2, stop=0),
        EventOrder(1, stop=2),
    ],
    ids=str,
)
def test_any_order_is_the_loop_written_by_hand(order: EventOrder) -> None:
    """Spikes, membranes, counts and gradients are those of a loop over single neurons."""
    rng = random.Random(2)
    for number in range(5):
        groups = (
            EventGroup("in", None),
            EventGroup("a", fire("soft"), starts=number % 2 == 0),
            EventGroup("b", fire("hard", Op.GT, kind="rectangle")),
            EventGroup("c", fire("hard", detach=True), is_output=True),
            EventGroup("read", integrate()),
        )
        pairs = [(0, 1, False), (1, 2, False), (1, 3, False), (2, 3, False), (3, 4, False)]
        if number > 2:  # side by side
            pairs = [(0, 1, False), (0, 2, False), (1, 3, False), (2, 4, False), (3, 4, False)]
        pairs += [(2, 1, True), (3, 3, True)]
        edges = tuple(EventEdge(*pair) for pair in pairs)
        network = EventNetwork(groups, edges, all_results(groups), order)
        tensors = tensors_of(network, [2, 3, 2, 3, 2], rng, 3, 2)
        flat = [x.requires_grad_() for x in network.flatten(tensors)]

        found = run_events(network, network.unflatten(flat), seed=7)

        hands = [ByHand(network, tensors, sample, seed=7).run() for sample in range(2)]
        spikes = torch.stack([hand.spikes for hand in hands], 1)
        membranes = torch.stack([hand.membranes for hand in hands], 1)
        parts = torch.arange(12).split([2, 3, 2, 3, 2])[1:]
        expected = [
            x for p in parts for x in (spikes[..., p], membranes[..., p], membranes[-1][..., p])
        ]
        assert found.counts.tolist() == [hand.counts for hand in hands]
        assert all(map(torch.equal, found.results, expected))
        _require_equal_gradients(found.results, expected, flat)


def test_samples_do_not_see_each_other() -> None:
    """A sample in a batch gives what it gives alone; all its counts too."""
    rng = random.Random(3)
    network = chain([4, 4, 3], EventOrder(1))
    tensors = tensors_of(network, [4, 4, 3], rng, 5, 6)
    whole = run_events(network, tensors)

    for i in range(6):
        alone = replace(
            tensors,
            standing=tuple(x[:, i : i + 1] for x in tensors.standing),
            membrane=tuple(x[i : i + 1] for x in tensors.membrane if x is not None),
        )
        found = run_events(network, alone)

        assert torch.equal(found.counts, whole.counts[i : i + 1])
        for mine, all_of_them in zip(found.results, whole.results, strict=True):
            assert torch.equal(mine, all_of_them.narrow(-2, i, 1))


def _two_layers(
    frames: list[list[float]], group_size: int, decay: float = 1.0
) -> tuple[EventNetwork, EventTensors]:
    """Return h0 and h1, which get a frame and drive one neuron with 0.625 and -0.5."""
    network = chain([2, 1], EventOrder(group_size), [fire(comparison=Op.GT)] * 2)
    half = (torch.tensor([0.5], dtype=D),)
    frame = torch.tensor(frames, dtype=D)[:, None]
    keeps = torch.tensor(decay, dtype=D)
    zeros = torch.zeros(1, 2, dtype=D)
    tensors = EventTensors(
        standing=(frame, torch.zeros(len(frames), 1, 1, dtype=D)),
        decay=(keeps, keeps),
        membrane=(zeros, zeros[:, :1]),
        emitted=(None, None),
        lanes=(half, half),
        weights=(torch.tensor([[0.625], [-0.5]], dtype=D),),
    )
    return network, tensors


@pytest.mark.parametrize(
    ("frame", "group_size", "spikes", "membrane"),
    [
        ([1.0, 0.625], 1, [1, 1, 1], 0.0),
        ([0.625, 1.0], 1, [1, 1, 0], 0.125),
        ([1.0, 0.625], 2, [1, 1, 0], 0.125),
    ],
    ids=["excitation first", "inhibition first", "layered"],
)
def test_order_decides_a_spike(
    frame: list[float], group_size: int, spikes: list[int], membrane: float
) -> None:
    """An output fires if what excites it comes before what inhibits it."""
    hidden, _, _, output, potential, _ = run_events(*_two_layers([frame], group_size)).results

    assert [*hidden.flatten(), *output.flatten()] == spikes
    assert potential.item() == membrane


def test_last_events_that_inhibit_are_integrated() -> None:
    """An inhibitory spike at the end of a step counts in the next."""
    results = run_events(*_two_layers([[0.0, 1.0], [1.0, 0.0]], 1, decay=0.9)).results

    assert results[3].flatten().tolist() == [0.0, 0.0]
    torch.testing.assert_close(results[4].flatten(), torch.tensor([-0.5, 0.175], dtype=D))


def test_counts_say_what_happened() -> None:
    """One frame, two events one after another; the second meets a neuron that has fired."""
    counts = run_events(*_two_layers([[1.0, 0.625]], 1)).counts

    expected = {"forward_steps": 3, "events": 3, "spikes": 3, "operations": 2, "evaluations": 3}
    expected["forward_steps"] = 4  # the spike of the output is delivered as well, to nobody
    assert dict(zip(COUNTS, counts[0].tolist(), strict=True)) == expected


@pytest.mark.parametrize(("steps", "samples"), [(0, 2), (2, 0)], ids=["no step", "no sample"])
def test_nothing_to_do(steps: int, samples: int) -> None:
    """Without steps or samples, results are empty."""
    network = chain([2, 1], EventOrder(1))
    tensors = tensors_of(network, [2, 1], random.Random(0), steps, samples)

    found = run_events(network, tensors)

    assert found.results[0].shape == (steps, samples, 2)
    assert torch.equal(found.results[2], tensors.membrane[0])
    assert found.counts.sum() == 0
