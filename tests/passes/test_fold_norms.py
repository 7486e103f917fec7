"""Norms fold into products, or into the input of a neuron; what folds is the same network."""

from __future__ import annotations

import functools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import snncc
from snncc.errors import UnsupportedError
from snncc.ir import norm_ops, sequence_ops
from snncc.nn import IF, LI, LIF, ATan

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PRODUCTS = {
    "linear": (nn.Linear, F.linear),
    **{f"conv{d}": (getattr(nn, f"Conv{d}d"), getattr(F, f"conv{d}d")) for d in (1, 2, 3)},
    **{
        f"transposed{d}": (getattr(nn, f"ConvTranspose{d}d"), getattr(F, f"conv_transpose{d}d"))
        for d in (1, 2, 3)
    },
}


def randomize(module: nn.Module) -> nn.Module:
    """Give each norm variances of all sizes, from 1e-9 on, and scales of both signs."""
    for norm in module.modules():
        if isinstance(norm, NORMS):
            norm.running_mean.normal_()
            norm.running_var.copy_(torch.rand_like(norm.running_var) ** 8 + 1e-9)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return module.eval()


def layer_of(kind: str, groups: int, bias: bool) -> nn.Module:
    """Return a product from 6 to 4 channels."""
    make = PRODUCTS[kind][0]
    if kind == "linear":
        return make(6, 4, bias=bias)
    return make(6, 4, 3, padding=1, groups=groups, bias=bias)


def norm_of(kind: str, **options: object) -> nn.Module:
    """Return a norm of the results of a product."""
    return NORMS[0 if kind == "linear" else int(kind[-1]) - 1](4, **options)


def called(fast: snncc.CompiledModule) -> list[object]:
    """Return what the only program of a model calls, without the axis of time."""
    (compiled,) = fast._specializations
    calls = [n.target for n in compiled.graph.nodes if n.op == "call_function"]
    return [c.operator if isinstance(c, sequence_ops.Folded) else c for c in calls]


@given(
    kind=st.sampled_from(list(PRODUCTS)),
    groups=st.sampled_from((1, 2)),
    bias=st.booleans(),
    affine=st.booleans(),
    eps=st.sampled_from((1e-5, 1e-3, 0.0)),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=80, deadline=None)
def test_folded_weights_give_the_norm_of_the_product(kind, groups, bias, affine, eps, seed):
    """In float32, to 1e-6 of the sum of the magnitudes of the terms."""
    torch.manual_seed(seed)
    layer, norm = layer_of(kind, groups, bias), norm_of(kind, eps=eps, affine=affine)
    randomize(norm)
    x = torch.randn(3, 6, *(4,) * (0 if kind == "linear" else int(kind[-1])))
    mean, var, gamma, beta = norm.running_mean, norm.running_var, norm.weight, norm.bias
    own = groups if kind.startswith("transposed") else None
    apply = PRODUCTS[kind][1]
    if kind != "linear":
        apply = functools.partial(apply, padding=1, groups=groups)
    with torch.no_grad():
        expected = norm(layer(x))
        weight = norm_ops.folded_weight(layer.weight, var, gamma, eps, own)
        shift = norm_ops.folded_bias(layer.bias, mean, var, gamma, beta, eps)
        actual = apply(x, weight, shift)
        centre = mean.abs() if layer.bias is None else mean.abs() + layer.bias.abs()
        terms = norm_ops.norm_scale(var, gamma, eps).abs() * centre
        terms = terms if beta is None else terms + beta.abs()
        allowed = 1e-6 * apply(x.abs(), weight.abs(), terms)

    assert torch.float32 is actual.dtype
    assert ((actual - expected).abs() <= allowed).all()


class Normed(nn.Module):
    """A product, its norm and a readout, all steps at once or each on its own."""

    def __init__(self, kind: str, each_step: bool, bias: bool = True) -> None:
        super().__init__()
        self.layer, self.norm = layer_of(kind, 2, bias), norm_of(kind)
        self.each_step, self.read = each_step, LI(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.each_step:
            v, out = 0.0, []
            for t in range(x.shape[0]):
                v = 0.5 * v + self.norm(self.layer(x[t]))
                out.append(v)
            return torch.stack(out)
        return self.read(self.norm(self.layer(x.flatten(0, 1))).unflatten(0, x.shape[:2]))


@pytest.mark.parametrize("each_step", [False, True], ids=["merged", "each step"])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_every_product_takes_its_norm(kind, each_step):
    """No norm is left, and nothing stands for it; gradients of all parameters are as before."""
    torch.manual_seed(0)
    model = randomize(Normed(kind, each_step, bias=kind != "conv2")).double()
    x = torch.randn(5, 3, 6, *(4,) * (0 if kind == "linear" else int(kind[-1]))).double()
    fast = snncc.compile(model, fold_norms=True, example_inputs=(x,))
    report = snncc.verify(model, fast, x)

    assert report.ok, report
    assert not {F.batch_norm, torch.mul, torch.add} & {*called(fast)}
    assert [c.name for c in report.comparisons if c.part == "fold"] == ["neuron1", "output"]
    layer, _ = fast.plans[0].layers
    assert (layer.name, layer.numerics) == ("layer", snncc.Numerics.REASSOCIATED)
    assert "folded into its weights" in layer.note


class Arranged(nn.Module):
    """Features of tokens, turned for the norm and back, as spiking transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.neuron = nn.Linear(6, 4), nn.BatchNorm1d(4), LIF(0.5)

    def forward(self, x: Tensor) -> Tensor:
        T, B, L, _ = x.shape  # noqa: N806
        y = self.norm(self.layer(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        return self.neuron(y.reshape(T, B, L, 4).contiguous())


class OfTokens(Arranged):
    """A norm of the tokens, which are no results of the product."""

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.norm(self.layer(x.flatten(0, 1))).unflatten(0, x.shape[:2]))


class Read(Arranged):
    """Something else reads the product."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.flatten(0, 2))
        z = self.norm(y)
        return self.neuron(z.unflatten(0, x.shape[:3])) + y.unflatten(0, x.shape[:3])


class Joined(nn.Module):
    """Norms of an input and of a sum, in front of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)
        self.layer, self.neuron, self.last = nn.Linear(4, 4), LIF(0.5), IF()

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[:2]
        s = self.neuron(self.first(x.flatten(0, 1)).unflatten(0, shape))
        y = self.second((self.layer(s) + s).flatten(0, 1))
        return self.last(y.unflatten(0, shape))


class Counted(nn.Module):
    """One norm for each step, from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norms = nn.Linear(6, 4), nn.ModuleList(nn.BatchNorm1d(4) for _ in range(5))
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v, out = 0.0, []
        for t in range(x.shape[0]):
            v = 0.5 * v + self.norms[t](self.layer(x[t]))
            out.append(self.spike(v - 1.0))
            v = v - out[-1]
        return torch.stack(out)


class Recurrent(nn.Module):
    """The norm of what a layer feeds back to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.spike = nn.Linear(4, 4), nn.BatchNorm1d(4), ATan()

    def forward(self, x: Tensor) -> Tensor:
        v, s, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = 0.5 * v + self.norm(self.layer(s)) + x[t]
            s = self.spike(v - 1.0)
            v = v - s
            out.append(s)
        return torch.stack(out)


class Mixed(nn.Module):
    """A norm that is fused with neither: a maximum is in between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.neuron = nn.BatchNorm2d(2), LIF(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.norm(x.flatten(0, 1)), 2)
        return self.neuron(y.unflatten(0, x.shape[:2]))


PLACES = {
    "arranged axes": (Arranged, (5, 3, 2, 6), {"weights"}),
    "other channels": (OfTokens, (5, 3, 4, 6), {"input"}),
    "read elsewhere": (Read, (5, 3, 2, 6), {"input"}),
    "no product": (Joined, (5, 3, 4), {"input"}),
    "one norm a step": (Counted, (5, 3, 6), {"input"}),
    "recurrent": (Recurrent, (5, 3, 4), {"loop"}),
    "behind nothing": (Mixed, (5, 3, 2, 4, 4), {"scale and shift"}),
}


@pytest.mark.parametrize("place", PLACES)
def test_places_of_norms(place):
    """Wherever a norm is, none is left, the plan says what became of it, and spikes agree."""
    make, shape, expected = PLACES[place]
    torch.manual_seed(1)
    model = randomize(make())
    x = torch.randn(shape) * 3
    fast = snncc.compile(model, fold_norms=True, example_inputs=(x,))
    report = snncc.verify(model, fast, x)
    found = set()
    for layer in fast.plans[0].layers:
        assert "norm" not in layer.what
        if "folded" in layer.note or layer.operator == "scale and shift":
            assert layer.numerics is snncc.Numerics.REASSOCIATED
            words = ("products and states", "into its weights", "into its input")
            names = ("loop", "weights", "input")
            found |= {n for w, n in zip(words, names, strict=True) if w in layer.note}
            found = {layer.operator} if layer.operator == "scale and shift" else found

    assert expected == found
    assert F.batch_norm not in called(fast)
    assert report.ok, report
    assert torch.equal(model(x), fast(x))
    assert model(x).any()


def test_without_being_asked_nothing_is_folded():
    """Evaluation alone keeps every bit: also of a norm in a loop that feeds back."""
    for make, shape in ((Recurrent, (5, 3, 4)), (Counted, (5, 3, 6))):
        model = randomize(make())
        fast = snncc.compile(model)
        x = torch.randn(shape)

        assert torch.equal(fast(x), model(x))
        assert not any("folded" in layer.note for layer in fast.plans[0].layers)
    assert (
        snncc.Numerics.BITWISE
        is snncc.compile(randomize(Recurrent()), example_inputs=(torch.randn(5, 3, 4),))
        .plans[0]
        .numerics
    )


def training(model: nn.Module) -> nn.Module:
    return model.train()


def without_statistics(model: nn.Module) -> nn.Module:
    model.norm.running_mean = model.norm.running_var = None
    return model


def halved(model: nn.Module) -> nn.Module:
    return model.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "dtype", "reason"),
    [
        (training, torch.float32, "statistics of the batch"),
        (without_statistics, torch.float32, "statistics of the batch"),
        (halved, torch.bfloat16, "bfloat16"),
    ],
)
def test_refusals_name_the_norm(change, dtype, reason):
    """What cannot be folded is an error with the line of the norm, and nothing is changed."""
    model = change(randomize(Normed("conv2", each_step=False)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = snncc.compile(model, fold_norms=True)
    with pytest.raises(UnsupportedError, match="batch norm cannot be folded") as refusal:
        fast(torch.randn(5, 3, 6, 4, 4, dtype=dtype))

    assert refusal.value.code == "unsupported.fold-norms"
    assert reason in refusal.value.notes[0]
    assert "self.norm(self.layer" in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_frozen_norm_folds_while_the_model_trains():
    """It is the norm's own mode that counts."""
    model = randomize(Normed("linear", each_step=True)).train()
    model.norm.eval()
    x = torch.randn(5, 3, 6)

    torch.testing.assert_close(snncc.compile(model, fold_norms=True)(x), model(x))


def test_weights_follow_the_model():
    """A step of the optimiser, new statistics and a loaded state reach the folded weights."""
    torch.manual_seed(0)
    model, other = (randomize(Normed("conv1", each_step=False)).double() for _ in range(2))
    x = torch.randn(5, 3, 6, 4).double()
    fast = snncc.compile(model, fold_norms=True)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        fast(x).sum().backward()
        optimizer.step()
        model.norm.running_mean.add_(0.25)
        torch.testing.assert_close(fast(x), model(x))
    fast.load_state_dict(other.state_dict())

    torch.testing.assert_close(fast(x), other(x))
    assert len(fast.plans) == 1


def test_a_folded_model_streams():
    """A stream of a folded model is the folded model, step by step."""
    torch.manual_seed(0)
    model = randomize(Joined())
    x = torch.randn(7, 3, 4) * 3
    fast = snncc.compile(model, fold_norms=True)
    with torch.no_grad():
        stream = fast.stream(x)
        steps = torch.stack([stream(x_t) for x_t in x])

    assert torch.equal(fast(x), steps)
    assert steps.any()


class AtThreshold(nn.Module):
    """Neurons whose threshold is what the norm gives: every rounding shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.spike = nn.Linear(6, 200), nn.BatchNorm1d(200), ATan()
        self.threshold = nn.Parameter(torch.zeros(200))

    def forward(self, x: Tensor) -> Tensor:
        v, out = 0.0, []
        for t in range(x.shape[0]):
            v = 0.5 * v + self.norm(self.layer(x[t]))
            out.append(self.spike(v - self.threshold))
            v = v * (1.0 - out[-1])
        return torch.stack(out)


def at_threshold() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = randomize(AtThreshold())
    model.norm.running_var.clamp_(min=1e-2)
    x = torch.randn(6, 1, 6)
    with torch.no_grad():
        model.threshold.copy_(model.norm(model.layer(x[0]))[0] * (1 - 2**-23))
    return model, x


def test_moved_spikes_are_counted_with_their_margin():
    """A spike at its threshold may move; the certificate says how many did, and how near."""
    model, x = at_threshold()
    fast = snncc.compile(model, fold_norms=True)
    report = snncc.verify(model, fast, x, gradients=False)
    spikes, potentials, _ = (c for c in report.comparisons if c.part == "fold")

    assert report.ok, report
    assert spikes.differing > 10
    assert 0 < spikes.error <= potentials.error < 1e-5
    assert spikes.first[0] == 0
    assert any("moved" in note for note in report.notes)


@pytest.mark.parametrize("name", ["folded_weight", "folded_bias"])
def test_a_wrong_fold_is_found(name):
    """A coefficient that is off by a thousandth is no rounding."""
    model, x = at_threshold()
    right = getattr(norm_ops, name)

    def wrong(*args: object) -> Tensor:
        return right(*args) * 1.001

    with mock.patch.object(norm_ops, name, wrong):
        fast = snncc.compile(model, fold_norms=True, example_inputs=(x,))
        report = snncc.verify(model, fast, x, gradients=False)

    assert not report.ok
    assert not all(c.ok for c in report.comparisons if c.part == "fold")


def test_merged_statistics_are_not_those_of_the_steps():
    """Means and variances (1.5, 1.25) and (5, 1) of two steps are (3.25, 4.1875) of both."""
    steps = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 4.0, 6.0, 6.0]])
    merged = nn.BatchNorm1d(1, momentum=1.0)
    merged(steps.reshape(-1, 1))

    assert steps.mean(1).tolist() == [1.5, 5.0]
    assert steps.var(1, correction=0).tolist() == [1.25, 1.0]
    assert merged.running_mean.item() == 3.25
    assert pytest.approx(merged.running_var.item() * 7 / 8) == 4.1875


class Digits(nn.Module):
    """Images as currents: a convolution and a layer, both with norms, and a count of spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm1, self.first = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), LIF(0.5)
        self.layer, self.norm2, self.last = nn.Linear(72, 10), nn.BatchNorm1d(10), LIF(0.5)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[:2]
        s = self.first(self.norm1(self.conv(x.flatten(0, 1))).unflatten(0, shape))
        pooled = F.max_pool2d(s.flatten(0, 1), 2).flatten(1)
        return self.last(self.norm2(self.layer(pooled)).unflatten(0, shape))


def test_no_spike_of_a_trained_network_moves_on_its_test_set():
    """All 360 test images of handwritten digits, after a short training."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8).expand(4, -1, 1, 8, 8)
    y = torch.tensor(labels)
    torch.manual_seed(0)
    model = Digits()
    fast = snncc.compile(model, fold_norms=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    train, test = torch.randperm(len(y)).split([len(y) - 360, 360])
    for _ in range(4):
        for rows in train[torch.randperm(len(train))].split(96):
            optimizer.zero_grad()
            F.cross_entropy(fast(x[:, rows]).sum(0), y[rows]).backward()
            optimizer.step()
    model.eval()
    folded = snncc.compile(model, fold_norms=True)
    with torch.no_grad():
        expected, actual = model(x[:, test]), folded(x[:, test])

    assert (expected.sum(0).argmax(1) == y[test]).float().mean() > 0.85
    assert torch.equal(expected, actual)
    assert F.batch_norm not in called(folded)


class NormBehind(nn.Module):
    """Spikes are normalised before the next product, and may be returned too."""

    def __init__(self, returned: str) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.spike, self.returned = ATan(), returned

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        v = w = torch.zeros_like(x[0])
        found: dict[str, list[Tensor]] = {"spikes": [], "norm": [], "last": []}
        for x_t in x:
            v = 0.5 * v + x_t
            s = self.spike(v - 0.2)
            v = v * (1.0 - s)
            y = self.norm(s)
            w = 0.5 * w + self.linear(y)
            found["spikes"].append(s)
            found["norm"].append(y)
            found["last"].append(self.spike(w - 0.1))
        return tuple(torch.stack(found[name]) for name in self.returned.split())


@pytest.mark.parametrize("returned", ["last", "norm", "last norm", "spikes norm last"])
def test_certificate_of_a_norm_behind_a_neuron(returned):
    """What a neuron computes of its spikes is a result of it, and none of its spikes."""
    model = randomize(NormBehind(returned)).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    fast = snncc.compile(model, fold_norms=True, example_inputs=(x,))

    report = snncc.verify(model, fast, x)

    assert report.ok, report
    folds = [c.name for c in report.comparisons if c.part == "fold"]
    assert "neuron1 s, spikes" in folds
    assert folds[-1].startswith("output")


def test_certificate_finds_a_wrong_norm_behind_a_neuron():
    """Of a neuron that computes something else of its spikes, the spikes are right."""
    model = randomize(NormBehind("norm"))
    x = torch.randn(5, 2, 3)
    fast = snncc.compile(model, fold_norms=True, example_inputs=(x,))
    (compiled,) = fast._specializations
    shifts = [n for n in compiled.graph.nodes if n.target is norm_ops.norm_shift]
    assert len(shifts) == 1
    shifts[0].target = norm_ops.norm_scale
    shifts[0].args = (shifts[0].args[1], *shifts[0].args[2:3], shifts[0].args[-1])

    report = snncc.verify(model, fast, x, gradients=False)

    assert [c.name for c in report.comparisons if not c.ok and c.part == "fold"] == ["output"]
