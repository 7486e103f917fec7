"""Compiled models become NIR graphs that mean the same, or are refused with the line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.errors import BundleError, OptionError, UnsupportedError
from snncc.nn import IF, LI, LIF, ATan, CubaLIF


class Convolutional(nn.Module):
    """A loop around all layers, with a convolution and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(4 * 3 * 3, 5)
        self.fc2 = nn.Linear(5, 5)
        self.decay = nn.Parameter(torch.randn(4, 1, 1))
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], 4, 3, 3)
        u = torch.zeros(x.shape[1], 5)
        w = torch.zeros(x.shape[1], 5)
        out = []
        for x_t in x:
            h = torch.sigmoid(self.decay) * v + self.pool(self.conv(x_t))
            s = self.spike(h - 0.3)
            v = torch.where(s > 0, -0.125, h)
            first = self.fc1(s.flatten(1))
            u = u + (first - u) / 4.0
            z = self.spike(u - 0.05)
            u = u * (1.0 - z)
            w = 0.5 * w + (self.fc2(z) + 0.5 * first)
            out.append(w)
        return torch.stack(out)


class Above(nn.Module):
    """Fires above the threshold, which is a value of its own for each neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v = 0.75 * v + 0.5 * x_t + 0.125
            s = (v > self.threshold).to(v.dtype)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


MODELS = {
    "layers": lambda: nn.Sequential(
        nn.Linear(6, 9), LIF(0.9), nn.Linear(9, 4, bias=False), CubaLIF(0.5, 0.75), LI(0.9)
    ),
    "learnable": lambda: nn.Sequential(LIF(0.9, learnable=True, shape=(6,)), nn.Linear(6, 9), IF()),
    "above": Above,
    "at a value": lambda: LIF(0.875, v_threshold=0.75, v_reset=-0.5),
}


def _bundle(folder: Path, model: nn.Module) -> snncc.Bundle:
    fast = snncc.compile(model.eval())
    example = (torch.randint(0, 3, (20, 2, 6)) / 4.0,)
    return snncc.export(fast, folder, format="nir", example_inputs=example, name="net", dt=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_bundle_proves_itself(name, tmp_path):
    """An exported graph comes with what the model makes of an example, and makes the same."""
    torch.manual_seed(3)
    bundle = _bundle(tmp_path, MODELS[name]())

    assert sorted(bundle.manifest["files"]) == ["net.nir", "test_vector.npz"]
    assert bundle.manifest["dt"] == 1e-3
    assert snncc.verify_bundle(tmp_path).ok


def test_changed_bundle_is_found(tmp_path):
    """A graph of another step is not the network; a damaged one, or no step at all, is refused."""
    torch.manual_seed(3)
    bundle = _bundle(tmp_path, MODELS["layers"]())
    manifest = tmp_path / "manifest.json"

    manifest.write_text(json.dumps({**bundle.manifest, "dt": 2e-3}))
    assert not snncc.verify_bundle(tmp_path).ok
    for facts in ({"dt": None}, {"dt": -1.0}, {"name": "other"}):
        manifest.write_text(json.dumps({**bundle.manifest, **facts}))
        with pytest.raises(BundleError, match="not an intact bundle"):
            snncc.verify_bundle(tmp_path)
    manifest.write_text(json.dumps(dict(bundle.manifest)))
    (tmp_path / "net.nir").write_bytes(b"no HDF5")
    with pytest.raises(BundleError, match="not an intact bundle"):
        snncc.verify_bundle(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name, tmp_path):
    """What is read back computes what was written: same spikes, through a file."""
    torch.manual_seed(3)
    model = MODELS[name]()
    x = torch.rand(30, 5, 6) * 3
    graph = snncc.to_nir(snncc.compile(model), x, dt=1e-3)
    nir.write(tmp_path / "net.nir", graph)
    again = snncc.from_nir(tmp_path / "net.nir", dt=1e-3)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-6)

    assert expected.mean() > 0.01


def test_convolutions_and_skips():
    """Images keep their shapes; arrows into a node add up, one of them scaled."""
    torch.manual_seed(0)
    model = Convolutional()
    x = torch.rand(12, 2, 1, 8, 8)
    graph = snncc.to_nir(snncc.compile(model), x)
    kinds = sorted(type(node).__name__ for node in graph.nodes.values())
    with torch.no_grad():
        torch.testing.assert_close(snncc.from_nir(graph)(x), model(x), rtol=1e-5, atol=1e-6)

    assert kinds == [
        *("Affine", "Affine", "AvgPool2d", "Conv2d", "Flatten"),
        *("Input", "LI", "LIF", "LIF", "Output", "Scale"),
    ]
    graph.check_types()


def test_numbers_of_a_neuron():
    """decay 3/4, gain 1/2, rest 1/8 and steps of 1: tau 4, r 2, v_leak 1/2."""
    model = Above()
    node = snncc.to_nir(snncc.compile(model), torch.rand(9, 2, 6), dt=1.0).nodes["neuron1"]

    assert isinstance(node, nir.LIF)
    assert (node.tau == 4).all()
    assert (node.r == 2).all()
    assert (node.v_leak == 0.5).all()
    assert np.array_equal(node.v_threshold, model.threshold.detach().double().numpy())


def test_firing_at_the_threshold_is_firing_above_a_smaller_one():
    """A potential that meets the threshold exactly fires after the way there and back."""
    neuron = LIF(0.5, v_threshold=1.0)
    x = torch.tensor([1.0, 0.5, 0.75]).reshape(3, 1, 1)
    graph = snncc.to_nir(snncc.compile(neuron), x)

    assert neuron(x).flatten().tolist() == [1.0, 0.0, 1.0]
    assert snncc.from_nir(graph)(x).flatten().tolist() == [1.0, 0.0, 1.0]


def test_the_importer_of_snntorch_reads_it():
    """snnTorch makes a network with the same spikes of what was written."""
    importer = pytest.importorskip("snntorch.import_nir")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), LIF(0.875), nn.Linear(9, 4), LIF(0.75))
    x = torch.rand(30, 5, 6) * 6
    peer = importer.import_from_nir(snncc.to_nir(snncc.compile(model), x, dt=1e-4))
    state, spikes = None, []
    for x_t in x:
        s, state = peer(x_t, state)
        spikes.append(s)

    assert torch.equal(torch.stack(spikes), model(x))
    assert model(x).any()


class TimeLast(nn.Module):
    """Takes and returns time behind, and leaves its potential in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros(x.shape[0], 5), []
        for t in range(x.shape[2]):
            v = 0.75 * v + self.fc(x[:, :, t])
            s = (v > 0.25).to(v.dtype)
            v = v * (1.0 - s)
            out.append(s)
        self.last = v
        return torch.stack(out, 2)


def test_time_elsewhere_than_in_front(tmp_path):
    """The graph has it in front, and is the network."""
    torch.manual_seed(3)
    model, x = TimeLast().eval(), torch.rand(4, 6, 20)
    bundle = snncc.export(snncc.compile(model), tmp_path, format="nir", example_inputs=(x,))

    assert snncc.verify_bundle(bundle.folder).ok
    again = snncc.from_nir(tmp_path / "network.nir")
    with torch.no_grad():
        assert torch.equal(again(x.movedim(2, 0)).movedim(0, 2), model(x))
        assert model(x).any()


class Final(nn.Module):
    """Returns what is left after the last step as well."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v, out = torch.zeros_like(x[0]), []
        for x_t in x:
            v = 0.5 * v + x_t
            s = ATan()(v - 1.0)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out), v


class CurrentReset(nn.Module):
    """A spike resets the synaptic current as well."""

    def forward(self, x: Tensor) -> Tensor:
        i, v, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        for x_t in x:
            i = 0.5 * i + x_t
            v = 0.75 * v + i
            s = ATan()(v - 1.0)
            i, v = i * (1.0 - s), v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


class Gated(nn.Module):
    """The decay follows the input."""

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for x_t in x:
            v = v - 0.5 * (1.0 - x_t) * v + x_t
            out.append(v)
        return torch.stack(out)


class Soft(nn.Module):
    """Subtracts the threshold."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v = 0.5 * v + x_t
            s = ATan()(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out)


class Adaptive(nn.Module):
    """Has a second state that raises the threshold."""

    def forward(self, x: Tensor) -> Tensor:
        v, a = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v = 0.5 * v + x_t
            s = ATan()(v - 1.0 - a)
            a = 0.9 * a + 0.1 * s
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


class Rest(nn.Module):
    """Starts elsewhere than at 0."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.full_like(x[0], 0.25)
        out = []
        for x_t in x:
            v = 0.5 * v + x_t
            out.append(v)
        return torch.stack(out)


class Counted(nn.Module):
    """Sums over time."""

    def forward(self, x: Tensor) -> Tensor:
        return LIF()(x).sum(0)


class Squared(nn.Module):
    """Has an operator of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(LIF()(x), 2)


class Counting(nn.Module):
    """Weighs two inputs with weights of their own, in the neuron."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unbind(1)
        v = torch.zeros_like(first[0])
        out = []
        for t in range(x.shape[0]):
            v = 0.5 * v + (0.25 * first[t] + 2.0 * second[t])
            out.append(v)
        return torch.stack(out)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Soft, "resets to a value"),
        (Adaptive, "more than NIR has|potential alone|it is a"),
        (Rest, "does not start at 0"),
        (Counted, "summed over time"),
        (Squared, "no node for 'softmax'"),
        (Final, "a result is no sequence"),
        (CurrentReset, "a spike resets its current"),
        (Gated, "depends on its input"),
        (Counting, "no node for 'select'|no node for 'unbind'|sees the time axis"),
    ],
)
def test_what_nir_does_not_express_is_refused(model, reason):
    """The reason is said, with the user's line."""
    with pytest.raises(UnsupportedError, match=reason) as caught:
        snncc.to_nir(snncc.compile(model()), torch.rand(7, 2, 6))

    assert caught.value.code == "unsupported.nir"
    assert "test_to_nir.py" in str(caught.value)


def test_only_compiled_models_are_written():
    """A serial model is refused."""
    with pytest.raises(OptionError, match="not a compiled model"):
        snncc.to_nir(LIF(), torch.rand(7, 2, 6))


class Recurrent(nn.Module):
    """One layer that feeds back to itself, with an input gain of its own."""

    def __init__(self, gain: float = 1.0, *, bias: bool = False) -> None:
        super().__init__()
        self.up, self.back, self.gain = nn.Linear(6, 7), nn.Linear(7, 7, bias=bias), gain
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v = s = torch.zeros(x.shape[1], 7)
        out = []
        for x_t in x:
            v = 0.875 * v + self.gain * (self.up(x_t) + self.back(s))
            s = self.spike(v - 0.25)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


class Loop(nn.Module):
    """Two layers, the second of which feeds back to the first, and a readout behind the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 7), nn.Linear(7, 5)
        self.back, self.last, self.read = nn.Linear(5, 7), nn.Linear(5, 3), LI(0.75)
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v, u, z = (torch.zeros(x.shape[1], n) for n in (7, 5, 5))
        out = []
        for x_t in x:
            v = 0.875 * v + self.up(x_t) + self.back(z)
            s = self.spike(v - 0.5)
            v = torch.where(s > 0, -0.25, v)
            u = 0.75 * u + self.down(s)
            z = self.spike(u - 0.25)
            u = u * (1.0 - z)
            out.append(z)
        return self.read(self.last(torch.stack(out)))


class Pair(nn.Module):
    """Two layers, the second of which feeds back to the first; a gain of 1 / 8."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.back = nn.Linear(6, 7), nn.Linear(7, 5), nn.Linear(5, 7)
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v, u, z = (torch.zeros(x.shape[1], n) for n in (7, 5, 5))
        out = []
        for x_t in x:
            v = 0.875 * v + 0.125 * (self.up(x_t) + self.back(z))
            s = self.spike(v - 0.0625)
            v = v * (1.0 - s)
            u = 0.875 * u + 0.125 * self.down(s)
            z = self.spike(u - 0.0625)
            u = u * (1.0 - z)
            out.append(z)
        return torch.stack(out)


class Convolved(nn.Module):
    """A recurrent convolution with a norm, which is folded; a gain of 1 / 8."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.back, self.spike = nn.Conv2d(3, 3, 3, padding=1), ATan()

    def forward(self, x: Tensor) -> Tensor:
        v = s = torch.zeros(x.shape[1], 3, 2, 3)
        out = []
        for x_t in x:
            v = 0.875 * v + 0.125 * (self.norm(self.up(x_t)) + self.back(s))
            s = self.spike(v - 0.0625)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


def recurrent_model(make):
    torch.manual_seed(2)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model, torch.rand(30, 5, 6) * 2


@pytest.mark.parametrize("make", [Recurrent, Loop, Convolved])
def test_recurrent_weights_there_and_back(make, tmp_path):
    """What feeds back is a cycle whose delay is where it was; nothing else is delayed."""
    model, x = recurrent_model(make)
    x = x.unflatten(2, (1, 2, 3)) if make is Convolved else x
    graph = snncc.to_nir(snncc.compile(model), x, dt=1e-3)
    nir.write(tmp_path / "net.nir", graph)
    again = snncc.from_nir(tmp_path / "net.nir", dt=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-6)
    ((source, target),) = again.delayed

    assert (source, target) == (("step2", "back") if make is Loop else ("step1.lif", "step1.back"))
    assert model(x).any()
    twice = snncc.to_nir(snncc.compile(again), x, dt=1e-3)
    assert sorted(type(n).__name__ for n in twice.nodes.values()) == sorted(
        type(n).__name__ for n in graph.nodes.values()
    )


PEERS = {
    "snntorch": lambda graph: pytest.importorskip("snntorch.import_nir").import_from_nir(graph),
    "norse": lambda graph: pytest.importorskip("norse.torch").from_nir(graph, dt=1e-4),
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    "make", [lambda: Recurrent(0.125, bias=True), Pair, Convolved], ids=["linear", "pair", "conv"]
)
def test_other_importers_read_recurrent_weights(make, peer):
    """They make a network with the same spikes; for Norse the gain has to be dt / tau."""
    model, x = recurrent_model(make)
    x = (x.unflatten(2, (1, 2, 3)) if make is Convolved else x) * 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = PEERS[peer](snncc.to_nir(snncc.compile(model), x, dt=1e-4))
    state, spikes = None, []
    for x_t in x:
        s, state = made(x_t, state)
        spikes.append(s)

    assert torch.equal(torch.stack(spikes), model(x))
    assert 0.02 < model(x).mean() < 0.98


class Biased(nn.Module):
    """Recurrent weights with a bias, and no weights beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.output, self.spike = nn.Linear(6, 6), ATan()

    def forward(self, x: Tensor) -> Tensor:
        v = s = torch.zeros(x.shape[1], 6)
        out = []
        for x_t in x:
            v = 0.5 * v + (x_t + self.output(s))
            s = self.spike(v - 1.0)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


def test_a_bias_moves_to_the_weights_beside_it():
    """Recurrent weights are linear where others can take their bias, and keep it elsewhere."""
    model, x = recurrent_model(lambda: Recurrent(bias=True))
    graph = snncc.to_nir(snncc.compile(model), x)
    alone, _ = recurrent_model(Biased)
    kept = snncc.to_nir(snncc.compile(alone), x)
    with torch.no_grad():
        torch.testing.assert_close(snncc.from_nir(kept)(x), alone(x), rtol=1e-5, atol=1e-6)

    total = (model.up.bias.double() + model.back.bias.double()).detach().float()
    assert np.array_equal(graph.nodes["up"].bias, total.numpy())
    assert isinstance(graph.nodes["step1"].nodes["back"], nir.Linear)
    assert [*kept.nodes["step1"].nodes] == ["input", "lif", "output_", "output"]
    assert isinstance(kept.nodes["step1"].nodes["output_"], nir.Affine)


class Twice(Recurrent):
    """What is fed back joins the input before the weights."""

    def forward(self, x: Tensor) -> Tensor:
        v = s = torch.zeros(x.shape[1], 7)
        out = []
        for x_t in x:
            v = 0.5 * v + self.back(s + self.up(x_t))
            s = self.spike(v - 0.25)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


class Started(Recurrent):
    """Spikes before the first step."""

    def forward(self, x: Tensor) -> Tensor:
        v, s = torch.zeros(x.shape[1], 7), torch.ones(x.shape[1], 7)
        out = []
        for x_t in x:
            v = 0.5 * v + self.up(x_t) + self.back(s)
            s = self.spike(v - 0.25)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


@pytest.mark.parametrize("make", [Twice, Started])
def test_other_feedback_is_refused(make):
    """What NIR cannot delay as the model does is refused with the line."""
    model, x = recurrent_model(make)
    with pytest.raises(UnsupportedError, match="NIR graph") as caught:
        snncc.to_nir(snncc.compile(model), x)

    assert caught.value.code == "unsupported.nir"
    assert "test_to_nir.py" in str(caught.value)
