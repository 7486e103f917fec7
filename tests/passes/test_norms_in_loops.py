"""Norms with statistics of each step inside of loops that feed back, and their gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.ir import norm_ops
from snncc.ir.local_gradient import LocalGradient
from snncc.ir.loop_call import LoopCall
from snncc.nn import ATan


class OfPotential(nn.Module):
    """The potential is normalised and carried on."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.spike = norm, ATan()

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = self.norm(0.5 * v + x[t])
            out.append(self.spike(v - 0.5))
            v = v - out[-1]
        return torch.stack(out)


class Aside(OfPotential):
    """The norm decides on spikes, and its values are a result too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v, out, seen = torch.zeros_like(x[0]), [], []
        for t in range(x.shape[0]):
            h = 0.75 * v + x[t]
            seen.append(self.norm(h))
            out.append(self.spike(seen[-1] - 0.5))
            v = h * (1.0 - out[-1])
        return torch.stack(out), torch.stack(seen)


class Recurrent(OfPotential):
    """Spikes come back through weights, and their sum is normalised."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm)
        self.linear = nn.Linear(4, 4, bias=False)  # a norm takes a bias away

    def forward(self, x: Tensor) -> Tensor:
        v, s, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = 0.5 * v + self.norm(self.linear(s) + x[t])
            s = self.spike(v - 0.5)
            v = v - s
            out.append(v)
        return torch.stack(out)


class OfEachStep(OfPotential):
    """Each step has a norm of its own."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm)
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(6))
        del self.norm

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for t in range(6):
            v = self.norms[t](0.5 * v + x[t])
            out.append(self.spike(v - 0.5))
            v = v - out[-1]
        return torch.stack(out)


class Transposed(OfPotential):
    """The state has its channels first: a kernel lays it out in another way than torch."""

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0].t()), []
        for t in range(x.shape[0]):
            v = self.norm((0.5 * v + x[t].t()).t()).t()
            out.append(self.spike(v - 0.5))
            v = v - out[-1]
        return torch.stack(out)


def frozen() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    norm.weight.requires_grad_(False)
    return norm


NORMS = {
    "affine": lambda: nn.BatchNorm1d(4, momentum=0.3),
    "plain": lambda: nn.BatchNorm1d(4, affine=False),
    "frozen": frozen,
    "untracked": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "images": lambda: nn.BatchNorm2d(4, eps=1e-3),
}
CASES = [(OfPotential, name) for name in NORMS] + [
    (make, "affine") for make in (Aside, Recurrent, OfEachStep, Transposed)
]


def gradients(model: nn.Module, call: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return what a call gives and leaves behind, and the gradients of inputs and parameters."""
    results = call(x)
    results = [*results] if isinstance(results, tuple) else [results]
    cotangents = [torch.randn(r.shape, generator=torch.Generator().manual_seed(i), dtype=r.dtype)
                  for i, r in enumerate(results)]  # fmt: skip
    leaves = [p for p in model.parameters() if p.requires_grad]
    wanted = [*([x] if x.requires_grad else []), *leaves]
    return [*results, *model.buffers()], list(torch.autograd.grad(results, wanted, cotangents))


@pytest.mark.parametrize("needs", [True, False], ids=["input too", "parameters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("make", "name"), CASES, ids=[f"{m.__name__}-{n}" for m, n in CASES])
def test_norms_of_steps_have_a_rule(make, name, dtype, needs):
    """Values and running statistics bit by bit, twice; gradients as autograd's up to sums."""
    torch.manual_seed(0)
    norm = NORMS[name]()
    model = make(norm).to(dtype)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    twin = copy.deepcopy(model)
    fast = snncc.compile(twin)
    near = 1e-4 if dtype == torch.float32 else 1e-11  # some sums are of numbers that cancel
    shape = (6, 5, 4, *((3, 2) if name == "images" else ()))
    for _ in range(2):
        x = torch.randn(shape, dtype=dtype, requires_grad=needs)
        if not (needs or any(p.requires_grad for p in model.parameters())):
            continue
        expected, grads = gradients(model, model, x)
        actual, found = gradients(twin, fast, x.detach().requires_grad_(needs))
        agree = torch.allclose if make is Transposed else torch.equal
        for a, b in zip(actual, expected, strict=True):
            assert agree(a, b)
        for a, b in zip(found, grads, strict=True):
            torch.testing.assert_close(a, b, rtol=near, atol=near)


def test_no_step_asks_autograd():
    """The reverse loop has the gradient of the norm, and one sum over all steps of its weight's."""
    model = OfPotential(nn.BatchNorm1d(4))
    fast = snncc.compile(model, example_inputs=(torch.randn(6, 5, 4),))
    (compiled,) = fast._specializations
    (call,) = [n.target for n in compiled.graph.nodes if hasattr(n.target, "adjoint")]
    training, reverse = call.loops[1:]
    targets = [n.target for n in reverse.body.nodes]

    assert norm_ops.normalized in [n.target for n in training.body.nodes]
    assert norm_ops.norm_gradient in targets
    assert torch.add not in targets
    assert not any(isinstance(t, LocalGradient) for t in targets)


def test_sizes_of_batches():
    """Without samples there is nothing to normalise; of one sample there are no statistics."""
    model = OfPotential(nn.BatchNorm1d(4))
    fast = snncc.compile(model)
    fast(torch.randn(6, 5, 4))
    before = model.norm.running_mean.clone()
    y = fast(torch.randn(6, 0, 4, requires_grad=True))
    y.sum().backward()

    assert y.shape == (6, 0, 4)
    assert torch.equal(model.norm.running_mean, before)
    assert not model.norm.weight.grad.any()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fast(torch.randn(6, 1, 4))
    assert torch.equal(model.norm.running_mean, before)


class Masked(nn.Module):
    """The potentials of samples that fire act on all: what autograd differentiates at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            v = 0.5 * v + x_t
            s = self.spike(v - 0.5)
            v = v + 0.125 * v[s.sum(1) > 1].sum(0)
            out.append(s)
        return torch.stack(out)


def test_nothing_is_computed_in_vain():
    """Training computes what autograd differentiates once, with its note."""
    fast = snncc.compile(Masked(), example_inputs=(torch.randn(6, 5, 4, requires_grad=True),))
    (compiled,) = fast._specializations
    loops = [n.target for n in compiled.graph.nodes if isinstance(n.target, LoopCall)]
    assert loops
    for training in (loop.adjoint.training for loop in loops):
        read = {r.node for r in training.results} | {c.update for c in training.carries}
        calls = [n for n in training.body.nodes if n.op == "call_function"]
        assert [n.name for n in calls if not n.users and n.name not in read] == []
