"""Streams of models whose first step is another program than the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import snncc
from snncc.errors import LaunchError, UnsupportedError
from snncc.nn import ATan

SPIKE = ATan()


class Peeled(nn.Module):
    """A state that is None at first; outputs, a mean, a sum, an extreme and the last potential."""

    def __init__(self, axis: int = 0) -> None:
        super().__init__()
        self.axis = axis
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        current = self.layer(x)
        v, spikes = None, []
        for t in range(x.shape[self.axis]):
            now = current.select(self.axis, t)
            v = now * 0.5 if v is None else 0.75 * v + now
            s = SPIKE(v - 0.25)
            v = v - s
            spikes.append(s)
        out = torch.stack(spikes, self.axis)
        total = out.cumsum(self.axis)
        best = out.amax(self.axis), out.argmax(self.axis), total.argmax(self.axis)
        return out, out.mean(self.axis), out.sum(self.axis), *best, total.select(self.axis, -1), v


class Recurrent(nn.Module):
    """A recurrent loop; each step reads the first one's current as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.back = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        first, s, v, out = None, None, None, []
        for t in range(x.shape[0]):
            if first is None:
                v = first = self.layer(x[t])
                s = SPIKE(v - 0.5)
            else:
                v = 0.75 * v + self.layer(x[t]) + 0.125 * first + self.back(s)
                s = SPIKE(v - 0.25)
            v = v * (1 - s)
            out.append(s)
        return torch.stack(out), v


class Learned(nn.Module):
    """A learnt first potential, and another threshold in the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.rand(1, 6))

    def forward(self, x):
        v, out = None, []
        for t in range(x.shape[0]):
            if v is None:
                v = self.start * 0.5 + x[t]
                out.append(SPIKE(x[t] - v))
            else:
                v = 0.75 * v + x[t]
                out.append(SPIKE(v - 2.0))
        return torch.stack(out)


class Feedback(nn.Module):
    """Spike and reset behind a branch that feeds back; a threshold that is zero in the first step.

    What both branches share is reached before the second branch is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.back = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        v = s = total = None
        out = []
        for x_t in x:
            if v is None:
                v, level = self.layer(x_t), torch.zeros_like(x_t)
            else:
                level = 0.5 * level + s
                v = 0.75 * v + self.layer(x_t) + self.back(s)
            s = SPIKE(v - 0.5 - 0.25 * level)
            v = torch.where(s > 0, torch.zeros_like(v), v)
            out.append(s)
            y = self.layer(s)
            total = y if total is None else total + y
        return torch.stack(out), total, v


class ResetFirst(Feedback):
    """The reset by the spike before stands in the branch; nothing is behind the spike."""

    def forward(self, x):
        v = s = None
        out = []
        t = 0
        while t < x.shape[0]:
            now = self.layer(x[t])
            v = 0.5 * v * (1 - s) + now + self.back(s) if t > 0 else now
            t += 1
            s = SPIKE(v - 0.5)
            out.append(s)
        return torch.stack(out), v


def second_layer(x):
    """A layer whose state is None at first, and one whose state is not."""
    v, out = None, []
    for t in range(len(x)):
        v = x[t] if v is None else 0.5 * v + x[t]
        out.append(SPIKE(v - 1))
    u, y = torch.zeros_like(x[0]), []
    for t in range(len(x)):
        u = 0.5 * u + out[t]
        y.append(SPIKE(u - 1))
    return torch.stack(y)


def peeled_layers(x):
    """Layers that treat their first step apart, each with its own loop; steps are merged between.

    The potential of the first step is twice that of the others, which a layer behind sees.
    """

    def layer(x):
        v, out = None, []
        for t in range(len(x)):
            v = 2 * x[t] if v is None else 0.5 * v + x[t]
            s = SPIKE(v - 1)
            v = v * (1 - s)
            out.append(s)
        return torch.stack(out)

    s = layer(x)
    r = layer(1.5 * s.flatten(0, 1).view(s.shape) - 0.25)
    return torch.cat([s, r], -1), layer(s + r).mean(0)


def exact(model: nn.Module) -> nn.Module:
    """Round the weights so that products are exact, whatever the order of their sums."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p * 16).round() / 16)
    return model


def data(*shape: int) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 16).round() / 4


MODELS = [
    (Peeled, 0),
    (lambda: Peeled(1), 1),
    (Recurrent, 0),
    (Learned, 0),
    (Feedback, 0),
    (ResetFirst, 0),
    (lambda: second_layer, 0),
    (lambda: peeled_layers, 0),
]


@pytest.mark.parametrize(("make", "axis"), MODELS)
@pytest.mark.parametrize("cuts", [(1,) * 9, (9,), (1, 8), (4, 1, 3, 1)])
def test_chunks_of_any_length_are_what_the_model_returns(make, axis, cuts):
    torch.manual_seed(0)
    model = make()
    model = exact(model) if isinstance(model, nn.Module) else model
    x = data(9, 3, 6).movedim(0, axis)
    stream = snncc.compile(model).stream(x)
    for _ in range(2):  # from the start, and after a reset
        start, parts = 0, []
        for cut in cuts:
            chunk = x.narrow(axis, start, cut)
            is_step = cut == 1 and start % 2 == 1
            y = stream(chunk.squeeze(axis)) if is_step else stream.chunk(chunk)
            results = list(y) if isinstance(y, tuple) else [y]
            parts.append(results[0].unsqueeze(axis) if is_step else results[0])
            start += cut
            with torch.no_grad():
                expected = model(x.narrow(axis, 0, start))
            expected = list(expected) if isinstance(expected, tuple) else [expected]
            assert torch.equal(torch.cat(parts, axis), expected[0])
            for a, b in zip(results[1:], expected[1:], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
        stream.reset()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("make", [Peeled, Recurrent, Learned, Feedback])
def test_saved_state_goes_on_after_any_step(tmp_path: Path, make, steps):
    model = make()
    x = data(7, 3, 6)
    fast = snncc.compile(model)
    one, other = fast.stream(x), fast.stream(x)
    for t in range(steps):
        one(x[t])
    one.save(tmp_path / "state.npz")
    other.load(tmp_path / "state.npz")
    for t in range(steps, 7):
        torch.testing.assert_close(other(x[t]), one(x[t]), rtol=0, atol=0)
    assert other.steps == 7


def test_results_of_the_first_step_are_the_users_own():
    model = Peeled()
    x = data(5, 3, 6)
    fast = snncc.compile(model)
    stream, touched = fast.stream(x), fast.stream(x)
    stream(x[0])
    for result in touched(x[0]):
        result.fill_(7.0)
    torch.testing.assert_close(touched(x[1]), stream(x[1]), rtol=0, atol=0)


def test_one_sample_cannot_start_anew():
    x = data(5, 3, 6)
    stream = snncc.compile(Recurrent()).stream(x)
    stream(x[0])
    with pytest.raises(LaunchError) as refusal:
        stream.reset(torch.tensor([True, False, False]))
    assert refusal.value.code == "launch.stream-count"
    assert "first step" in refusal.value.notes[0]


def test_nir_says_that_it_has_one_graph():
    with pytest.raises(UnsupportedError, match="first step"):
        snncc.to_nir(snncc.compile(Peeled().eval()), data(5, 1, 6))


def _of_all(x):
    v, out = None, []
    for t in range(len(x)):
        v = x.mean(0) if v is None else 0.5 * v + x[t]
        out.append(SPIKE(v - 1))
    return torch.stack(out)


def _without_first(x):
    v, out = x[0], []
    for t in range(1, len(x)):
        v = 0.5 * v + x[t]
        out.append(SPIKE(v - 1))
    return torch.stack(out)


def _third(x):
    v, out = x[0] + 2 * x[1], [x[0], x[1]]
    for t in range(2, len(x)):
        v = 0.5 * v + x[t]
        out.append(SPIKE(v - 1))
    return torch.stack(out)


def _previous(x):
    v, out = x[0], [x[0]]
    for t in range(1, len(x)):
        v = 0.5 * v + x[t] * x[t - 1]
        out.append(SPIKE(v - 1))
    return torch.stack(out)


def _counted(x):
    v = x[0]
    out = [v]
    for t in range(1, len(x)):
        v = 0.9**t * v + x[t]
        out.append(SPIKE(v - 1))
    return torch.stack(out)


def _feature(x):
    """Joined along the batch."""
    v, out = x[0], []
    for t in range(1, len(x)):
        v = 0.5 * v + x[t]
        out.append(SPIKE(v - 1))
    return torch.cat([x[0].unsqueeze(0).expand(x.shape[0] - 1, -1, -1), torch.stack(out)], 1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_of_all, "more of the sequence than a step"),
        (_without_first, "no value after one step"),
        (_third, "after the second step"),
        (_previous, "another step of its input"),
        (_counted, "every step in order"),
        (_feature, "another axis"),
    ],
)
def test_what_cannot_be_split_is_refused_with_its_reason(model, reason):
    with pytest.raises(UnsupportedError) as refusal:
        snncc.compile(model).stream(data(6, 6, 4))
    assert refusal.value.code == "unsupported.stream"
    assert reason in refusal.value.notes[0]


def _one_step_is_special(x):
    v, out = x[0], [x[0]]
    for t in range(1, len(x)):
        v = 0.5 * v + x[t]
        out.append(SPIKE(v - 1))
    return torch.stack(out) * (2 if len(x) == 1 else 1)


def _one_step_fails(x):
    v, out = x[0], [x[0]]
    for t in range(1, len(x)):
        v = 0.5 * v + x[t]
        out.append(SPIKE(v - 1))
    if len(out) < 2:
        raise ValueError("too short")
    return torch.stack(out)


@pytest.mark.parametrize("model", [_one_step_is_special, _one_step_fails])
def test_first_step_is_compared_with_the_model(model):
    x = data(6, 3, 4)
    with pytest.raises(UnsupportedError) as refusal:
        snncc.compile(model).stream(x)
    assert "one step" in refusal.value.notes[0]


class Normed(nn.Module):
    """A norm with statistics of each step, and a second input with or without steps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x, more):
        v, out = None, []
        for t in range(x.shape[0]):
            h = self.norm(x[t]) + (more[t] if more.dim() == 3 else more)
            v = h * 0.5 if v is None else 0.75 * v + h
            s = SPIKE(v - 0.25)
            v = v - s
            out.append(s)
        return torch.stack(out), v


@pytest.mark.parametrize("shape", [(7, 3, 6), (3, 6)])
def test_training_mode_and_a_second_input(shape):
    model = Normed()
    x, more = data(7, 3, 6), torch.rand(shape)
    stream = snncc.compile(model).stream(x, more)
    actual = stream.whole_sequence((x, more), {})
    assert torch.equal(model.norm.running_mean, torch.zeros(6))  # the model is left alone
    with torch.no_grad():
        expected = model(x, more)
    for a, e in zip(actual, expected, strict=False):
        assert torch.equal(a, e)


def test_an_input_that_looks_like_a_sequence_is_refused():
    """As many rows as steps: whether the first step reads one or all cannot be told."""
    with pytest.raises(UnsupportedError) as refusal:
        snncc.compile(Normed()).stream(data(7, 7, 6), torch.rand(7, 6))
    assert "may have steps as well" in refusal.value.notes[0]
