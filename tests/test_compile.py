"""The public verbs on small networks: compile, verify, explain, and what they refuse."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from tests.models import Branching, Convolutional, Feedforward, Recurrent, Stateful


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the gradients of a quadratic loss with respect to all parameters."""
    loss = (model(x) ** 2).sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_training_follows_the_same_curve() -> None:
    """Twenty steps of SGD on both, from one seed, end at the same weights."""
    torch.manual_seed(0)
    model = Feedforward().double()
    twin = copy.deepcopy(model)
    fast = snncc.compile(twin)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, fast)]
    for step in range(20):
        x = torch.randn(5 + step % 3, 4, 5, dtype=torch.float64)
        for net, optimizer in zip((model, fast), optimizers, strict=True):
            optimizer.zero_grad()
            (net(x) ** 2).mean().backward()
            optimizer.step()

    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert len(fast.plans) == 1


def test_parameters_and_modes_are_shared() -> None:
    """The compiled module has the model's own parameters, state and training flag."""
    model = Convolutional()
    fast = snncc.compile(model)

    assert [id(p) for p in fast.parameters()] == [id(p) for p in model.parameters()]
    assert list(fast.state_dict()) == list(model.state_dict())
    fast.eval()
    assert not model.norm.training
    fast.double()
    assert model.fc.weight.dtype == torch.float64


def test_convolutional_network_in_training_mode() -> None:
    """Per-step batch statistics, running statistics and dropout masks are those of the loop."""
    torch.manual_seed(0)
    model = Convolutional()
    twin = copy.deepcopy(model)
    fast = snncc.compile(twin)
    x = torch.randn(4, 3, 2, 4, 4)
    for training in (True, True, False):
        model.train(training)
        fast.train(training)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        actual = fast(x)

        torch.testing.assert_close(actual, expected)
        for a, b in zip(model.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(b, a)


def test_state_survives_between_calls() -> None:
    """An attribute that carries the potential is read, written back and reset as in the loop."""
    model, twin = Stateful(), Stateful()
    fast = snncc.compile(twin)
    for length in (4, 6, 3):
        x = torch.randint(-8, 17, (length, 2, 3)) / 8

        assert torch.equal(model(x), fast(x))
        assert model.v is not None
        assert twin.v is not None
        assert torch.equal(model.v, twin.v)
    model.reset()
    twin.reset()
    x = torch.randint(-8, 17, (5, 2, 3)) / 8

    assert torch.equal(model(x), fast(x))


def test_half_precision_in_a_feedback_needs_leave() -> None:
    """A state that no kernel computes is refused with its line, or runs serially if allowed."""
    model = Recurrent().bfloat16()
    x = torch.randn(5, 2, 4).bfloat16()
    with pytest.raises(snncc.UnsupportedError, match=r"0\.5 \* v") as refusal:
        snncc.compile(model)(x)
    assert refusal.value.code == "unsupported.serial-recurrence"

    fast = snncc.compile(model, fallback="serial")

    torch.testing.assert_close(fast(x), model(x))
    assert [layer.kind for layer in fast.plans[0].layers] == ["serial"]


@pytest.mark.parametrize(
    ("model", "code"),
    [(Branching(), "capture.tensor-dependent-branch"), (nn.ReLU(), "unsupported.no-time-loop")],
    ids=["branch", "no-loop"],
)
def test_refusals(model: nn.Module, code: str) -> None:
    """What cannot be compiled exactly raises, with a stable code."""
    with pytest.raises(snncc.SnnccError) as refusal:
        snncc.compile(model)(torch.randn(5, 2, 3))

    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"tagret": "c"}, "option.unknown"),
        ({"target": "fortran"}, "option.target"),
        ({"mode": "async", "group_size": 0}, "option.async"),
        ({"mode": "async", "stop": "now"}, "option.async"),
        ({"mode": "async", "order_noise": -1.0}, "option.async"),
        ({"mode": "async", "refractory_dropout": 2}, "option.async"),
        ({"mode": "fpt", "order": "random"}, "option.async"),
        ({"num_threads": 0}, "option.num-threads"),
    ],
)
def test_options_are_checked(options: dict[str, Any], code: str) -> None:
    """A wrong option is an error at the call of compile."""
    with pytest.raises(snncc.SnnccError) as refusal:
        snncc.compile(Feedforward(), **options)

    assert refusal.value.code == code


def test_what_is_no_model_is_refused() -> None:
    """Neither a number nor a compiled model can be compiled."""
    with pytest.raises(snncc.OptionError):
        snncc.compile(3)  # type: ignore[arg-type]
    with pytest.raises(snncc.OptionError):
        snncc.compile(snncc.compile(Feedforward()))


def test_empty_sequence_is_refused() -> None:
    """No step at all is an error, not an empty result."""
    fast = snncc.compile(Feedforward())
    fast(torch.randn(4, 2, 5))
    fast(torch.randn(6, 2, 5))
    with pytest.raises(snncc.UnsupportedError) as refusal:
        fast(torch.randn(0, 2, 5))

    assert refusal.value.code == "unsupported.empty-sequence"


def test_nan_and_infinity_pass_through() -> None:
    """Values that are no numbers give what the serial code gives."""
    model = Feedforward()
    fast = snncc.compile(model)
    x = torch.randn(4, 2, 5)
    x[1, 0, 0], x[2, 1, 1] = float("nan"), float("inf")

    torch.testing.assert_close(fast(x), model(x), equal_nan=True)


@pytest.mark.parametrize("storage", ["auto", "recompute", "save"])
@pytest.mark.parametrize("target", ["c", "torch"])
def test_storage_and_target_do_not_change_gradients(storage: str, target: str) -> None:
    """Recomputed or saved, on kernels or on the reference: the same gradients."""
    torch.manual_seed(0)
    model = Feedforward().double()
    fast = snncc.compile(model, storage=storage, target=target)
    x = torch.randn(9, 3, 5, dtype=torch.float64)

    for a, b in zip(gradients(model, x), gradients(fast, x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9)


def test_verify_certifies_and_finds_faults() -> None:
    """A compiled model is certified; against other weights the certificate fails."""
    torch.manual_seed(0)
    model = Feedforward()
    fast = snncc.compile(model)
    x = torch.randn(6, 2, 5)

    report = snncc.verify(model, fast, x)

    assert report.ok, report
    assert {c.part for c in report.comparisons} == {"structure", "product", "kernel", "network"}
    assert "equivalent" in str(report.require())
    other = snncc.verify(Feedforward(), fast, x)
    assert not other.ok
    with pytest.raises(snncc.EquivalenceError):
        other.require()


def test_verify_leaves_the_model_alone() -> None:
    """Running statistics, attributes and random numbers are as before."""
    model = Convolutional()
    fast = snncc.compile(model)
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    x = torch.randn(4, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    assert snncc.verify(model, fast, x).ok
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(torch.get_rng_state(), generator)


def test_verify_without_gradients() -> None:
    """A model without parameters on an input without gradient has only values to compare."""
    model = Stateful()

    assert snncc.verify(model, snncc.compile(model), torch.randn(5, 2, 3)).ok


def test_explain_shows_equations_and_refusals() -> None:
    """What was found is shown with the user's names; a refusal is shown, not raised."""
    text = str(snncc.explain(Feedforward(), torch.randn(6, 2, 5)))

    assert "h1[t] = v1[t-1] * 0.9 + layer1[t]" in text
    assert "a spike sets it to 0" in text
    assert "fused time" in text
    refused = snncc.explain(Branching(), torch.randn(6, 2, 5))
    assert refused.plan is None
    assert "capture.tensor-dependent-branch" in str(refused)


def test_functions_are_models_too() -> None:
    """A plain function that closes over its parameters follows their updates."""
    weight = nn.Parameter(torch.tensor(0.5))

    def integrate(x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for x_t in x:
            v = weight * v + x_t
        return v

    fast = snncc.compile(integrate)
    x = torch.randn(5, 3)
    torch.testing.assert_close(fast(x), integrate(x))
    with torch.no_grad():
        weight.fill_(0.25)

    torch.testing.assert_close(fast(x), integrate(x))
    (gradient,) = torch.autograd.grad(fast(x).sum(), weight)
    torch.testing.assert_close(gradient, *torch.autograd.grad(integrate(x).sum(), weight))


def test_many_threads_compile_at_once() -> None:
    """Recording is serialised; each thread gets the right result."""
    torch.manual_seed(0)
    models = [Feedforward(hidden=4 + i) for i in range(4)]
    fasts = [snncc.compile(m) for m in models]
    x = torch.randn(5, 2, 5)
    results: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: fasts[i](x).detach()}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for i, model in enumerate(models):
        torch.testing.assert_close(results[i], model(x).detach())


def test_validation_runs_every_pass_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With SNNCC_VALIDATE the program is run before and after each pass, and agrees."""
    monkeypatch.setenv("SNNCC_VALIDATE", "1")
    model = Convolutional().eval()
    x = torch.randn(4, 3, 2, 4, 4)

    torch.testing.assert_close(snncc.compile(model)(x), model(x))


def test_dump_writes_every_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """SNNCC_DUMP leaves each stage as text in a folder of its own."""
    monkeypatch.setenv("SNNCC_DUMP", str(tmp_path))
    fast = snncc.compile(Feedforward(), example_inputs=(torch.randn(4, 2, 5),))

    files = {f.name for f in (tmp_path / "Feedforward").iterdir()}

    assert "report.txt" in files
    assert {name.split("-", 1)[1] for name in files - {"report.txt"}} == {
        "capture.txt", "reroll.txt", "separate-draws.txt", "hoist-stateless.txt",
        "simplify-step.txt", "fuse-time.txt", "differentiate.txt", "plan-storage.txt",
        "skip-zeros.txt", "pack-spikes.txt",
    }  # fmt: skip
    assert len(fast.plans) == 1


def test_labels_do_not_hide_the_time_axis() -> None:
    """A short sequence next to an argument with one value for each sample compiles."""

    def loss(x: Tensor, label: Tensor) -> Tensor:
        v, total = torch.zeros_like(x[0]), torch.zeros(())
        for x_t in x:
            v = 0.5 * v + x_t
            total = total + nn.functional.cross_entropy(v, label)
        return total

    fast = snncc.compile(loss)
    for steps in (2, 1, 3):
        x, label = torch.randn(steps, 2, 4), torch.tensor([1, 3])
        torch.testing.assert_close(fast(x, label), loss(x, label))


class Twice(nn.Module):
    """A parameter that is called like the input, and inputs that are keywords but for a line."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.5, 2.0, 3.0]))

    def forward(self, x, self_, in_, elapsed):
        v, out = torch.zeros(1, 3), []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t] * self.x + self_[t] * in_[t] * elapsed[t]
            out.append((v > 1).float())
        return torch.stack(out)


def test_inputs_and_parameters_may_have_any_name() -> None:
    """An input may be called like a parameter, or like a word of Python with an underscore."""
    model, inputs = Twice(), tuple(torch.rand(5, 1, 3) for _ in range(4))
    fast = snncc.compile(model)
    with torch.no_grad():
        stream = fast.stream(*inputs)
        steps = [stream(*(x[t] for x in inputs)) for t in range(5)]

    torch.testing.assert_close(fast(*inputs), model(*inputs), rtol=0, atol=0)
    torch.testing.assert_close(torch.stack(steps), model(*inputs), rtol=0, atol=0)
