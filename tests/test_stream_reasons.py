"""What a stream says of a model that has none, and parameters of their own for each step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import snncc
from snncc.errors import UnsupportedError
from snncc.nn import ATan

SPIKE = ATan()
STEPS = 6


def lif(x):
    v, out = torch.zeros_like(x[0]), []
    for t in range(len(x)):
        v = 0.5 * v + x[t]
        s = SPIKE(v - 1)
        v = v - s
        out.append(s)
    return torch.stack(out)


def repeated(x):
    return lif(x[0].repeat(8, 1).view(8, 3, 4))


def reversed_time(x):
    v = torch.zeros_like(x[0])
    for t in reversed(range(len(x))):
        v = 0.5 * v + x[t]
    return v


def every_third(x):
    return lif(x)[::3]


def third_alone(x):
    return lif(x)[3]


def half_the_steps(x):
    return lif(x).sum(0), len(x) // 2


def peeled_rates(x):
    v, out = None, []
    for t in range(len(x)):
        v = x[t] if v is None else 0.5 * v + x[t]
        out.append(v)
    return (torch.stack(out) / len(x)).sum(0)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return lif(self.norm(x.flatten(0, 1)).view_as(x))


def attending(x):
    rows = lif(x).transpose(0, 1)
    return torch.softmax(rows @ rows.transpose(1, 2), -1)


def decoding(x):
    return lif(x + lif(x).sum(0))


class OverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(STEPS, STEPS)

    def forward(self, x):
        weights = self.mix(x.mean(2).T).T
        v = torch.zeros_like(x[0])
        for t in range(len(x)):
            v = 0.5 * v + x[t] * weights[t].unsqueeze(1)
        return v


@pytest.mark.parametrize(
    ("model", "reason", "hint"),
    [
        (repeated, "by 'repeat'", "before the model"),
        (reversed_time, "backwards in time", "run forwards"),
        (every_third, "treat the time steps apart", "what the stream returns"),
        (third_alone, "single steps are picked out", "pick from"),
        (half_the_steps, "it returns 3, which changes with the number of steps", "stream.steps"),
        (peeled_rates, "its steps compute with the number of all steps", "begin with tensors"),
        (OverTime(), "'linear' does not take another number of steps", "each step alone"),
        (Normed(), "updates statistics, for the whole sequence", "model.eval()"),
        (attending, "'matmul' relates every step to every other", "what one step has"),
        (decoding, "reads what another loop ends with", "stream the two loops apart"),
    ],
)
def test_reason_says_what_needs_the_whole_sequence(model, reason, hint):
    with pytest.raises(UnsupportedError) as refusal:
        snncc.compile(model).stream(torch.rand(STEPS, 3, 4))
    assert refusal.value.code == "unsupported.stream"
    assert reason in refusal.value.notes[0]
    assert hint in refusal.value.hints[0]


def counted(x, late):
    v, total, n = torch.zeros_like(x[0]), torch.zeros_like(x[0]), torch.zeros(())
    for t in range(len(x)):
        v = 0.5 * v + x[t]
        s = SPIKE(v - 1)
        v = v - s
        if late == "branch" and t > 2:
            total = total + s
        if late == "number":
            total = total + s * (n > 2)
            n = n + 1
    return total


def held(x):
    v, out = torch.zeros_like(x[0]), []
    for t in range(2 * len(x)):
        v = 0.5 * v + x[t // 2]
        s = SPIKE(v - 1)
        v = v - s
        out.append(s)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("model", "advice", "advised", "repeats"),
    [
        (lambda x: counted(x, "branch"), "s * (n > 2)", lambda x: counted(x, "number"), 1),
        (held, "x.repeat_interleave(2, 0)", lif, 2),
    ],
    ids=["late", "held"],
)
def test_advice_has_a_stream_of_the_same_values(model, advice, advised, repeats):
    x = (torch.rand(STEPS, 3, 4) * 8).round() / 4
    with pytest.raises(UnsupportedError) as refusal:
        snncc.compile(model).stream(x)
    repeated = x.repeat_interleave(repeats, 0)
    stream = snncc.compile(advised).stream(repeated)
    rows = [stream(row) for row in repeated]

    assert advice in refusal.value.hints[0]
    assert torch.equal(rows[-1] if repeats == 1 else torch.stack(rows), model(x))


def test_two_lengths_are_named():
    def model(x, y):
        v = torch.zeros_like(x[0])
        for t in range(len(x)):
            v = 0.5 * v + x[t]
        for t in range(len(y)):
            v = 0.25 * v + y[t]
        return v

    with pytest.raises(UnsupportedError) as refusal:
        snncc.compile(model).stream(torch.rand(6, 3, 4), torch.rand(9, 3, 4))
    assert "do not follow one axis" in refusal.value.notes[0]


class OfEachStep(nn.Module):
    """A weight and a decay for each step; the state is None at first, or zeros."""

    def __init__(self, is_peeled: bool) -> None:
        super().__init__()
        self.is_peeled = is_peeled
        self.decays = nn.Parameter((torch.rand(STEPS, 1, 4) * 8).round() / 8)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(STEPS))
        for p in self.layers.parameters():
            p.data = (p.data * 8).round() / 8

    def forward(self, x):
        v, out = None if self.is_peeled else torch.zeros_like(x[0]), []
        for t in range(len(x)):
            now = self.decays[t] * x[t] if self.is_peeled else self.layers[t](x[t])
            v = 2 * now if v is None else self.decays[t] * v + now
            s = SPIKE(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out), v


@pytest.mark.parametrize("is_peeled", [False, True])
def test_parameters_of_each_step_are_those_of_the_step(is_peeled):
    torch.manual_seed(0)
    model = OfEachStep(is_peeled)
    x = (torch.rand(STEPS, 3, 4) * 8).round() / 8
    stream = snncc.compile(model).stream(x)
    with torch.no_grad():
        spikes, potential = model(x)
    for cuts in ([1] * STEPS, [2, 4], [1, 5]):
        parts = [stream.chunk(part) for part in x.split(cuts)]
        assert torch.equal(torch.cat([part[0] for part in parts]), spikes)
        assert torch.equal(parts[-1][1], potential)
        with pytest.raises(UnsupportedError) as refusal:
            stream.chunk(x[:1])
        assert refusal.value.code == "unsupported.stream-length"
        stream.reset()
