"""Mode ``"online"``: gradients end at the step that they are of; steps train one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.errors import FormError, UnsupportedError
from snncc.nn import HDLIF, LIF, ATan

STEPS = 9


class Net(nn.Module):
    """Two layers of neurons and readouts; ``cut`` detaches the states as online training does."""

    def __init__(self, kind: str, *, cut: bool = False) -> None:
        super().__init__()
        self.kind, self.cut = kind, cut
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 8)
        self.feedback, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        self.decay = nn.Parameter(torch.rand(8))
        self.spike = ATan()

    def kept(self, state: Any) -> Any:
        return state.detach() if self.cut else state

    def forward(self, x: Tensor) -> Any:
        v, w = (
            None if self.kind == "none" else torch.zeros(x.shape[1], 8),
            torch.zeros(x.shape[1], 8),
        )
        s = torch.zeros(x.shape[1], 8)
        potential, total, best = torch.zeros(x.shape[1], 3), 0.0, torch.full((x.shape[1], 3), -9.0)
        out = []
        for t in range(x.shape[0]):
            current = self.first(x[t])
            if self.kind == "recurrent":
                current = current + self.feedback(self.kept(s))
            v = current if v is None else torch.sigmoid(self.decay) * self.kept(v) + current
            s = self.spike(v - 0.25)
            v = v * (1.0 - s)
            w = 0.75 * self.kept(w) + self.second(s)
            z = self.spike(w - 0.25)
            w = w - z
            y = self.out(z)
            potential = 0.5 * self.kept(potential) + y
            total = total + y
            best = torch.maximum(best, y)
            out.append(potential)
        return torch.stack(out), total, best


class Encoded(nn.Module):
    """Equal layers before the loop, in which nothing is to be cut."""

    def __init__(self, *, tied: bool = False, cut: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(1 if tied else 4)])
        self.tied, self.cut, self.spike = tied, cut, ATan()

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.layers) * (4 if self.tied else 1):
            x = torch.tanh(layer(x))
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v = 0.5 * (v.detach() if self.cut else v) + x_t
            out.append(self.spike(v - 0.1))
        return torch.stack(out)


def pair(made, **options) -> tuple[nn.Module, nn.Module, snncc.CompiledModule]:
    """Return a model, its twin with detached states, and the compiled model, of equal weights."""
    torch.manual_seed(0)
    model, twin = made(), made(cut=True)
    twin.load_state_dict(model.state_dict())
    return model, twin, snncc.compile(model, mode="online", **options)


def assert_same_gradients(expected: nn.Module, actual: nn.Module) -> None:
    for (name, p), q in zip(expected.named_parameters(), actual.parameters(), strict=True):
        if p.grad is None or q.grad is None:
            assert p.grad is None or not p.grad.any(), name
            assert q.grad is None or not q.grad.any(), name
        else:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["plain", "recurrent", "none"])
@pytest.mark.parametrize("steps", [2, STEPS])
def test_gradients_are_those_of_detached_states(kind, steps):
    """Outputs of all steps, sums and extremes have the gradients of the code that detaches."""
    model, twin, fast = pair(lambda **how: Net(kind, **how))
    x = torch.rand(steps, 4, 5)
    expected, actual = twin(x), fast(x)
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for results in (expected, actual):
        sum((y * torch.linspace(0, 1, y.numel()).view_as(y)).sum() for y in results).backward()

    assert_same_gradients(twin, model)
    assert snncc.verify(model, fast, x).ok


@pytest.mark.parametrize("kind", ["plain", "recurrent", "none"])
def test_a_stream_trains_step_by_step(kind):
    """Backward after each step adds up to the gradients of the sequence, in any cut of it."""
    model, twin, fast = pair(lambda **how: Net(kind, **how))
    x, weights = torch.rand(STEPS, 4, 5), torch.rand(STEPS, 4, 3)
    (twin(x)[0] * weights).sum().backward()
    step = fast.stream(x)
    for t in range(4):
        (step(x[t])[0] * weights[t]).sum().backward()
    (step.chunk(x[4:])[0] * weights[4:]).sum().backward()

    assert_same_gradients(twin, model)
    assert all(not value.requires_grad for value in step.state.values())
    with torch.no_grad():
        step.reset()
        assert not step(x[0])[0].requires_grad


def test_parameters_change_between_steps():
    """An optimiser step after each time step is the serial code's, also through norms."""
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Linear(5, 4), HDLIF(STEPS, 4, mem_bn=True, online=o)) for o in (0, 1)]
    made[1].load_state_dict(made[0].state_dict())
    x = torch.randn(STEPS, 6, 5)
    step = snncc.compile(made[0], mode="online").stream(x)
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in made]
    # The serial twin: the neuron of HDLIF by hand, its state kept between steps.
    linear, neuron = made[1]
    v = torch.zeros(6, 4)
    for t in range(STEPS):
        m = torch.sigmoid(neuron.decay[t]) * v + linear(x[t])
        mixed = torch.sigmoid(neuron.mem_ratio[t]) * m
        m = mixed + torch.sigmoid(neuron.bn_ratio[t]) * neuron.norm(m, t)
        s = torch.relu(m - torch.sigmoid(neuron.threshold)[t])
        v = (m - s).detach()
        y = step(x[t])
        torch.testing.assert_close(y, s, rtol=1e-5, atol=1e-6)
        for result, optimiser in zip((y, s), optimisers, strict=True):
            optimiser.zero_grad()
            result.square().sum().backward()
            optimiser.step()

    for a, b in zip(made[0].state_dict().values(), made[1].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_of_silent_steps_are_lost():
    """HD-LIF by hand: a neuron that fires blocks its past in either rule.

    Source: the HD-LIF paper's online rule against backpropagation through time, lam = th = 0.5.
    """
    currents = torch.tensor([0.25, 1.0, -0.5, 1.5]).view(4, 1, 1).requires_grad_()
    cotangents = torch.tensor([1.0, -0.5, 0.25, 2.0]).view(4, 1, 1)
    found = {}
    for mode in ("online", "fused"):
        fast = snncc.compile(HDLIF(4), mode=mode)
        (gradient,) = torch.autograd.grad(fast(currents), currents, cotangents)
        found[mode] = gradient.flatten().tolist()

    assert found == {"online": [0.0, -0.5, 0.0, 2.0], "fused": [-0.25, -0.5, 1.0, 2.0]}


def test_layers_are_no_time():
    """Equal layers before the loop keep their gradients; one that is repeated is refused."""
    model, twin, fast = pair(Encoded)
    x = torch.randn(STEPS, 3, 5)
    fast(x).sum().backward()
    twin(x).sum().backward()
    assert_same_gradients(twin, model)
    assert model.layers[0].weight.grad.any()

    _, _, fast = pair(lambda **how: Encoded(tied=True, **how))
    with pytest.raises(FormError) as error:
        fast(x)
    assert error.value.code == "form.online"
    assert error.value.location is not None


def test_layers_with_loops_of_their_own_are_cut():
    """Equal layers of neurons that take whole sequences are cut in time, not in depth."""
    torch.manual_seed(0)
    model = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(5, 5), LIF(0.5))])
    x = torch.randn(STEPS, 3, 5, requires_grad=True)
    y = snncc.compile(model, mode="online")(x)
    (gradient,) = torch.autograd.grad(y[5].sum(), x)

    assert gradient[5].any()
    assert not gradient[:5].any()


def test_too_few_steps_to_see_a_loop_are_refused():
    """A sequence whose loop cannot be seen has gradients through time, so it does not run."""
    _, _, fast = pair(lambda **how: Net("none", **how))
    fast(torch.rand(STEPS, 4, 5))
    with pytest.raises(FormError) as error:
        fast(torch.rand(1, 4, 5))
    assert error.value.code == "form.online"


def test_steps_with_gradients_are_not_made_alike():
    """A stream that trains does not leave out what tells the gradients of steps apart."""

    def model(x):
        v, out = torch.zeros_like(x[0]), []
        for t, x_t in enumerate(x):
            scaled = x_t.detach() if t % 3 == 0 else x_t
            v = 0.5 * v + torch.tanh(scaled)
            out.append(v)
        return torch.stack(out)

    x = torch.randn(12, 2, 3, requires_grad=True)
    with pytest.raises(UnsupportedError) as refusal:
        snncc.compile(model, mode="online").stream(x)
    assert refusal.value.code == "unsupported.stream"
