"""Custom gradients: whatever way a torch.autograd.Function is written, it is one node."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from snncc.errors import CaptureError
from snncc.frontend.capture import capture
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.tape import Tape
from tests.frontend.recordings import Net, check, names, randn


class MaskedWrite(torch.autograd.Function):
    scale = 10.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = torch.zeros_like(x)
        out[x > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g.clone() / (MaskedWrite.scale * torch.abs(x) + 1.0) ** 2


class NumberInContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        if x.requires_grad:
            ctx.save_for_backward(x)
            ctx.alpha = alpha
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x = ctx.saved_tensors[0]
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = ctx.alpha / 2 / (1 + (math.pi / 2 * ctx.alpha * x).pow_(2)) * g
        return gradient, None


class TensorInContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x
        return x.gt(0).float()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        g = g.clone()
        g[torch.abs(ctx.x) > 0.5] = 0
        return g


class ItemOfSavedConstant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: float) -> Tensor:
        out = (x > 0).float()
        ctx.save_for_backward(x, out, torch.tensor([gamma]))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, out, others = ctx.saved_tensors
        gamma = others[0].item()
        return g * (1 / gamma) * (1 / gamma) * (gamma - x.abs()).clamp(min=0) + 0 * out, None


class LearnableThreshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(x, threshold)
        return (x >= threshold).float()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, threshold = ctx.saved_tensors
        s = torch.sigmoid(4 * (x - threshold))
        gradient = g * s * (1 - s)
        return gradient, -gradient.sum()


class BroadcastGradient(LearnableThreshold):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, -g  # autograd sums it to the shape of the threshold


class SetupContext(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slope: float = 2.0) -> Tensor:
        return (x > 0).to(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, ctx.slope = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * torch.exp(-ctx.slope * x * x), None


class TwoResults(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Any:
        ctx.save_for_backward(x, w)
        mask = x > 0
        ctx.mark_non_differentiable(mask)
        return x * w, mask, None

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> Any:
        x, w = ctx.saved_tensors
        return g * w, g * x


class ReturnsItsArgument(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class CallsAnother(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return MaskedWrite.apply(x) - MaskedWrite.apply(-x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0].abs() < 1).float()


WIDTH = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5])


class ReadsOutsideTensor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > WIDTH * 0.1).float()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0].abs() < WIDTH)


spike = MaskedWrite.apply


def custom(tape: Tape) -> list[CustomGradient]:
    """Return the custom gradients of a tape, in order."""
    return [n.target for n in tape.graph.nodes if isinstance(n.target, CustomGradient)]


@pytest.mark.parametrize(
    "function",
    [
        spike,
        MaskedWrite.apply,
        lambda x: NumberInContext.apply(x, 2.0),
        TensorInContext.apply,
        lambda x: ItemOfSavedConstant.apply(x, 0.7),
        lambda x: LearnableThreshold.apply(x, x.mean()),
        lambda x: BroadcastGradient.apply(x, x.mean()),
        SetupContext.apply,
        lambda x: SetupContext.apply(x, 3.0),
        lambda x: TwoResults.apply(x, x.sin())[0],
        lambda x: ReturnsItsArgument.apply(x) * x,
        CallsAnother.apply,
        ReadsOutsideTensor.apply,
    ],
)
def test_function_is_one_node(function: Any) -> None:
    """Values and gradients are the user's own, on other data and at another batch size."""
    tape = check(lambda x: function(x * 2), randn(3, 5), again=(randn(7, 5),))

    assert len(custom(tape)) == 1


def test_graphs_are_canonical() -> None:
    """Masked writes and clones of the user's code are pure operators in both graphs."""
    (function,) = custom(check(spike, randn(3, 5)))

    def text(graph: torch.fx.Graph) -> list[str]:
        return [n.target.__name__ for n in graph.nodes if n.op == "call_function"]

    assert text(function.forward) == ["full_like", "gt", "where"]
    assert text(function.backward) == ["abs", "mul", "add", "pow", "div"]


def test_calls_of_all_steps_are_equal() -> None:
    """The same function in every step is the same target, also in another recording."""

    def model(x: Tensor) -> Tensor:
        return sum(spike(x[t]) for t in range(4))

    first, second = custom(check(model, randn(4, 3))), custom(check(model, randn(4, 5)))

    assert all(f is first[0] for f in first)
    assert second[0] == first[0]


def test_numbers_tell_functions_apart() -> None:
    """Another number in the context, or on the class, is another function."""

    def model(x: Tensor) -> Tensor:
        y = NumberInContext.apply(x, 2.0) + NumberInContext.apply(x, 3.0)
        MaskedWrite.scale = 25.0
        y = y + spike(x)
        MaskedWrite.scale = 10.0
        return y + spike(x)

    functions = custom(capture(model, (randn(3),), {}))

    assert len(set(functions)) == 4


def test_class_attribute_is_read_at_capture() -> None:
    """A hyper-parameter on the class has the value that it has when the run is recorded."""
    before = custom(capture(spike, (randn(3),), {}))
    MaskedWrite.scale = 5.0
    after = custom(capture(spike, (randn(3),), {}))
    MaskedWrite.scale = 10.0

    assert before != after


def test_parameter_as_threshold_gets_its_gradient() -> None:
    """A second tensor argument has a gradient of its own."""
    net = Net(
        lambda self, x: LearnableThreshold.apply(x, self.threshold) * x,
        threshold=torch.nn.Parameter(torch.tensor(0.3)),
    )

    check(net, randn(3, 5), again=(randn(7, 5),))


def test_surrogate_under_no_grad_has_no_gradient() -> None:
    """Under no_grad a spike is followed by a detach."""

    def model(x: Tensor) -> Tensor:
        with torch.no_grad():
            s = spike(x)
        return x * s

    assert names(check(model, randn(3, 5))) == ["MaskedWrite", "detach", "mul"]


def test_straight_through_is_plain_operators() -> None:
    """The detach trick needs no custom gradient."""

    def model(x: Tensor) -> Tensor:
        soft = torch.sigmoid(4 * x)
        return ((x > 0).float() - soft).detach() + soft

    assert custom(check(model, randn(3, 5))) == []


def test_class_made_in_the_run_is_recorded() -> None:
    """A Function that is defined while the model runs is seen as well."""

    def model(x: Tensor) -> Tensor:
        class Local(MaskedWrite):
            pass

        return Local.apply(x)

    assert len(custom(check(model, randn(3, 5)))) == 1


def test_recorded_run_has_its_gradient() -> None:
    """The result of the recorded run itself can be differentiated."""
    x = randn(3, 5)
    result = capture(lambda x: NumberInContext.apply(x * 2, 2.0), (x,), {}).result

    (expected,) = torch.autograd.grad(NumberInContext.apply(x * 2, 2.0).sum(), x)

    assert torch.equal(torch.autograd.grad(result.sum(), x)[0], expected)


def test_functions_are_themselves_again_afterwards() -> None:
    """Recording leaves no trace on the classes, also after an error."""
    before = dict(vars(SetupContext)), dict(vars(BroadcastGradient))
    capture(SetupContext.apply, (randn(3),), {})
    with pytest.raises(ZeroDivisionError):
        capture(lambda x: 1 / 0, (randn(3),), {})

    assert (dict(vars(SetupContext)), dict(vars(BroadcastGradient))) == before


class RandomGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        noise = torch.rand_like(x)
        ctx.save_for_backward(noise)
        return x * noise

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0]


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (RandomGradient, "Its gradient depends on random numbers that 'forward' has drawn."),
        (InPlace, "It changes its arguments in place."),
        (NoBackward, "It has no 'backward'."),
    ],
)
def test_refuses_function(function: Any, reason: str) -> None:
    """What cannot be one pure node is refused, with the reason."""
    with pytest.raises(CaptureError, match="cannot be recorded") as caught:
        capture(lambda x: function.apply(x * 1), (randn(3),), {})

    assert caught.value.code == "capture.custom-gradient"
    assert caught.value.notes == (reason,)
