"""The nodes of NIR as modules of one time step, written as plain serial code.

Each takes what arrives at the node in one step and the node's state, and returns what leaves it and
the new state; a state of None is the start.  NIR states differential equations; a step of length
``dt`` is one step of forward Euler, and a spike resets the potential in the same step::

    v = v + dt / tau (v_leak - v + r x);   s = 1 if v > v_threshold else 0;   v = v_reset if s

which with ``decay = 1 - dt / tau`` and ``gain = r dt / tau`` is ``v = decay v + gain x + leak``.

Source: Pedersen et al. 2024, "Neuromorphic intermediate representation: a unified instruction set
    for interoperable brain-inspired computing", Nature Communications 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snncc.arguments import Check
from snncc.errors import OptionError

State: TypeAlias = Any
Spike: TypeAlias = Callable[[Tensor], Tensor]


class AboveFunction(torch.autograd.Function):
    """The step that NIR fires by, 1 above 0 and not at it, with the derivative of an arctangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return 1 where ``x > 0``, else 0."""
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the incoming gradient over ``1 + (pi x) ** 2``."""
        (x,) = ctx.saved_tensors
        slope = math.pi * x
        return grad_outputs[0] / (1 + slope * slope)


def above(x: Tensor) -> Tensor:
    """Return 1 where ``x > 0``, else 0; differentiable by a surrogate gradient."""
    s: Tensor = AboveFunction.apply(x)  # type: ignore[no-untyped-call]
    return s


class Stage(nn.Module):
    """One node in one step.

    Attributes:
        keeps_state: Whether what leaves it may wait for the next step: whether it is a neuron.
        size: Shape of what leaves it without the batch, or None where the node does not say.
    """

    keeps_state = False
    size: tuple[int, ...] | None = None

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return what leaves the node, and its new state."""
        raise NotImplementedError

    def hold(self, **arrays: Any) -> None:
        """Keep numbers of a node: one number where all are equal, else a buffer."""
        for name, array in arrays.items():
            values = torch.as_tensor(array)
            if values.numel() > 0 and bool((values == values.flatten()[0]).all()):
                setattr(self, name, float(values.flatten()[0]))
            else:
                self.register_buffer(name, values.to(torch.get_default_dtype()))


class Stateless(Stage):
    """A node without state: a function of what arrives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Apply the function."""
        return self.function(x), state


class Neuron(Stage):
    """A node whose state has the shape of its parameters."""

    keeps_state = True
    decay: Any
    gain: Any
    leak: Any

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def start(self, x: Tensor) -> Tensor:
        """Return zeros, one for each sample and neuron."""
        return torch.zeros(x.shape[0], *self.size or (), dtype=x.dtype, device=x.device)

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """Return the potential after one step of forward Euler."""
        drive = self.gain * x
        if not isinstance(self.leak, float) or self.leak != 0.0:
            drive = drive + self.leak
        charged: Tensor = self.decay * v + drive
        return charged


class Integrator(Neuron):
    """``LI``, and ``I`` with a decay of 1: its potential leaves it."""

    def __init__(self, size: tuple[int, ...], decay: Any, gain: Any, leak: Any) -> None:
        super().__init__(size)
        self.hold(decay=decay, gain=gain, leak=leak)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Integrate."""
        v = self.charge(self.start(x) if state is None else state, x)
        return v, v


class Firing(Neuron):
    """``LIF``, and ``IF`` with a decay of 1: its spikes leave it."""

    v_threshold: Any
    v_reset: Any

    def __init__(
        self, integrator: Integrator, v_threshold: Any, v_reset: Any, spike: Spike
    ) -> None:
        super().__init__(integrator.size or ())
        self.hold(decay=integrator.decay, gain=integrator.gain, leak=integrator.leak)
        self.hold(v_threshold=v_threshold, v_reset=v_reset)
        self.spike = spike

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Integrate, fire and reset."""
        h = self.charge(self.start(x) if state is None else state, x)
        s = self.spike(h - self.v_threshold)
        if isinstance(self.v_reset, float) and self.v_reset == 0.0:
            return s, h * (1.0 - s)
        return s, h * (1.0 - s) + s * self.v_reset


class Current(Stage):
    """``CubaLIF`` and ``CubaLI``: a synaptic current drives a neuron."""

    keeps_state = True

    def __init__(self, synapse: Integrator, neuron: Neuron) -> None:
        super().__init__()
        self.synapse, self.neuron = synapse, neuron
        self.size = neuron.size

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Integrate the current, then the neuron that sees the new current."""
        current, potential = (None, None) if state is None else state
        i, current = self.synapse(x, current)
        y, potential = self.neuron(i, potential)
        return y, (current, potential)


class Delay(Stage):
    """What arrived some steps ago; zeros before."""

    def __init__(self, size: tuple[int, ...], steps: int) -> None:
        super().__init__()
        self.size, self.steps = size, steps

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the oldest value and keep the newest."""
        if self.steps == 0:
            return x, state
        held = [torch.zeros_like(x) for _ in range(self.steps)] if state is None else state
        return held[0], [*held[1:], x]


class NodeReader:
    """Makes the stage of a node.

    Args:
        dt: Length of a step in the units of the node's time constants, seconds.
        spike: The spike function, of ``v - v_threshold``.
    """

    def __init__(self, dt: float, spike: Spike) -> None:
        self.dt, self.spike = dt, spike

    def stage(self, name: str, node: Any) -> Stage:
        """Return the stage of a node of any type.

        Raises:
            OptionError: There is no such stage.
        """
        read = getattr(self, f"read_{type(node).__name__.lower()}", None)
        if read is None:
            raise refused(f"Node '{name}' is a {type(node).__name__}, for which there is no code.")
        stage: Stage = read(name, node)
        return stage

    def read_linear(self, _: str, node: Any) -> Stage:
        """``y = W x``."""
        return Stateless(_product(nn.Linear, node.weight, None))

    def read_affine(self, _: str, node: Any) -> Stage:
        """``y = W x + b``."""
        return Stateless(_product(nn.Linear, node.weight, node.bias))

    def read_scale(self, _: str, node: Any) -> Stage:
        """``y = k x``, element by element."""
        stage = _Scale()
        stage.hold(scale=node.scale)
        return stage

    def read_conv1d(self, name: str, node: Any) -> Stage:
        """A convolution over one axis."""
        return Stateless(_convolution(nn.Conv1d, name, node))

    def read_conv2d(self, name: str, node: Any) -> Stage:
        """A convolution over two axes."""
        return Stateless(_convolution(nn.Conv2d, name, node))

    def read_avgpool2d(self, _: str, node: Any) -> Stage:
        """The mean of each window; padding counts as zeros."""
        return Stateless(
            nn.AvgPool2d(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
        )

    def read_sumpool2d(self, _: str, node: Any) -> Stage:
        """The sum of each window."""
        return Stateless(
            nn.AvgPool2d(
                _pair(node.kernel_size),
                _pair(node.stride),
                _pair(node.padding),
                divisor_override=1,
            )
        )

    def read_flatten(self, name: str, node: Any) -> Stage:
        """Axes merged into one; the batch is not counted."""
        shape = next(iter(node.output_type.values()))
        if shape is None:
            raise refused(f"Node '{name}', a Flatten, does not know the shape of its input.")
        size = tuple(int(n) for n in shape)
        stage = Stateless(lambda x: x.reshape(x.shape[0], *size))
        stage.size = size
        return stage

    def read_threshold(self, _: str, node: Any) -> Stage:
        """A spike wherever the input is above a threshold."""
        stage = _Threshold(self.spike)
        stage.hold(threshold=node.threshold)
        return stage

    def read_delay(self, name: str, node: Any) -> Stage:
        """A delay by whole steps, the same for all elements."""
        steps = torch.as_tensor(node.delay, dtype=torch.float64) / self.dt
        count = int(steps.flatten()[0].round()) if steps.numel() else 0
        if count < 0 or not torch.allclose(steps, steps.new_tensor(float(count)), atol=1e-3):
            raise refused(
                f"The delays of node '{name}' are not all the same number of steps of {self.dt} s.",
                "Choose a step 'dt' that divides them, and one node for each delay.",
            )
        return Delay(_size(node.delay), count)

    def read_i(self, name: str, node: Any) -> Stage:
        """An integrator without leak."""
        return self.integrator(name, None, node.r, 0.0)

    def read_li(self, name: str, node: Any) -> Stage:
        """A leaky integrator."""
        return self.integrator(name, node.tau, node.r, node.v_leak)

    def read_if(self, name: str, node: Any) -> Stage:
        """An integrate-and-fire neuron without leak."""
        inside = self.integrator(name, None, node.r, 0.0)
        return Firing(inside, node.v_threshold, node.v_reset, self.spike)

    def read_lif(self, name: str, node: Any) -> Stage:
        """A leaky integrate-and-fire neuron."""
        inside = self.integrator(name, node.tau, node.r, node.v_leak)
        return Firing(inside, node.v_threshold, node.v_reset, self.spike)

    def read_cubali(self, name: str, node: Any) -> Stage:
        """A leaky integrator behind a synapse."""
        synapse = self.integrator(name, node.tau_syn, node.w_in, 0.0)
        return Current(synapse, self.integrator(name, node.tau_mem, node.r, node.v_leak))

    def read_cubalif(self, name: str, node: Any) -> Stage:
        """A leaky integrate-and-fire neuron behind a synapse."""
        synapse = self.integrator(name, node.tau_syn, node.w_in, 0.0)
        inside = self.integrator(name, node.tau_mem, node.r, node.v_leak)
        return Current(synapse, Firing(inside, node.v_threshold, node.v_reset, self.spike))

    def integrator(self, name: str, tau: Any, r: Any, v_leak: Any) -> Integrator:
        """Return forward Euler of ``tau dv/dt = v_leak - v + r x``, or of ``dv/dt = r x``.

        Raises:
            OptionError: A time constant is shorter than a step, where Euler's method oscillates.
        """
        resistance = torch.as_tensor(r, dtype=torch.float64)
        if tau is None:
            return Integrator(_size(r), 1.0, resistance * self.dt, 0.0)
        rate = self.dt / torch.as_tensor(tau, dtype=torch.float64)
        if not bool(((rate > 0) & (rate <= 1)).all()):
            raise refused(
                f"A time constant of node '{name}' is not longer than a step of {self.dt} s.",
                "Choose a shorter step 'dt'.",
            )
        leak = rate * torch.as_tensor(v_leak, dtype=torch.float64)
        return Integrator(_size(tau), 1.0 - rate, rate * resistance, leak)


class _Scale(Stage):
    scale: Any

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Scale."""
        return self.scale * x, state


class _Threshold(Stage):
    threshold: Any

    def __init__(self, spike: Spike) -> None:
        super().__init__()
        self.spike = spike

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Fire."""
        return self.spike(x - self.threshold), state


STEP = Check(
    "The length 'dt' of a step", code="option.nir", hint="Give dt > 0, in seconds: dt=1e-4."
)


def refused(message: str, hint: str = "snncc.from_nir lists what it reads.") -> OptionError:
    """Return the error about a graph that has no serial code."""
    return OptionError(message, code="option.nir", hints=[hint])


def _product(kind: type[nn.Linear], weight: Any, bias: Any) -> nn.Module:
    rows, columns = weight.shape
    made = kind(columns, rows, bias=bias is not None)
    _fill(made, weight, bias)
    return made


def _convolution(kind: type[nn.Conv1d | nn.Conv2d], name: str, node: Any) -> nn.Module:
    outputs, inputs, *kernel = node.weight.shape
    spatial: dict[str, Any] = {
        key: value if isinstance(value, str) else _axes(value, len(kernel))
        for key, value in (
            ("stride", node.stride),
            ("padding", node.padding),
            ("dilation", node.dilation),
        )
    }
    groups = int(node.groups)
    if outputs % groups:
        raise refused(f"Node '{name}' has {outputs} channels in {groups} groups.")
    made = kind(inputs * groups, outputs, tuple(kernel), groups=groups, **spatial)
    _fill(made, node.weight, node.bias)
    return made


def _fill(module: nn.Module, weight: Any, bias: Any) -> None:
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(weight))  # type: ignore[operator]
        if bias is not None:
            module.bias.copy_(torch.as_tensor(bias))  # type: ignore[operator]


def _axes(value: Any, count: int) -> tuple[int, ...]:
    numbers = torch.as_tensor(value).flatten().tolist()
    return tuple(int(n) for n in (numbers if len(numbers) == count else numbers * count))


def _pair(value: Any) -> tuple[int, int]:
    first, second = _axes(value, 2)
    return first, second


def _size(array: Any) -> tuple[int, ...]:
    return tuple(torch.as_tensor(array).shape)
