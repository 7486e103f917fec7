"""How recurrent loops may be called: states, layouts, frozen weights, repeated gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.nn import ATan
from tests import recurrent_models as models
from tests.recurrent_models import N


def pair(model: nn.Module) -> tuple[nn.Module, Any]:
    """Return a model in double precision and its compiled twin."""
    model = model.double()
    return model, snncc.compile(copy.deepcopy(model))


def leaf(*shape: int) -> Tensor:
    """Return a random leaf."""
    return (torch.randn(shape, dtype=torch.float64) * 1.5).requires_grad_()


def grads(results: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Return the gradients of a quadratic loss."""
    loss = sum((r**2).sum() for r in results)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("ends", ["state", "spikes", "both"])
def test_gradients_flow_through_first_and_last_states(ends: str) -> None:
    """Initial states get gradients; last states give them, with and without the sequence."""
    model, fast = pair(models.Cell())
    x, v, s = leaf(7, 3, N), leaf(3, N), leaf(3, N)

    def run(m: nn.Module) -> list[Tensor]:
        out, last = m(x, (v, s))
        results = {"state": [*last], "spikes": [out], "both": [out, *last]}[ends]
        return grads(results, [x, v, s, *m.parameters()])

    for a, b in zip(run(model), run(fast), strict=True):
        torch.testing.assert_close(b, a)


def test_a_sequence_in_pieces_is_the_sequence() -> None:
    """A loop that goes on from the last states of another gives the same, gradients included."""
    _, fast = pair(models.Cell())
    x, v = leaf(8, 3, N), leaf(3, N)
    s = torch.zeros(3, N, dtype=torch.float64)
    whole, _ = fast(x, (v, s))
    first, state = fast(x[:3], (v, s))
    second, _ = fast(x[3:], state)

    assert torch.equal(torch.cat([first, second]), whole)
    for a, b in zip(grads([whole], [x, v]), grads([first, second], [x, v]), strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x[:, :1].expand_as(x),
        lambda x: x.flip(0),
    ],
    ids=["batch first", "neurons first", "gaps", "expanded", "flipped"],
)
def test_inputs_of_any_layout(arrange: Any) -> None:
    """Strided and expanded inputs give what contiguous ones give."""
    model, fast = pair(models.Masked())
    x = leaf(6, 4, N)

    for a, b in zip(model(arrange(x)), fast(arrange(x)), strict=True):
        assert torch.equal(a, b)
    expected = grads(list(model(arrange(x))), [x, *model.parameters()])
    actual = grads(list(fast(arrange(x))), [x, *fast.parameters()])
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("frozen", ["back.weight", "back.bias", "inputs.weight", "all"])
def test_frozen_weights(frozen: str) -> None:
    """What does not require gradients gets none, and the rest is right."""
    model = models.OwnSpikes()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in (name, "all"))
    model, fast = pair(model)
    x = leaf(6, 3, N)
    left = [[p for p in m.parameters() if p.requires_grad] for m in (model, fast)]

    expected, actual = grads([model(x)], [x, *left[0]]), grads([fast(x)], [x, *left[1]])

    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(b, a)


def test_weights_alone_require_gradients() -> None:
    """Data without gradients: the usual training step."""
    model, fast = pair(models.Coupled())
    x = leaf(6, 3, N).detach()

    expected = grads([model(x)], [*model.parameters()])
    actual = grads([fast(x)], [*fast.parameters()])

    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(b, a)


def test_gradients_twice_through_one_graph() -> None:
    """A graph that is retained gives the same gradients again; they cannot be differentiated."""
    for make in (models.Delayed, lambda: models.Normed(nn.LayerNorm(N))):
        _, fast = pair(make())
        x = leaf(6, 3, N)
        loss = (fast(x) ** 2).sum()
        (first,) = torch.autograd.grad(loss, x, retain_graph=True)
        (second,) = torch.autograd.grad(loss, x, create_graph=True)

        assert torch.equal(first, second)
        with pytest.raises(snncc.UnsupportedError, match="differentiated again"):
            torch.autograd.grad((second**2).sum(), x)


def test_changed_results_are_noticed() -> None:
    """Results may be changed in place; a gradient that needs them as they were is refused."""
    _, fast = pair(models.OwnSpikes())
    x = leaf(6, 3, N)
    out = fast(x)
    out.mul_(2.0)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (out**2).sum().backward()


def test_results_do_not_share_memory_between_calls() -> None:
    """A later call leaves the results of an earlier one alone."""
    _, fast = pair(models.Cell())
    state = torch.zeros(3, N, dtype=torch.float64)
    x = leaf(6, 3, N).detach()
    with torch.no_grad():
        out, (v, s) = fast(x, (state, state))
        kept = [y.clone() for y in (out, v, s)]
        fast(-x, (v, s))

    assert all(torch.equal(a, b) for a, b in zip(kept, (out, v, s), strict=True))
    assert torch.equal(state, torch.zeros_like(state))


def test_training_follows_the_same_curve() -> None:
    """Steps of SGD on both, from one seed, end at the same weights."""
    torch.manual_seed(0)
    model, fast = pair(models.Adaptive())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, fast)]
    for step in range(10):
        x = torch.randn(6 + step % 3, 4, N, dtype=torch.float64) * 2
        for m, optimizer in zip((model, fast), optimizers, strict=True):
            optimizer.zero_grad()
            out, v = m(x)
            ((out.mean(0) - 0.3) ** 2).sum().add(0.01 * (v**2).sum()).backward()
            optimizer.step()

    for a, b in zip(model.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(b, a)


def test_memory_of_the_steps_is_free_after_backward() -> None:
    """Backward releases what forward kept, even while the loss is alive."""
    _, fast = pair(models.Normed(nn.LayerNorm(N)))
    x = leaf(6, 3, N)
    out = fast(x)
    function = out.grad_fn
    out.sum().backward()

    with pytest.raises(RuntimeError, match="already been freed"):
        function.saved_tensors  # noqa: B018


def test_loop_without_a_batch() -> None:
    """Neurons alone, a single state of each."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(N, N) * 0.5)
            self.fire = ATan()

        def forward(self, x: Tensor) -> Tensor:
            v = s = torch.zeros(N, dtype=x.dtype)
            out = []
            for x_t in x:
                v = 0.9 * v + x_t + self.w @ s
                s = self.fire(v - 0.5)
                v = v - 0.5 * s
                out.append(s)
            return torch.stack(out)

    model, fast = pair(Single())
    x = leaf(9, N)

    assert torch.equal(model(x), fast(x))
    expected = grads([model(x)], [x, *model.parameters()])
    for a, b in zip(expected, grads([fast(x)], [x, *fast.parameters()]), strict=True):
        torch.testing.assert_close(b, a)


def test_target_torch_runs_the_reference() -> None:
    """The reference interpreter runs the fused loop step by step, with gradients."""
    model = models.Adaptive().double()
    reference = snncc.compile(copy.deepcopy(model), target="torch")
    x = leaf(5, 3, N)

    for a, b in zip(model(x), reference(x), strict=True):
        assert torch.equal(a, b)
    assert reference.plans[0].layers[-1].kernel == "torch"
    expected = grads(list(model(x)), [x, *model.parameters()])
    actual = grads(list(reference(x)), [x, *reference.parameters()])
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(b, a)
