"""Shared parts of all spiking neurons of this package: firing and reset.

``s = 1 if h >= v_threshold else 0``, then one of

* hard reset: ``v = (1 - s) h + s v_reset``
* soft reset: ``v = h - s v_threshold``
* no reset: ``v = h``
"""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from snncc.nn.surrogate import ATan

ResetMode = Literal["spike", "none"]


class NeuronOptions(TypedDict, total=False):
    """The keyword arguments of :class:`SpikingNeuron`, for the neurons that pass them on."""

    v_threshold: float
    v_reset: float | None
    reset: ResetMode
    detach_reset: bool
    surrogate: nn.Module | None


class SpikingNeuron(nn.Module):
    """Abstract base: fire and reset, with the choices that published neurons differ in.

    Args:
        v_threshold: Potential from which the neuron fires (``h >= v_threshold``).
        v_reset: Potential after a spike (hard reset), or None to subtract the threshold (soft).
        reset: "spike" resets after each spike; "none" never does, and ``v_reset`` is not used.
        detach_reset: Whether the gradient through the spike into the reset is cut.
        surrogate: Spike function of ``h - v_threshold``; ``ATan()`` where it is None.

    Raises:
        ValueError: ``reset`` is neither of the two words.
    """

    def __init__(
        self,
        *,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        reset: ResetMode = "spike",
        detach_reset: bool = False,
        surrogate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if reset not in ("spike", "none"):
            raise ValueError(f"'reset' is 'spike' or 'none', not {reset!r}.")
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.reset_mode = reset
        self.detach_reset = detach_reset
        self.surrogate = ATan() if surrogate is None else surrogate

    def fire(self, h: Tensor, threshold: float | Tensor) -> Tensor:
        """Return the spikes of potentials ``h`` [B, *] against ``threshold``."""
        s: Tensor = self.surrogate(h - threshold)
        return s

    def reset(self, h: Tensor, s: Tensor, threshold: float | Tensor) -> Tensor:
        """Return the potentials [B, *] after the reset of the neurons that fired."""
        if self.reset_mode == "none":
            return h
        if self.detach_reset:
            s = s.detach()
        if self.v_reset is None:
            return h - s * threshold
        return (1.0 - s) * h + s * self.v_reset

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return (
            f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
            f"reset={self.reset_mode!r}, detach_reset={self.detach_reset}"
        )


class Decay(nn.Module):
    """Factor on the old state: a constant, or ``sigmoid(weight)`` with a learnable weight.

    Args:
        value: The decay at the start; in (0, 1) if learnable.
        learnable: Whether training may change it.
        shape: Shape of the learnable weight; it broadcasts against [B, *]: ``()`` for one value,
            ``(N,)`` per neuron, ``(C, 1, 1)`` per channel of an image.

    Raises:
        ValueError: A learnable decay starts outside (0, 1), or a constant one was given a shape.

    Source: Fang et al. 2021 (learnable membrane time constant through a sigmoid).
    """

    def __init__(self, value: float, *, learnable: bool, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        if learnable and not 0.0 < value < 1.0:
            raise ValueError(f"A learnable decay starts inside (0, 1), not at {value}.")
        if shape and not learnable:
            raise ValueError("'shape' is the shape of a learnable decay; set 'learnable=True'.")
        self.value = value
        self.weight: nn.Parameter | None = None
        if learnable:
            self.weight = nn.Parameter(torch.logit(torch.full(shape, value)))

    def forward(self) -> float | Tensor:
        """Return the decay: a float, or a tensor of shape ``shape``."""
        if self.weight is None:
            return self.value
        return torch.sigmoid(self.weight)

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        if self.weight is None:
            return f"{self.value}"
        return f"{self.value}, learnable=True, shape={tuple(self.weight.shape)}"
