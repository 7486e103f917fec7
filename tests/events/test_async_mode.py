"""``mode="async"``: serial code that runs as a queue of spikes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.errors import SnnccError
from snncc.ir.events import region
from snncc.nn import LIF, ATan
from tests.events.models import Chain, Convolutional, dyadic, spikes

WIDE = 1000
spike = ATan()


def compiled(model: Any, **options: Any) -> Any:
    """Return a model that runs as a queue of spikes, by the reference."""
    return snncc.compile(model, mode="async", **{"target": "torch", **options})


def _case(kind: str) -> tuple[nn.Module, Tensor]:
    rng = random.Random(kind)
    if kind == "convolutional":
        model = dyadic(Convolutional(), rng).eval()
        return model, spikes(rng, 5, 3, 1, 6, 6)
    model = Chain([4, 6, 5, 3], hard="hard" in kind, strict="strict" in kind)
    return dyadic(model, rng), spikes(rng, 6, 3, 4)


@pytest.mark.parametrize("prioritize_input", [True, False], ids=["frame", "queued"])
@pytest.mark.parametrize("kind", ["hard", "soft", "hard strict", "convolutional"])
def test_wide_groups_are_the_serial_code(kind: str, prioritize_input: bool) -> None:
    """Where a group holds all spikes of a layer, outputs and gradients are those of the code."""
    model, x = _case(kind)
    fast = compiled(model, group_size=WIDE, prioritize_input=prioritize_input)

    expected, found = model(x), fast(x)

    assert torch.equal(found, expected)
    assert found.requires_grad
    slopes = torch.autograd.grad(expected.sum(), [*model.parameters()])
    ours = torch.autograd.grad(found.sum(), [*model.parameters()])
    torch.testing.assert_close(ours, slopes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["hard", "convolutional"])
def test_kernels_are_the_reference(kind: str) -> None:
    """A compiled model gives what the reference gives, bit by bit; gradients within rounding."""
    model, x = _case(kind)
    results, slopes, counts = [], [], []
    for target in ("torch", "c"):
        fast = compiled(model, group_size=2, target=target)
        results.append(fast(x))
        slopes.append(torch.autograd.grad(results[-1].sum(), [*model.parameters()]))
        counts.append(fast.last_events)

    assert torch.equal(*results)
    assert all(torch.equal(counts[0][name], counts[1][name]) for name in counts[0])
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prioritize_input", [True, False], ids=["frame", "queued"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_what_is_no_number_spreads_alike(number: float, prioritize_input: bool) -> None:
    """Kernels and reference agree on it: in inputs, in weights, and as a priority."""
    model = Chain([4, 6, 5, 3], strict=True)  # 1 - spike(1 - h) fires where h is no number
    model, x = dyadic(model, random.Random(1)), spikes(random.Random(1), 6, 3, 4)
    with torch.no_grad():
        x[2, 1, 0] = number
        model.layers[1].weight[2, 3] = number
    options: dict[str, Any] = {"group_size": 1, "prioritize_input": prioritize_input}

    expected, found = (compiled(model, target=t, **options)(x) for t in ("torch", "c"))

    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)
    assert torch.equal(found[:, 2], compiled(model, **options)(x[:, 2:])[:, 0])


def test_small_groups_are_another_network() -> None:
    """With one spike at a time results differ from the layered network, and repeat."""
    model, x = _case("hard")

    fast = compiled(model, group_size=1)
    first = fast(x)

    assert not torch.equal(first, model(x))
    assert torch.equal(fast(x), first)
    alone = torch.cat([fast(x[:, i : i + 1]) for i in range(3)], 1)
    assert torch.equal(alone, first)


def test_plan_shows_the_queue() -> None:
    """The plan has a line for each layer, with the user's lines, and the order once."""
    model, x = _case("hard")
    fast = compiled(model, group_size=2, order="random", refractory_dropout=0.5, stop=3)
    fast(x)

    layers = {layer.name: layer for layer in fast.plans[0].layers}

    assert [layers[name].form for name in ("layers.1", "neuron2")] == [
        "spike by spike",
        "queue of spikes",
    ]
    assert layers["neuron1"].note == (
        "spikes of all layers in groups of 2, any of them, a share of 0.5 not refractory, "
        "until 3 groups after an output"
    )
    assert fast.plans[0].numerics is snncc.ir.numerics.Numerics.SUBSTITUTED
    assert "queue of spikes" in str(fast)
    assert snncc.explain(fast, x)


def test_last_events_tell_what_a_call_took() -> None:
    """Counts are those of the last call, for each sample."""
    model, x = _case("hard")
    fast = compiled(model, group_size=2)
    assert fast.last_events == {}

    out = fast(x)

    counts = fast.last_events
    assert {name: len(n) for name, n in counts.items()} == dict.fromkeys(
        ("forward_steps", "events", "spikes", "operations", "evaluations"), 3
    )
    assert (counts["spikes"] >= out.sum((0, 2))).all()
    assert torch.equal(counts["spikes"], counts["events"])
    narrow = compiled(model, group_size=1)
    narrow(x)
    assert (narrow.last_events["forward_steps"] > counts["forward_steps"]).all()


def test_draws_follow_the_seed() -> None:
    """Orders that are drawn repeat with a seed, and differ without."""
    model, x = _case("hard")
    fast = compiled(model, group_size=1, order="random")

    torch.manual_seed(0)
    first = fast(x)
    torch.manual_seed(0)
    again = fast(x)

    assert torch.equal(first, again)
    assert any(not torch.equal(first, fast(x)) for _ in range(5))


def test_neurons_are_spared_in_training_alone() -> None:
    """Without refractory neurons there are other spikes; in evaluation all of them are."""
    model, x = _case("hard")
    spared, plain = (compiled(model, group_size=1, refractory_dropout=p) for p in (1.0, 0.0))

    assert not torch.equal(spared(x), plain(x))
    assert torch.equal(spared.eval()(x), plain(x))


def test_nothing_is_drawn_where_order_is_certain() -> None:
    """Without random order, torch's generator is left alone."""
    model, x = _case("hard")
    fast = compiled(model)
    fast(x)
    before = torch.get_rng_state()
    fast(x)

    assert torch.equal(torch.get_rng_state(), before)


def test_other_batches_and_lengths_are_served() -> None:
    """Steps and samples are free, one step and one sample included."""
    model, _ = _case("soft")
    fast = compiled(model, group_size=WIDE)

    for length, samples in ((6, 3), (9, 2), (1, 4), (5, 1), (2, 7)):
        given = spikes(random.Random(length), length, samples, 4)
        assert torch.equal(fast(given), model(given))


def test_training_changes_what_runs() -> None:
    """Matrices follow the weights."""
    model, x = _case("convolutional")
    fast = compiled(model, group_size=WIDE)
    fast(x)
    dyadic(model, random.Random(5))

    assert torch.equal(fast(x), model(x))


def leaky(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = 0.5 * v + x
    s = spike(h - 1.0)
    return s, h - s


def delayed(x: Tensor) -> Tensor:
    """The second layer reads the spikes of the first of the step before."""
    v, w, s = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:])
    mixed = torch.arange(16).reshape(4, 4).to(x) / 4.0 - 1.0
    out = []
    for x_t in x:
        z, w = leaky(w, s @ mixed - 0.25)
        s, v = leaky(v, x_t)
        out.append(z)
    return torch.stack(out)


def shown(x: Tensor) -> tuple[Tensor, ...]:
    """Spikes, membranes, counts and last states, of two layers."""
    v, w = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:])
    total, traces, out = x.new_zeros(x.shape[1:]), [], []
    for x_t in x:
        s, v = leaky(v, 2.0 * x_t)
        z, w = leaky(w, s.flip(1) + s)
        total = total + 0.5 * z
        traces.append(w)
        out.append(torch.stack([s, z]))
    return torch.stack(out), torch.stack(traces), total, v


def started(x: Tensor) -> Tensor:
    """States that are given from outside, and an IF neuron with a rest."""
    v, out = x[0] * 0.5, []
    for x_t in x:
        h = v + (0.25 - v) * 0.5 + 0.5 * x_t
        s = spike(h - 0.5)
        v = torch.where(s > 0, 0.25, h)
        out.append(s)
    return torch.stack(out)


def static(x: Tensor) -> Tensor:
    """A second layer that gets the same image at every step, beside spikes."""
    v, w, out = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), []
    image = x[0] * 0.75 + x[1]
    mixed = torch.arange(16).reshape(4, 4).to(x) / 4.0 - 1.0
    for x_t in x:
        s, v = leaky(v, x_t)
        z, w = leaky(w, s @ mixed + 0.5 * image)
        out.append(z)
    return torch.stack(out)


def layer(x: Tensor) -> Tensor:
    v, out = x.new_zeros(x.shape[1:]), []
    for x_t in x:
        s, v = leaky(v, x_t)
        out.append(s)
    return torch.stack(out)


def widened(x: Tensor) -> Tensor:
    """What is added to spikes gives them an axis, along which they are summed up."""
    v, w, out = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), []
    beside = torch.tensor([1.0, -0.5, -0.25]).to(x)
    for x_t in x:
        s, v = leaky(v, 2.0 * x_t)
        z, w = leaky(w, 0.25 * (s.flip(1).unsqueeze(2) - beside).sum(2))
        out.append(z)
    return torch.stack(out)


def timed(x: Tensor) -> Tensor:
    """A bias of its own for each step."""
    v, w, out = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), []
    biases = torch.arange(x.shape[0] * 4).reshape(-1, 4).to(x) / 8.0 - 1.0
    for t in range(x.shape[0]):
        s, v = leaky(v, x[t])
        z, w = leaky(w, s.flip(1) + biases[t])
        out.append(z)
    return torch.stack(out)


def scaled(x: Tensor) -> Tensor:
    """A reset by a threshold of one times the spike, which is shown in a sum alone."""
    v, w, out = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), []
    for x_t in x:
        s, v = leaky(v, x_t)
        h = 0.5 * w + s.flip(1)
        z = spike(h - 1.0)
        w = h - z * 1.0
        out.append(z + s)
    return torch.stack(out)


def folded(x: Tensor) -> Tensor:
    """Layers over all steps at once, by shapes that the input has."""
    kernel = torch.tensor([0.5, -0.25, 1.0]).to(x).reshape(1, 1, 3)
    s = layer(2.0 * x).flatten(0, 1).unsqueeze(1)
    mixed = torch.nn.functional.conv1d(s, kernel, padding=1)
    return layer(mixed.reshape(x.shape[0], -1, 4))


@pytest.mark.parametrize(
    "model", [delayed, shown, started, widened, timed, scaled, folded], ids=lambda f: f.__name__
)
def test_functions(model: Any) -> None:
    """What a model gives beside spikes, and starts from, is kept."""
    x = spikes(random.Random(3), 6, 3, 4)

    expected, found = model(x), compiled(model, group_size=WIDE)(x)

    for one, other in zip(
        *((y,) if isinstance(y, Tensor) else y for y in (expected, found)), strict=True
    ):
        assert torch.equal(one, other)


def test_an_image_at_every_step() -> None:
    """What is the same at all steps is part of what a layer gets without spikes."""
    x = spikes(random.Random(4), 7, 3, 4, rate=0.6)
    fast = compiled(static)

    out = fast(x)

    assert torch.equal(out, torch.cat([fast(x[:, i : i + 1]) for i in range(3)], 1))
    assert snncc.verify(static, fast, x).ok


def test_early_stop_drops_what_is_queued() -> None:
    """Stopping at the first output spike does fewer forward steps, and changes results."""
    model, x = _case("hard")
    whole, early = compiled(model, group_size=1), compiled(model, group_size=1, stop=0)
    whole(x)
    early(x)

    steps = [fast.last_events["forward_steps"].sum() for fast in (whole, early)]

    assert steps[1] < steps[0]


def adaptive(x: Tensor) -> Tensor:
    v, a = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:])
    out = []
    for x_t in x:
        h = 0.5 * v + x_t
        s = spike(h - 1.0 - a)
        v, a = h - s, 0.5 * a + s
        out.append(s)
    return torch.stack(out)


def pooled(x: Tensor) -> Tensor:
    v, w = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1], 1)
    out = []
    for x_t in x:
        s, v = leaky(v, x_t)
        z, w = leaky(w, s.amax(1, keepdim=True))
        out.append(z)
    return torch.stack(out)


def gated(x: Tensor) -> Tensor:
    v, w = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:])
    out = []
    for x_t in x:
        s, v = leaky(v, x_t)
        z, w = leaky(w, s.flip(1) * x_t)
        out.append(z)
    return torch.stack(out)


def squared(x: Tensor) -> Tensor:
    v, w = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:])
    out = []
    for x_t in x:
        s, v = leaky(v, x_t)
        z, w = leaky(w, s.flip(1) * s.roll(1, 1))
        out.append(z)
    return torch.stack(out)


def charge_shown(x: Tensor) -> Tensor:
    v, out = x.new_zeros(x.shape[1:]), []
    for x_t in x:
        h = 0.5 * v + x_t
        s = spike(h - 1.0)
        v = h - s
        out.append(h)
    return torch.stack(out)


def silent(x: Tensor) -> Tensor:
    v = x.new_zeros(x.shape[1:])
    for x_t in x:
        v = 0.5 * v + x_t
    return v


def mixing(x: Tensor) -> Tensor:
    v, w = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:])
    out = []
    for x_t in x:
        s, v = leaky(v, x_t)
        z, w = leaky(w, s - s.mean(0))
        out.append(z)
    return torch.stack(out)


def shifted(x: Tensor) -> Tensor:
    return layer(layer(x).roll(2, 0) * 0.5)


def turned(x: Tensor) -> Tensor:
    return layer(layer(x).transpose(0, 1) * 0.5)


def decided(x: Tensor) -> Tensor:
    v, out = x.new_zeros(x.shape[1:]), []
    for x_t in x:
        s, v = leaky(v, x_t.abs() * x_t * v.clamp(min=0.0))
        out.append(s)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        (adaptive, "form.async", "state beside its membrane"),
        (pooled, "form.async", "'amax' is not linear"),
        (gated, "form.async", "their effect is not linear"),
        (squared, "form.async", "their effect is not linear"),
        (charge_shown, "form.async", "potential before the reset"),
        (silent, "form.async", "no spiking neuron"),
        (shifted, "unsupported.async-network", "whenever and in which sample"),
        (turned, "unsupported.async-network", "whenever and in which sample"),
        (mixing, "unsupported.async-network", "whenever and in which sample"),
        (decided, "form.async", "neuron1"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_refused(model: Any, code: str, says: str) -> None:
    """A refusal has the line, or none where no line is at fault, and the reason."""
    with pytest.raises(SnnccError, match=says) as refusal:
        compiled(model)(spikes(random.Random(1), 5, 3, 4))

    assert refusal.value.code == code
    assert (refusal.value.location is None) == (model is silent)


def test_training_norms_are_refused() -> None:
    """A norm with the statistics of its batch needs all spikes of a step at once."""
    model, x = _case("convolutional")
    model.train()
    model.norm.eval()
    model.conv2 = nn.Sequential(model.conv2, nn.BatchNorm2d(4)).double()

    with pytest.raises(SnnccError) as refusal:
        compiled(model)(x)

    assert refusal.value.code == "form.async"


def integrated(x: Tensor) -> Tensor:
    u, v, out = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), []
    for x_t in x:
        u = 0.5 * u + 0.25 * u.flip(1) + x_t
        s, v = leaky(v, u)
        out.append(s)
    return torch.stack(out)


def test_weights_on_potentials_are_refused() -> None:
    """A loop that is no feedback of spikes is not run in another way silently."""
    with pytest.raises(SnnccError, match="a state stays outside of neurons") as refusal:
        compiled(integrated)(spikes(random.Random(0), 6, 2, 4))

    assert refusal.value.code == "form.async"


def test_no_file_but_a_library_has_a_queue(tmp_path: Path) -> None:
    """Other formats say so, and what to do."""
    model, x = _case("soft")
    model.float().eval()
    x = x.float()
    fast = compiled(model)
    given: dict[str, Any] = {"example_inputs": (x,)}

    for options in ({"format": f} for f in ("onnx", "pt2", "cuda", "nir")):
        with pytest.raises(SnnccError, match="A queue of spikes has no form") as refusal:
            snncc.export(fast, tmp_path / "out", **options, **given)
        assert refusal.value.code == "unsupported.export"
    with pytest.raises(SnnccError, match="whole numbers") as refusal:
        snncc.export(fast, tmp_path / "out", arithmetic="int8", **given)
    assert refusal.value.code == "unsupported.export"
    with pytest.raises(SnnccError, match="it has no order of spikes") as refusal:
        snncc.to_nir(fast, x)
    assert refusal.value.code == "unsupported.nir"


def test_layers_that_loop_on_their_own() -> None:
    """Layers of the library loop over time one after another, and are one network."""
    model = nn.Sequential(nn.Linear(4, 5), LIF(), nn.Linear(5, 3), LIF())
    model = dyadic(model, random.Random(0))
    x = spikes(random.Random(0), 6, 2, 4)

    assert torch.equal(compiled(model, group_size=WIDE)(x), model(x))


class OneStep(nn.Module):
    """One time step of a neuron, whose state stays in the module."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.v = nn.Linear(4, 3), None

    def forward(self, x: Tensor) -> Tensor:
        v = x.new_zeros(x.shape[0], 3) if self.v is None else self.v
        s, self.v = leaky(v, self.fc(x))
        return s


def test_one_step_is_compiled_over_time() -> None:
    """A model of one step is a network of events too; its state is written back."""
    model, twin = (dyadic(OneStep(), random.Random(0)) for _ in range(2))
    fast = compiled(model, step=True)
    x = spikes(random.Random(0), 6, 2, 4)

    out = fast(x)

    assert torch.equal(out, torch.stack([twin(x_t) for x_t in x]))
    assert torch.equal(model.v, twin.v)


@pytest.mark.parametrize("kind", ["soft", "convolutional"])
def test_verify_says_what_is_proven(kind: str) -> None:
    """Layers, matrices, kernels and wide groups are compared; the order is measured."""
    model, x = _case(kind)

    report = snncc.verify(model, compiled(model, target="c", group_size=2), x)

    assert report.ok
    names = [c.name for c in report.comparisons]
    assert "input of neuron2" in names
    assert any(name.startswith("all spikes at once") for name in names)
    assert "counts of events" in names
    assert "spikes differ from those of the layered network" in report.notes[-1]


def test_verify_finds_a_wrong_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix that is not what the operators do is no matrix of this network."""
    model, x = _case("soft")
    gains = region._Tensors._gains
    monkeypatch.setattr(region._Tensors, "_gains", lambda *a: [2.0 * g for g in gains(*a)])

    report = snncc.verify(model, compiled(model), x)

    assert not report.ok
    assert {c.part for c in report.comparisons if not c.ok} == {"product"}
