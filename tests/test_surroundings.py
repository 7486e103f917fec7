"""What surrounds a compiled model: defaults, modes and hooks of torch, copies, what is traced."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.fake_quantize import default_fused_per_channel_wt_fake_quant
from torch.nn.modules.module import register_module_forward_hook

import snncc
from snncc.nn import ATan


def starting_at_zeros(x: Tensor) -> Tensor:
    """Return a potential whose type is the default one."""
    v, out = torch.zeros(x.shape[1:]), []
    for x_t in x:
        v = 0.5 * v + x_t
        out.append(v)
    return torch.stack(out)


def asking(x: Tensor) -> Tensor:
    """Return another result where there are gradients."""
    scale = 2.0 if torch.is_grad_enabled() else 1.0
    return scale * starting_at_zeros(x)


class Spiking(nn.Module):
    """A layer of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.spike = nn.Linear(5, 4), ATan()

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros_like(self.layer(x[0])), []
        for x_t in x:
            h = 0.5 * v + self.layer(x_t)
            s = self.spike(h - 0.25)
            v = h * (1.0 - s)
            out.append(s)
        return torch.stack(out)


class Quantised(nn.Module):
    """A layer whose weights are rounded in training, to ranges that are observed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rounded = nn.Linear(5, 4), default_fused_per_channel_wt_fake_quant()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.rounded(self.layer.weight)
        return starting_at_zeros(nn.functional.linear(x, weight, self.layer.bias))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 2, 5)


@pytest.mark.parametrize("is_called_before", [False, True])
def test_another_default_device(x: Tensor, is_called_before: bool) -> None:
    """Kernels run in memory of the device of the tensors, wherever others are made."""
    net = Spiking()
    expected = net(x)
    (wanted,) = torch.autograd.grad(expected.sum(), net.layer.weight)
    fast = snncc.compile(net, example_inputs=(x,) if is_called_before else None)
    with torch.device("meta"):
        y = fast(x)
        (gradient,) = torch.autograd.grad(y.sum(), net.layer.weight)
        step = fast.stream(x)
        row = step(x[0])
        step.reset(torch.ones(2, dtype=torch.bool, device="cpu"))

    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradient, wanted)
    assert row.device.type == "cpu"


def test_another_default_type(x: Tensor) -> None:
    """A state without a type is of the default type, which may change between calls."""
    fast = snncc.compile(starting_at_zeros)
    before = fast(x)
    torch.set_default_dtype(torch.float64)
    try:
        after, expected = fast(x), starting_at_zeros(x)
    finally:
        torch.set_default_dtype(torch.float32)

    assert before.dtype is torch.float32
    assert torch.equal(after, expected)


def test_code_that_asks_for_gradients(x: Tensor) -> None:
    """What the model is told is what it would have been told outside of a recording."""
    fast = snncc.compile(asking)
    for is_enabled in (False, True, False):
        with torch.set_grad_enabled(is_enabled):
            assert torch.equal(fast(x), asking(x))

    assert torch.is_grad_enabled()


def test_hooks_of_all_modules(x: Tensor) -> None:
    """A hook of all modules is part of the program while it is there."""
    net = Spiking()
    fast = snncc.compile(net)
    before = fast(x)
    hook = register_module_forward_hook(
        lambda module, _, y: 2 * y if isinstance(module, nn.Linear) else None
    )
    during, expected = fast(x), net(x)
    hook.remove()

    torch.testing.assert_close(during, expected)
    assert torch.equal(fast(x), before)


def test_backward_hooks_are_refused_later_too(x: Tensor) -> None:
    """A hook on gradients inside of a model that was called before does not get lost."""
    net = Spiking()
    fast = snncc.compile(net)
    fast(x)
    net.layer.register_full_backward_hook(lambda *_: None)
    with pytest.raises(snncc.CaptureError) as error:
        fast(x)

    assert error.value.code == "capture.tensor-hook"


def test_hooks_on_the_compiled_model(x: Tensor) -> None:
    """Hooks on the compiled model run around it, those on its state with that of the model."""
    fast, seen = snncc.compile(Spiking()), []
    fast.register_full_backward_pre_hook(lambda *_: seen.append("before"))
    fast.register_full_backward_hook(lambda *_: seen.append("after"))
    fast.register_state_dict_post_hook(lambda *_: seen.append("state"))
    fast(x.requires_grad_()).sum().backward()
    fast.state_dict()

    assert seen == ["before", "after", "state"]


def test_the_training_flag_is_one() -> None:
    """Whichever of both is set, the other shows it."""
    net = Spiking()
    fast = snncc.compile(net)
    net.eval()
    evaluated = fast.training
    fast.training = True

    assert not evaluated
    assert net.training


@pytest.mark.filterwarnings("ignore")  # of Dynamo itself
def test_compilation_in_place(x: Tensor) -> None:
    """``fast.compile()`` is about the compiled model, not the original."""
    net = Spiking()
    fast = snncc.compile(net)
    expected = fast(x)
    fast.compile(backend="eager")

    assert torch.equal(fast(x), expected)
    assert net._compiled_call_impl is None


@pytest.mark.parametrize(
    "call",
    [
        lambda fast, x: torch.export.export(fast, (x,)),
        lambda fast, x: fast(x.to("meta")),
    ],
    ids=["export", "meta"],
)
def test_tensors_without_values_show_no_model(call: Callable[..., Any], x: Tensor) -> None:
    """What is traced, or on no device, cannot be recorded."""
    with pytest.raises(snncc.UnsupportedError) as error:
        call(snncc.compile(Spiking()), x)

    assert error.value.code == "unsupported.tensor-kind"
    assert "Call the compiled model once" in str(error.value)


@pytest.mark.parametrize("model", ["neurons", "recurrent"])
def test_several_gradients_at_once_are_refused(model: str, x: Tensor) -> None:
    """Each tensor would show the kernel one of them."""
    net = Spiking() if model == "neurons" else Recurrent()
    y = snncc.compile(net)(x)
    with pytest.raises(snncc.UnsupportedError) as error:
        torch.autograd.grad(y, [*net.parameters()], torch.rand(2, *y.shape), is_grads_batched=True)

    assert error.value.code == "unsupported.function-transform"


class Recurrent(nn.Module):
    """A loop that stays one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for x_t in x:
            v = torch.tanh(self.layer(v) + x_t)
        return v


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_streams_are_not_copied(copied: Callable[..., Any], x: Tensor) -> None:
    """A copy would share buffers with the original, so there is none."""
    step = snncc.compile(Spiking()).stream(x)
    step(x[0])
    with pytest.raises(snncc.OptionError) as error:
        copied(step)

    assert error.value.code == "option.stream"


@pytest.mark.filterwarnings("ignore")  # torch is going to move its quantisation
def test_observers_that_make_room_for_their_values(x: Tensor) -> None:
    """Buffers that are empty before the first call, and have a row for each channel after it."""
    net = Quantised()
    twin = copy.deepcopy(net)
    fast = snncc.compile(net)
    for scale in (1.0, 2.0):
        net.layer.weight.data.mul_(scale)
        twin.layer.weight.data.mul_(scale)
        torch.testing.assert_close(fast(x), twin(x))

    assert all(map(torch.equal, net.buffers(), twin.buffers()))


def test_copies_of_learnable_dynamic_decays(x: Tensor) -> None:
    """What comes from a learnable decay has no history, so that it can be copied."""

    class Learnable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decay, self.spike = nn.Parameter(torch.tensor(0.9)), ATan()

        def forward(self, x: Tensor) -> Tensor:
            v, out = torch.zeros_like(x[0]), []
            for x_t in x:
                h = self.decay * v + x_t
                s = self.spike(h - 0.5)
                v = h * (1.0 - s)
                out.append(s)
            return torch.stack(out)

    fast = snncc.compile(Learnable(), mode="dynamic_decay", example_inputs=(x,))

    assert torch.equal(copy.deepcopy(fast)(x), fast(x))


def _by_layout(x: Tensor) -> Tensor:
    scale = 1.0 if x.is_contiguous() else 2.0
    v, values = torch.zeros(x.shape[1:]), []
    for t in range(x.shape[0]):
        v = 0.5 * v + scale * x[t]
        values.append(v)
    return torch.stack(values)


def test_code_may_ask_whether_its_input_is_contiguous() -> None:
    """A recording serves calls with the same answer, and no call records twice."""
    fast, x = snncc.compile(_by_layout), torch.rand(6, 5, 5)
    for given in (x, x.transpose(1, 2), x.clone(), x.flip(0).transpose(1, 2)):
        assert torch.equal(fast(given), _by_layout(given))
    assert len(fast.plans) == 2
