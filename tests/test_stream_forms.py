"""Streams of models whose steps are not simply those of an axis of the input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import snncc
from snncc.errors import LaunchError, UnsupportedError
from snncc.nn import ATan

SPIKE = ATan()
STEPS = 7


def lif(v, x):
    h = 0.5 * v + x
    s = SPIKE(h - 1.0)
    return h - s, s


def run(x_seq, v):
    out = []
    for x in x_seq:
        v, s = lif(v, x)
        out.append(s)
    return torch.stack(out), v


def dyadic(*shape):
    """Return numbers of which all sums and halves are exact."""
    return torch.rand(shape).mul(8).round().div(4)


def begins_with_first(x):
    """The potential starts from the first step, which is seen again at each step."""
    s, v = run(x + x[0], x[0])
    return s, v, 2 * x[0]


def sized_by_first(x):
    return run(x, torch.full_like(x[0] + 1, 0.25))


def forgets_its_input(x):
    y, v, out = x[0], torch.zeros_like(x[0]), []
    for _ in x:
        v, y = lif(v, y.roll(1, -1) + 0.5)
        out.append(y)
    return torch.stack(out)


def detaches_at_times(x):
    v, out = torch.zeros_like(x[0]), []
    for t, x_t in enumerate(x):
        v, s = lif(v.detach() if t % 3 == 0 else v, x_t)
        out.append(s)
    return torch.stack(out), v


def warms_up(x):
    """The first steps have no gradient."""
    v, out = torch.zeros_like(x[0]), []
    for t, x_t in enumerate(x):
        with torch.set_grad_enabled(t > 3):
            v, s = lif(v, x_t)
        out.append(s)
    return torch.stack(out), v


def delayed_input(x):
    """Each neuron sees its input by as many steps late as its number."""
    padded = nn.functional.pad(x, (0, 0, 0, 0, 3, 0))
    v, out = torch.zeros_like(x[0]), []
    for t in range(len(x)):
        late = torch.stack([padded[t + 3 - n, :, n] for n in range(4)], -1)
        v, s = lif(v, late)
        out.append(s)
    return torch.stack(out)


def filtered(x):
    """A causal filter over time, in front of the neurons and behind them."""
    taps = torch.tensor([[[0.5, 0.25, 1.0]]]).expand(4, 1, 3)

    def convolve(x):
        rows = nn.functional.pad(x.permute(1, 2, 0), (2, 0))
        return nn.functional.conv1d(rows, taps, groups=4).permute(2, 0, 1)

    s, v = run(convolve(x), torch.zeros_like(x[0]))
    return convolve(s), v


def records_from_the_start(x):
    """Records begin with the state before the first step, and show it to the step after."""
    v = torch.full_like(x[0], 0.5)
    seen, spikes = [v], [torch.zeros_like(v)]
    for x_t in x:
        v, s = lif(v, x_t)
        seen.append(v)
        spikes.append(s)
    every, spikes = torch.stack(seen), torch.stack(spikes)
    return every, spikes[1:], every[1:] - every[:-1], spikes[:-1]


def potentials(x):
    """Return spikes and potentials of all steps."""
    v, seen = torch.zeros_like(x[0]), []
    for x_t in x:
        v, s = lif(v, x_t)
        seen.append(torch.stack([s, v]))
    return torch.stack(seen, 1).unbind()


def searched(x):
    """Extreme values of three types and where they are; half of them are ties, some are NaN."""
    s, v = potentials(x)
    odd, rows, whole = (0 / (v - 0.5)) * v, v.movedim(0, 1), (4 * v).long()
    extremes = v.min(0).values, v.max(), whole.amin(0), whole.int().min(0).values, (s > 0).amax(0)
    places = v.argmin(0), s.argmax(), v.argmax(0, keepdim=True), v.flatten(0, 1).argmax(0)
    flags = (s > 0).any(0), s.any(), (v < 1).all(0, keepdim=True), s.bool().all()
    return odd.max(0), odd.argmin(0), rows.max(1), *extremes, *places, *flags, v.argmax(-1)


def runs_on(x):
    """Running sums and products, in the types in which torch adds them up, and what reads them."""
    s, v = potentials(x + 0.1)
    sums = s.cumsum(0), v.cumsum(0), v.movedim(0, 1).cumsum(1), v.cumsum(-1), (s > 0).cumsum(0)
    halves = v.half().cumsum(0), v.bfloat16().cumsum(0), v.cumsum(0, dtype=torch.float64)
    return *sums, *halves, (v + 0.7).cumprod(0), v.cumsum(0).argmax(0), s.long().prod(0)


SEQUENCES = [
    *(begins_with_first, sized_by_first, forgets_its_input, detaches_at_times, warms_up),
    *(delayed_input, filtered, records_from_the_start, searched, runs_on),
]


def rows_of(stream, x, cuts):
    """Return what a stream gives for a sequence that is cut: one step alone, or a chunk."""
    axes, parts = stream._program.output_axes, []
    leads = any(stream._program.output_leads)
    for part in x.split(cuts):
        if len(part) > 1 or (leads and stream.steps == 0):
            parts.append(pytree.tree_leaves(stream.chunk(part)))
        else:
            rows = zip(pytree.tree_leaves(stream(part[0])), axes, strict=True)
            parts.append([y if axis is None else y.unsqueeze(axis) for y, axis in rows])
    return [
        seen[-1] if axis is None else torch.cat(seen, axis)
        for seen, axis in zip(zip(*parts, strict=True), axes, strict=True)
    ]


def assert_same(expected, actual):
    expected = pytree.tree_leaves(expected)
    for a, b in zip(expected, actual, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a.nan_to_num(0.375), b.nan_to_num(0.375))


@pytest.mark.parametrize("model", SEQUENCES)
@pytest.mark.parametrize("cuts", [[1] * 7, [7], [1, 6], [3, 1, 1, 2]])
def test_cut_anywhere_a_sequence_gives_the_same_bits(model, cuts):
    torch.manual_seed(0)
    x = dyadic(STEPS, 3, 4)
    stream = snncc.compile(model).stream(x)
    with torch.no_grad():
        expected = model(x)
    for _ in range(2):
        assert_same(expected, rows_of(stream, x, cuts))
        stream.reset()


@pytest.mark.parametrize("model", SEQUENCES)
@pytest.mark.parametrize("at", [1, 4])
def test_state_is_handed_from_stream_to_stream(model, at, tmp_path: Path):
    torch.manual_seed(1)
    x = dyadic(STEPS, 3, 4)
    fast = snncc.compile(model)
    one, other, third = (fast.stream(x) for _ in range(3))
    rows_of(one, x[:at], [1] * at)
    one.save(tmp_path / "state.npz")
    other.load(tmp_path / "state.npz")
    third.load_state(one.state, one.steps)
    expected = rows_of(one, x[at:], [1] * (STEPS - at))
    assert_same(expected, rows_of(other, x[at:], [STEPS - at]))
    assert_same(expected, rows_of(third, x[at:], [1, STEPS - at - 1]))


def test_one_sample_cannot_start_from_a_first_step_that_is_gone():
    stream = snncc.compile(begins_with_first).stream(dyadic(STEPS, 3, 4))
    stream(dyadic(3, 4))
    with pytest.raises(LaunchError) as refusal:
        stream.reset(torch.tensor([True, False, False]))
    assert refusal.value.code == "launch.stream-count"
    assert "x[0]" in refusal.value.notes[0]


def test_one_sample_starts_anew_where_the_first_step_gives_sizes_alone():
    x = dyadic(STEPS, 3, 4)
    stream = snncc.compile(sized_by_first).stream(x)
    rows_of(stream, x, [STEPS])
    mask = torch.tensor([True, False, True])
    stream.reset(mask)
    again, goes_on = sized_by_first(x), sized_by_first(torch.cat([x, x]))
    s, v = rows_of(stream, x, [1] * STEPS)
    assert torch.equal(s, torch.where(mask[:, None], again[0], goes_on[0][STEPS:]))
    assert torch.equal(v, torch.where(mask[:, None], again[1], goes_on[1]))


def test_one_sample_searches_and_sums_anew():
    def model(x):
        s, v = potentials(x)
        return v.max(0), s.argmax(0), v.argmin(0, keepdim=True), (s > 0).any(0), v.cumsum(0)

    x, mask = dyadic(STEPS, 3, 4), torch.tensor([True, False, True])
    stream = snncc.compile(model).stream(x)
    stream.chunk(x)
    stream.reset(mask)
    again, goes_on = (pytree.tree_leaves(model(y)) for y in (x, torch.cat([x, x])))
    expected = [
        torch.where(mask[:, None], a, b[-len(a) :]) for a, b in zip(again, goes_on, strict=True)
    ]
    assert_same(expected, rows_of(stream, x, [1] * STEPS))


def test_rows_before_the_first_step_are_given_with_a_chunk():
    x = dyadic(STEPS, 3, 4)
    stream = snncc.compile(records_from_the_start).stream(x)
    every = records_from_the_start(x)[0]
    assert torch.equal(every[1], stream(x[0])[0])
    stream.reset()
    assert torch.equal(every[:2], stream.chunk(x[:1])[0])
    assert torch.equal(every[2:], stream.chunk(x[1:])[0])


def test_export_has_one_row_a_step(tmp_path: Path):
    fast = snncc.compile(records_from_the_start)
    with pytest.raises(UnsupportedError) as refusal:
        snncc.export(fast, tmp_path / "out", format="c", example_inputs=(dyadic(STEPS, 3, 4),))
    assert "out[1:]" in refusal.value.hints[0]


@pytest.mark.parametrize("model", [delayed_input, filtered])
@pytest.mark.parametrize("batch", [2, 3])
def test_one_sample_forgets_the_rows_before(model, batch):
    """A delay of three steps with a batch of three is no reason to mix them up."""
    x, mask = dyadic(STEPS, batch, 4), torch.arange(batch) == 1
    stream = snncc.compile(model).stream(x)
    stream.chunk(x)
    stream.reset(mask)
    again, goes_on = model(x), model(torch.cat([x, x]))
    expected, longer = (y[0] if isinstance(y, tuple) else y for y in (again, goes_on))
    actual = rows_of(stream, x, [1] * STEPS)[0]
    assert torch.equal(actual, torch.where(mask[:, None], expected, longer[STEPS:]))


@pytest.mark.parametrize("is_peeled", [False, True])
def test_numbers_of_steps_are_those_so_far(is_peeled):
    """Python's ``len(x)`` and counters are plain numbers in a record; in a stream they count."""

    def model(x):
        v, out = None if is_peeled else torch.zeros_like(x[0]), []
        for t in range(len(x)):
            v = 0.5 * x[t] if v is None else 0.5 * v + x[t]
            out.append(SPIKE(v - 1.0))
        s = torch.stack(out)
        never = torch.full_like(v, len(x)).long()
        first = torch.where(s.any(0), s.argmax(0), never)
        rates = s.sum(0) / len(x), s.sum(0) * (1 / len(x)), v / float(2 * len(x) - 1)
        return first, *rates, t, len(out), 2 * t + 3, 7, out

    x = dyadic(STEPS, 3, 4)
    stream = snncc.compile(model).stream(x)
    for t in range(STEPS):
        *expected, spikes = model(x[: t + 1])
        *actual, row = stream(x[t])
        assert_same([*expected[:4], spikes[-1]], [*actual[:4], row])
        assert actual[4:] == expected[4:]


def test_numbers_of_steps_are_those_so_far_beside_dynamic_decays():
    """Substituted neurons are part of the longer programs too that numbers are found by."""

    layer = nn.Linear(4, 4)

    def model(x):
        v, out = torch.zeros(3, 4), []
        for x_t in x:
            h = 0.5 * v + layer(x_t)
            out.append(SPIKE(h - 1.0))
            v = h * (1.0 - out[-1])
        return sum(out) / len(out)

    fast, x = snncc.compile(model, mode="dynamic_decay"), 4 * torch.rand(STEPS, 3, 4)
    stream = fast.stream(x)
    rates = torch.stack([stream(x_t) for x_t in x])
    assert torch.allclose(rates[2:], torch.stack([fast(x[:t]) for t in range(3, STEPS + 1)]))
    assert rates[2].any()


class Shown(nn.Module):
    """An image that is shown at every step; how its sequence is made differs."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x):
        s, v = run(self.make(x), torch.zeros_like(x))
        return s, v, s.mean(0)


IMAGES = {
    "repeat": lambda x: x.repeat(8, 1, 1),
    "expand": lambda x: x.unsqueeze(0).expand(8, -1, -1),
    "tile": lambda x: x[None].tile(8, 1, 1),
    "stack": lambda x: torch.stack([x] * 8),
    "cat": lambda x: torch.cat([x[None]] * 8),
    "interleaved": lambda x: x[None].repeat_interleave(8, 0),
    "added": lambda x: torch.zeros(8, *x.shape) + x,
    "second axis": lambda x: x.unsqueeze(1).repeat(1, 8, 1).unbind(1),
    "drawn": lambda x: torch.bernoulli((x / 4).repeat(8, 1, 1)),
    "compared": lambda x: (torch.rand(8, 3, 4) < x / 4).float(),
}


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES.keys())
def test_image_is_given_at_each_step(make):
    """The stream of a model that repeats its input takes it at each step, and any other then."""
    torch.manual_seed(2)
    x = dyadic(3, 4) / 2
    model = Shown(make)
    stream = snncc.compile(model).stream(x)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    steps = [stream(x) for _ in range(8)]
    assert torch.equal(expected[0], torch.stack([step[0] for step in steps]))
    assert torch.equal(expected[1], steps[-1][1])
    torch.testing.assert_close(expected[2], steps[-1][2])
    assert stream(2 * x)[0].shape == x.shape


def learns(weight):
    """A weight changes in place at each step, by a rule of its own."""

    class Learns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight.clone())

        @torch.no_grad()
        def forward(self, x):
            v, out = torch.zeros_like(x[0]), []
            for x_t in x:
                v, s = lif(v, x_t @ self.weight)
                self.weight += 0.125 * s.mT @ x_t
                out.append(s)
            return torch.stack(out)

    return Learns()


def test_what_learns_in_its_steps_is_left_alone():
    torch.manual_seed(4)
    weight, x = dyadic(4, 4) - 1, dyadic(STEPS, 3, 4)
    model = learns(weight)
    stream = snncc.compile(model).stream(x)
    steps = [stream(x_t) for x_t in x]

    assert torch.equal(model.weight, weight)
    assert torch.equal(learns(weight)(x), torch.stack(steps))
