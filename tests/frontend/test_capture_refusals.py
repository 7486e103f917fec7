"""What cannot be recorded is refused with the user's line, the reason and a remedy."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from snncc.errors import SnnccError
from snncc.frontend.capture import capture
from tests.frontend.recordings import Net, randn

WEIGHT = nn.Parameter(torch.ones(4))


def branch(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def loop(x: Tensor) -> Tensor:
    while x.abs().max() > 0.1:
        x = x * 0.5
    return x


def number_steers(x: Tensor) -> Tensor:
    return x * 2 if x.max().item() > 1 else x


def number_returns(x: Tensor) -> Tensor:
    return x * x.mean().item()


def number_is_returned(x: Tensor) -> Any:
    return x, x.sum().item()


def float_of(x: Tensor) -> Tensor:
    return x * float(x.mean())


def to_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() * 2)


def index_with(x: Tensor) -> Tensor:
    return x[int(x.argmax()) // 4]


def backward(x: Tensor) -> Tensor:
    loss = (x * WEIGHT).sum()
    loss.backward()
    return loss


def gradient(x: Tensor) -> Tensor:
    return torch.autograd.grad((x * WEIGHT).sum(), WEIGHT)[0]


def optimizer(x: Tensor) -> Tensor:
    torch._foreach_mul_([WEIGHT.data], 2.0)
    return x * WEIGHT


def hook(x: Tensor) -> Tensor:
    y = x * WEIGHT
    y.register_hook(lambda g: g * 2)
    return y


def hook_of_node(x: Tensor) -> Tensor:
    y = x * WEIGHT
    assert y.grad_fn is not None
    y.grad_fn.register_hook(lambda *gradients: None)
    return y


def parameter(x: Tensor) -> Tensor:
    return x * nn.Parameter(torch.ones(4))


def lazy_layer(x: Tensor) -> Tensor:
    return nn.Linear(4, 4)(x)


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu"):
        return torch.nonzero(x)


def generator(x: Tensor) -> Tensor:
    return x + torch.rand(4, generator=torch.Generator())


def as_strided(x: Tensor) -> Tensor:
    return torch.as_strided(x, (2, 2), (1, 2))


def new_data(x: Tensor) -> Tensor:
    y = x * 2
    y.data = x
    return y


def vmap(x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row * 2)(x)


def thread(x: Tensor) -> Tensor:
    results: list[Tensor] = []
    worker = threading.Thread(target=lambda: results.append(x * WEIGHT))
    worker.start()
    worker.join()
    return results[0] + 1


def returns_set(x: Tensor) -> Any:
    return {x * 2}


def returns_function(x: Tensor) -> Any:
    y = x * 2
    return lambda: y


def returns_generator(x: Tensor) -> Any:
    return (row * 2 for row in x)


def catches_everything(x: Tensor) -> Tensor:
    try:
        return x if x.sum() > 0 else -x
    except Exception:
        return x


CASES = [
    (branch, "capture.tensor-dependent-branch", "x.sum() > 0"),
    (loop, "capture.tensor-dependent-branch", "x.abs().max() > 0.1"),
    (catches_everything, "capture.tensor-dependent-branch", "x.sum() > 0"),
    (number_steers, "capture.value-left-torch", "x.max().item()"),
    (number_returns, "capture.value-left-torch", "x.mean().item()"),
    (number_is_returned, "capture.value-left-torch", "x.sum().item()"),
    (float_of, "capture.value-left-torch", "float(x.mean())"),
    (to_numpy, "capture.value-left-torch", "x.detach().numpy()"),
    (index_with, "capture.value-left-torch", "int(x.argmax())"),
    (backward, "capture.backward-inside", "loss.backward()"),
    (gradient, "capture.backward-inside", "torch.autograd.grad((x * WEIGHT).sum(), WEIGHT)"),
    (optimizer, "capture.backward-inside", "torch._foreach_mul_([WEIGHT.data], 2.0)"),
    (hook, "capture.tensor-hook", "y.register_hook(lambda g: g * 2)"),
    (hook_of_node, "capture.tensor-hook", "y.grad_fn.register_hook(lambda *gradients: None)"),
    (parameter, "capture.parameter-inside", "nn.Parameter(torch.ones(4))"),
    (lazy_layer, "capture.parameter-inside", "nn.Linear(4, 4)"),
    (autocast, "unsupported.autocast", "torch.nonzero(x)"),
    (generator, "unsupported.generator", "torch.rand(4, generator=torch.Generator())"),
    (as_strided, "unsupported.memory", "torch.as_strided(x, (2, 2), (1, 2))"),
    (new_data, "unsupported.memory", "y.data"),
    (vmap, "unsupported.function-transform", "row * 2"),
    (thread, "capture.unrecorded-tensor", "results[0] + 1"),
]


@pytest.mark.parametrize(("function", "code", "marked"), CASES, ids=[f.__name__ for f, *_ in CASES])
def test_refuses(function: Callable[..., Any], code: str, marked: str) -> None:
    """The error has a stable code, the user's line with a caret under the fault, and a remedy."""
    with pytest.raises(SnnccError) as caught:
        capture(function, (randn(4, 4).detach(),), {})

    error = caught.value
    assert error.code == code
    assert error.location is not None
    assert error.location.function in (function.__name__, "<lambda>")
    assert error.location.source[error.location.column : error.location.end_column] == marked
    assert error.hints or error.notes


def test_text_of_a_refusal() -> None:
    """The whole text, as the user sees it."""
    with pytest.raises(SnnccError) as caught:
        capture(branch, (randn(4),), {})

    lines = str(caught.value).splitlines()
    assert lines[0] == "The value of a tensor decides what the program does next."
    assert lines[1].endswith(f"line {branch.__code__.co_firstlineno + 1}, in branch")
    assert lines[2].endswith("| if x.sum() > 0:")
    assert lines[3].endswith("|    ^^^^^^^^^^^")
    assert lines[4:] == [
        "  Note: snncc compiles code whose control flow does not depend on tensor values.",
        "  Hint: Select with 'torch.where(condition, a, b)'.",
        "  Code: capture.tensor-dependent-branch",
    ]


@pytest.mark.filterwarnings("ignore")
def test_refuses_scripted_function() -> None:
    """A scripted function hides its operators from the recorder; it is noticed nevertheless."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(_double)
    for x in (randn(3), randn(3).detach()):
        for _ in range(3):  # later calls run another executor
            with pytest.raises(SnnccError, match="where it cannot be recorded") as caught:
                capture(Net(lambda self, x: scripted(x) + 1), (x,), {})

    assert caught.value.code == "capture.unrecorded-operator"


def _double(x: Tensor) -> Tensor:
    return x * 2


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_refuses_backward_hook_of_a_module(kind: str) -> None:
    """It would never run; a forward hook is recorded."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, y: y * 2)
    capture(model, (randn(2, 3),), {})
    getattr(model[0], kind)(lambda module, *gradients: None)
    with pytest.raises(SnnccError, match="Module '0' has a backward hook") as caught:
        capture(model, (randn(2, 3),), {})

    assert caught.value.code == "capture.tensor-hook"


@pytest.mark.parametrize("model", [returns_set, returns_function, returns_generator])
def test_refuses_unknown_return_type(model: Callable[..., Any]) -> None:
    """Tensors inside an object that cannot be made anew would be frozen."""
    with pytest.raises(SnnccError, match="inside an object of class") as caught:
        capture(model, (randn(3),), {})

    assert caught.value.code == "capture.output"


@pytest.mark.parametrize("draw", [random.random, numpy.random.rand])
def test_refuses_random_numbers_of_python(draw: Callable[[], float]) -> None:
    """A number that Python draws would be the same in every call."""
    with pytest.raises(SnnccError) as caught:
        capture(lambda x: x * float(draw()), (randn(3),), {})

    assert caught.value.code == "capture.python-random"


def test_errors_of_the_user_are_passed_on() -> None:
    """What fails in eager code fails in the same way."""
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        capture(lambda x: x @ x, (randn(3, 4),), {})


def test_values_that_depend_on_constants_may_leave() -> None:
    """Constants, sizes and factories are the same in every run."""

    def model(x: Tensor) -> Tensor:
        steps = torch.arange(3)
        if steps.sum() == 3 and torch.linspace(0, 1, 3)[1].item() == 0.5 and x.shape[0] > 1:
            x = x * float(torch.exp(torch.tensor(0.0)))
        return x * sum(int(s) for s in steps) + torch.tensor(steps.tolist()).numpy().sum()

    capture(model, (randn(3),), {})


def test_model_is_restored_after_a_refusal() -> None:
    """A refused run leaves nothing behind."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.v = x * 2
        self.buffer.add_(1)
        return branch(x)

    model = Net(forward, v=0.0)
    model.register_buffer("buffer", torch.zeros(2))
    with pytest.raises(SnnccError):
        capture(model, (randn(4),), {})

    assert model.v == 0.0
    assert torch.equal(model.buffer, torch.zeros(2))
