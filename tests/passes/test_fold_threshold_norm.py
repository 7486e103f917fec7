"""A norm that only decides on spikes becomes a threshold: the very float at which they change."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snncc
from snncc.ir import norm_threshold
from snncc.ir.norm_threshold import find_threshold
from snncc.nn import ATan
from snncc.passes.folding.fold_threshold_norm import INTO_THRESHOLD

COMPARISONS = (torch.ge, torch.gt, torch.le, torch.lt)


def around(values: Tensor) -> Tensor:
    """Return values, and the three floats next to each on both sides."""
    rows = [values]
    for end in (torch.inf, -torch.inf):
        near = values
        for _ in range(3):
            near = torch.nextafter(near, torch.full_like(near, end))
            rows.append(near)
    return torch.stack(rows)


@pytest.mark.parametrize("compare", COMPARISONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_is_the_float_at_which_the_comparison_changes(dtype, compare):
    """Any sign of gamma, 0, subnormal and infinite ones, tiny variances, NaN: for every float."""
    torch.manual_seed(0)
    mean, var, gamma, beta = torch.randn(4, 300, dtype=dtype)
    var = var.abs() ** 8 + 1e-9
    gamma[:8] = torch.tensor([0.0, 0.0, 1e-45, -1e-45, 1e30, -1e30, torch.inf, torch.nan])
    beta[1:3], beta[8:10] = 3.0, torch.tensor([torch.nan, torch.inf])
    mean[10], mean[11], beta[11] = 1e30, 0.0, 0.5

    def decide(h: Tensor) -> Tensor:
        return compare(F.batch_norm(h, mean, var, gamma, beta, False, 0.1, 1e-5) - 0.5, 0.0)

    found = find_threshold(decide, mean)
    limits = torch.finfo(dtype)
    ends = torch.tensor([torch.inf, -torch.inf, torch.nan, limits.max, limits.min, 0.0, -0.0])
    edge = torch.where(found.side < 0, -found.level, found.level)
    h = torch.cat((torch.randn(500, 300) * 3, ends[:, None].expand(-1, 300))).to(dtype)
    h = torch.cat((h, around(edge)))

    assert torch.equal(found.side * h >= found.level, decide(h))
    assert found.holds(decide)
    assert {-1.0, 0.0, 1.0} == {*found.side.tolist()}
    gamma[20] = -gamma[20]
    assert not found.holds(decide)


class Deciding(nn.Module):
    """A neuron that spikes where the norm of its potential says so."""

    norm_of: type[nn.Module] = nn.BatchNorm1d

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.norm, self.spike = self.norm_of(channels), ATan()
        self.threshold = nn.Parameter(torch.full((channels,), 0.3))

    def fire(self, h: Tensor) -> Tensor:
        return self.spike(self.norm(h) - 0.5)

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h * (1.0 - s)

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = 0.75 * v + x[t]
            out.append(self.fire(h))
            v = self.reset(h, out[-1])
        return torch.stack(out)


class Learned(Deciding):
    """The threshold of each channel is learned, and subtracted."""

    def fire(self, h: Tensor) -> Tensor:
        return self.spike(2.0 * (self.norm(h) / self.threshold - 1.0))

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - s * self.threshold


class OfImages(Deciding):
    """A norm of images."""

    norm_of = nn.BatchNorm2d

    def fire(self, h: Tensor) -> Tensor:
        return self.spike(self.norm(h) - self.threshold.view(1, -1, 1, 1))


class Ternary(Deciding):
    """Two comparisons of one norm."""

    def fire(self, h: Tensor) -> Tensor:
        n = self.norm(h)
        return self.spike(n - 0.5) - self.spike(-n - 0.5)

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h - s


class Compared(Deciding):
    """A comparison without a gradient."""

    def fire(self, h: Tensor) -> Tensor:
        return (-self.threshold > -self.norm(h)).to(h.dtype)


class Without(Deciding):
    """Nothing is fed back: only what is asked to fold is folded."""

    def reset(self, h: Tensor, s: Tensor) -> Tensor:
        return h


class Shown(Deciding):
    """What leaves the neuron depends on the norm in another way, too."""

    def fire(self, h: Tensor) -> Tensor:
        n = self.norm(h)
        return self.spike(n - 0.5) + 0.25 * n.clamp(-1.0, 1.0)


class OfNeurons(OfImages):
    """Each neuron of a channel has a threshold of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.rand(4, 3, 3))

    def fire(self, h: Tensor) -> Tensor:
        return self.spike(self.norm(h) - self.threshold)


class Squared(Deciding):
    """What is compared does not grow with the norm."""

    def fire(self, h: Tensor) -> Tensor:
        return self.spike(self.norm(h) ** 2 - 0.5)


def randomized(model: Deciding) -> tuple[Deciding, Tensor]:
    """Return a model in evaluation mode with scales of both signs and one of 0, and an input."""
    torch.manual_seed(1)
    norm = model.norm
    norm.running_mean.normal_()
    norm.running_var.copy_(torch.rand(4) ** 8 + 1e-9)
    norm.weight.data = torch.tensor([1.0, -0.75, 0.0, 2.0])
    nn.init.normal_(norm.bias)
    x = torch.randn(20, 3, 4, *((3, 3) if isinstance(norm, nn.BatchNorm2d) else ())) * 2
    return model.eval(), x


@pytest.mark.parametrize("make", [Deciding, Learned, OfImages, Ternary, Compared, Without])
def test_norms_that_decide_become_thresholds(make):
    """Each spike is where it was, and gradients agree."""
    model, x = randomized(make())
    x.requires_grad_(make is not Compared)
    fast = snncc.compile(model, fold_norms=make is Without)
    report = snncc.verify(model, fast, x)
    (neuron,) = fast.plans[0].neurons
    (plain,) = snncc.compile(model, example_inputs=(x,)).plans[0].neurons

    assert report.ok, report
    assert torch.equal(fast(x), model(x))
    assert len(fast(x).unique()) > 1
    assert INTO_THRESHOLD in neuron.note
    assert "side" in "".join(neuron.equations)
    assert (INTO_THRESHOLD in plain.note) is (make is not Without)


@pytest.mark.parametrize("make", [Shown, OfNeurons, Squared])
def test_norms_that_do_more_stay_a_scale_and_a_shift(make):
    """Where no float for each channel stands for the norm."""
    model, x = randomized(make())
    fast = snncc.compile(model)

    assert snncc.verify(model, fast, x).ok
    assert "folded into a scale and a shift" in fast.plans[0].neurons[0].note


def test_thresholds_follow_the_model():
    """However a parameter changes, also in ways that torch does not count."""
    model, x = randomized(Learned())
    fast = snncc.compile(model)
    for change in (
        lambda: model.norm.weight.data.neg_(),
        lambda: model.norm.weight.data.zero_(),
        lambda: model.norm.load_state_dict(randomized(Learned())[0].norm.state_dict()),
        lambda: model.threshold.data.mul_(1 + 2**-23),
        lambda: model.norm.running_var.add_(1.0),
    ):
        change()
        assert torch.equal(fast(x), model(x))
    assert len(fast.plans) == 1


def test_thresholds_are_constants_of_streams_and_libraries(tmp_path):
    """The exported step compares with them, and is that of the model."""
    model, x = randomized(OfImages())
    fast = snncc.compile(model)
    with torch.no_grad():
        stream = fast.stream(x)
        assert torch.equal(torch.stack([stream(x_t) for x_t in x]), model(x))
    bundle = snncc.export(fast, tmp_path / "bundle", example_inputs=(x[:, :1],))

    assert snncc.verify_bundle(bundle.folder).ok
    assert ">=" in "".join(p.read_text() for p in bundle.folder.glob("*.c"))


def test_a_threshold_that_is_one_float_off_is_found():
    """A potential at the threshold shows it."""
    model, _ = randomized(Deciding())
    fast = snncc.compile(model)
    fast(torch.zeros(2, 1, 4))
    right = find_threshold(lambda h: model.norm(h) >= 0.5, model.norm.running_mean)
    x = torch.where(right.side < 0, -right.level, right.level).expand(2, 1, 4).clone()
    x[1] = 0.0

    def off(*args: object) -> norm_threshold.Threshold:
        found = find_threshold(*args)
        level = torch.nextafter(found.level, torch.tensor(torch.inf))
        return norm_threshold.Threshold(found.side, level, found.asked, found.answers)

    assert snncc.verify(model, fast, x, gradients=False).ok
    with mock.patch.object(norm_threshold, "find_threshold", off):
        fast = snncc.compile(model)
        assert not snncc.verify(model, fast, x, gradients=False).ok
