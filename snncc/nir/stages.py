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
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

State: TypeAlias = Any
Spike: TypeAlias = Callable[[Tensor], Tensor]
Shape: TypeAlias = tuple[int, ...]


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
    """One node in one step, element by element.

    Attributes:
        keeps_state: Whether what leaves it may wait for the next step: whether it is a neuron.
        size: Shape of its elements without the batch, or None where its numbers hold for all.
    """

    keeps_state = False
    size: Shape | None = None

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return what leaves the node, and its new state."""
        raise NotImplementedError

    def leaving(self, arriving: Shape | None) -> Shape | None:
        """Return the shape of what leaves it, without the batch; None is a shape not known yet.

        Raises:
            ValueError: It does not take what arrives.
        """
        if self.size is not None and arriving not in (None, self.size):
            raise ValueError(f"it has elements {list(self.size)}")
        return self.size or arriving

    def hold(self, **numbers: Tensor) -> None:
        """Keep numbers of a node: one number where all are equal, else a buffer."""
        for name, values in numbers.items():
            if values.numel() > 0 and bool((values == values.flatten()[0]).all()):
                setattr(self, name, float(values.flatten()[0]))
            else:
                self.register_buffer(name, values.to(torch.get_default_dtype()))


class Stateless(Stage):
    """A node without state: a function of what arrives.

    Args:
        function: The function, of tensors with a batch.
        dims: How many axes without the batch it takes, or None where it takes any.
        known: Shape of what leaves it where that does not depend on what arrives.
    """

    def __init__(
        self, function: nn.Module, dims: int | None = None, known: Shape | None = None
    ) -> None:
        super().__init__()
        self.function, self.dims, self.known = function, dims, known

    def leaving(self, arriving: Shape | None) -> Shape | None:
        """Find the shape by a run on tensors without data."""
        if arriving is None:
            return self.known
        if self.dims is not None and len(arriving) != self.dims:
            raise ValueError(f"it takes {self.dims} axes")
        weights = {name: p.to("meta") for name, p in self.function.named_parameters()}
        x = torch.empty(1, *arriving, device="meta")
        with torch.no_grad():
            y = torch.func.functional_call(self.function, weights, (x,))
        return tuple(y.shape[1:])

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Apply the function."""
        return self.function(x), state


class Neuron(Stage):
    """A node whose state has the shape of what arrives."""

    keeps_state = True
    decay: Any
    gain: Any
    leak: Any

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """Return the potential after one step of forward Euler."""
        drive = self.gain * x
        if not isinstance(self.leak, float) or self.leak != 0.0:
            drive = drive + self.leak
        charged: Tensor = self.decay * v + drive
        return charged


class Integrator(Neuron):
    """``LI``, and ``I`` with a decay of 1: its potential leaves it."""

    def __init__(self, size: Shape | None, decay: Tensor, gain: Tensor, leak: Tensor) -> None:
        super().__init__()
        self.size = size
        self.hold(decay=decay, gain=gain, leak=leak)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Integrate."""
        v = self.charge(torch.zeros_like(x) if state is None else state, x)
        return v, v


class Firing(Neuron):
    """``LIF``, and ``IF`` with a decay of 1: its spikes leave it.

    Args:
        size: The shape of its elements.
        spike: The spike function, of ``v - v_threshold``.
        numbers: What it integrates with, ``v_threshold`` and ``v_reset``.
    """

    v_threshold: Any
    v_reset: Any

    def __init__(self, size: Shape | None, spike: Spike, numbers: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.size, self.spike = size, spike
        self.hold(**numbers)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Integrate, fire and reset."""
        h = self.charge(torch.zeros_like(x) if state is None else state, x)
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
        self.size = neuron.size or synapse.size
        if None not in (neuron.size, synapse.size) and neuron.size != synapse.size:
            raise ValueError("its current has another shape than its membrane")

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Integrate the current, then the neuron that sees the new current."""
        current, potential = (None, None) if state is None else state
        i, current = self.synapse(x, current)
        y, potential = self.neuron(i, potential)
        return y, (current, potential)


class Delay(Stage):
    """What arrived some steps ago; zeros before."""

    def __init__(self, size: Shape | None, steps: int) -> None:
        super().__init__()
        self.size, self.steps = size, steps

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the oldest value and keep the newest."""
        if self.steps == 0:
            return x, state
        held = [torch.zeros_like(x) for _ in range(self.steps)] if state is None else state
        return held[0], [*held[1:], x]


class Scale(Stage):
    """Each element times a number."""

    scale: Any

    def __init__(self, size: Shape | None, scale: Tensor) -> None:
        super().__init__()
        self.size = size
        self.hold(scale=scale)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Scale."""
        return self.scale * x, state


class Threshold(Stage):
    """A spike wherever an element is above a threshold."""

    threshold: Any

    def __init__(self, size: Shape | None, threshold: Tensor, spike: Spike) -> None:
        super().__init__()
        self.size, self.spike = size, spike
        self.hold(threshold=threshold)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Fire."""
        return self.spike(x - self.threshold), state


class Flatten(nn.Module):
    """Axes merged, counted as NIR does, without the batch."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x: Tensor) -> Tensor:
        """Flatten."""
        first, last = (n + 1 if n >= 0 else n + x.dim() for n in (self.start, self.end))
        if not 1 <= first <= last < x.dim():
            raise ValueError(f"it merges axes {self.start} to {self.end}")
        return torch.flatten(x, first, last)
