"""Recurrent layers of torch over whole sequences: compiled, verified, and run step after step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import snncc
from snncc.errors import UnsupportedError
from snncc.nn import ATan


class Layers(nn.Module):
    """A recurrent layer alone: its outputs, its last states, and the last step of the outputs."""

    def __init__(self, kind: type[nn.RNNBase], **options) -> None:
        super().__init__()
        self.rnn = kind(6, 5, **options)
        self.time = 1 if self.rnn.batch_first else 0

    def forward(self, x, start=None):
        y, end = self.rnn(x, start)
        return y, end, y.select(self.time, -1)


class Between(nn.Module):
    """A recurrent layer between spiking neurons and a readout."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.layer, self.rnn, self.out = nn.Linear(6, 6), nn.LSTM(6, 5, **options), nn.Linear(5, 3)
        self.spike = ATan()

    def forward(self, x):
        v, spikes = torch.zeros(x.shape[1], 6), []
        for x_t in x:
            v = 0.75 * v + self.layer(x_t)
            spikes.append(self.spike(v - 0.5))
            v = v - spikes[-1]
        y, (h, _) = self.rnn(torch.stack(spikes))
        u, total = torch.zeros(x.shape[1], 3), torch.zeros(x.shape[1], 3)
        for y_t in y:
            u = 0.5 * u + self.out(y_t)
            total = total + u
        return total, h


def data(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 4 - 1


CASES = {
    "lstm": (nn.LSTM, {}),
    "lstm-layers": (nn.LSTM, {"num_layers": 3, "bias": False}),
    "lstm-batch-first": (nn.LSTM, {"num_layers": 2, "batch_first": True}),
    "lstm-projected": (nn.LSTM, {"num_layers": 2, "proj_size": 4}),
    "lstm-evaluated": (nn.LSTM, {"num_layers": 2, "dropout": 0.5}),
    "gru": (nn.GRU, {"num_layers": 2, "batch_first": True}),
    "gru-no-bias": (nn.GRU, {"bias": False}),
    "rnn": (nn.RNN, {"num_layers": 2}),
    "rnn-relu": (nn.RNN, {"nonlinearity": "relu", "batch_first": True}),
}


@pytest.mark.parametrize("is_given", [False, True], ids=["zeros", "given"])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_layer_on_every_prefix(name, is_given):
    """In float64 the order of sums is all that may differ."""
    torch.manual_seed(0)
    kind, options = CASES[name]
    model = Layers(kind, **options).double().eval()
    x = data(3, 6, 6).double().transpose(0, 1 - model.time)
    args = (x,)
    if is_given:
        h = data(model.rnn.num_layers, 3, options.get("proj_size", 5)).double()
        c = data(model.rnn.num_layers, 3, 5).double()
        args = (x, (h, c) if kind is nn.LSTM else h)
    stream = snncc.compile(model).stream(*args)
    for t in range(6):
        actual = stream(x.select(model.time, t), *args[1:])
        with torch.no_grad():
            expected = model(x.narrow(model.time, 0, t + 1), *args[1:])
        expected = (expected[-1], *expected[1:])
        pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_chunks_go_on_from_saved_states(tmp_path):
    """The states of all layers are in the file."""
    model, x = Between(num_layers=2), data(7, 3, 6)
    fast = snncc.compile(model)
    one, other = fast.stream(x), fast.stream(x)
    one.chunk(x[:3])
    one.save(tmp_path / "state.npz")
    other.load(tmp_path / "state.npz")
    actual = other.chunk(x[3:])
    with torch.no_grad():
        expected = model(x)

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "numerics"),
    [("fused", "bitwise"), ("serial", "reassociated"), ("online", "reassociated")],
)
def test_a_layer_alone_is_a_model(mode, numerics):
    """The layer is called as it stands where nobody asks for its steps."""
    model, x = Layers(nn.LSTM, num_layers=2), data(7, 2, 6)
    fast = snncc.compile(model, mode=mode)
    report = snncc.verify(model, fast, x)

    assert report.ok, str(report)
    plan = fast.specialize(x).plan
    assert plan.numerics.value == numerics
    assert plan.layers[0].name == "rnn"
    assert plan.layers[0].operator == ("lstm" if mode == "fused" else "linear")


@pytest.mark.parametrize("mode", ["fused", "online"])
def test_a_layer_between_neurons_is_verified(mode):
    """Torch rounds a layer in another way where it has a gradient; verify takes the same way."""
    for seed in range(3):
        torch.manual_seed(seed)
        model = Between(num_layers=2)
        report = snncc.verify(model, snncc.compile(model, mode=mode), data(7, 3, 6))

        assert all(part.within for part in report.comparisons), str(report)


class Rows(nn.Module):
    """A layer over the rows of the image of each step; the steps are those of a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.spike = nn.GRU(6, 5, batch_first=True), ATan()

    def forward(self, x):
        y = self.rnn(x.flatten(0, 1))[1][0].reshape(x.shape[0], x.shape[1], 5)
        v, out = torch.zeros_like(y[0]), []
        for y_t in y:
            v = 0.5 * v + y_t
            out.append(self.spike(v - 0.25))
            v = v - out[-1]
        return torch.stack(out)


@pytest.mark.parametrize("rows", [4, 7])
@pytest.mark.parametrize("mode", ["serial", "online"])
def test_a_layer_over_another_axis_stays_a_call(mode, rows):
    """It leaves the steps of time apart, and no gradient of it is cut."""
    model, x = Rows(), data(7, 2, rows, 6)
    fast = snncc.compile(model, mode=mode)
    stream = fast.stream(x)

    assert "gru" in {layer.operator for layer in fast.specialize(x).plan.layers}
    assert snncc.verify(model, fast, x).ok
    with torch.no_grad():
        assert torch.equal(torch.stack([stream(x_t) for x_t in x]), model(x))


class Packed(nn.Module):
    """A layer that takes a packed sequence, whose steps have numbers of samples of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 5)

    def forward(self, x):
        sizes, start = torch.full((x.shape[0],), x.shape[1]), torch.zeros(1, x.shape[1], 5)
        weights = [*self.rnn.parameters()]
        return torch.gru(x.flatten(0, 1), sizes, start, weights, True, 1, 0.0, False, False)[1]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Layers(nn.GRU, bidirectional=True), "'gru' is bidirectional"),
        (Layers(nn.LSTM, num_layers=2, dropout=0.5), "'lstm' drops values between its layers"),
        (Packed(), "'gru' takes a packed sequence"),
    ],
    ids=["bidirectional", "dropout", "packed"],
)
@pytest.mark.parametrize("mode", ["fused", "serial"])
def test_what_has_no_steps_is_refused(model, reason, mode):
    """The reason names the layer, and the error its line."""
    with pytest.raises(UnsupportedError) as refusal:
        snncc.compile(model, mode=mode).stream(data(7, 2, 6))

    assert refusal.value.code == "unsupported.stream"
    assert refusal.value.location is not None
    assert reason in refusal.value.notes[0]
