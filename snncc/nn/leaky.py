"""Integrate-and-fire neurons with one state.

``h[t] = decay v[t-1] + x[t]``, ``s[t] = 1 if h[t] >= v_threshold``, ``v[t] = reset(h[t], s[t])``;
``decay = 1`` is the integrate-and-fire neuron without a leak. The potential starts at 0.

Source: Fang et al. 2023, "SpikingJelly" (charge, fire, reset); the input gain is 1.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from snncc.nn.base import Decay, NeuronOptions, SpikingNeuron


class IF(SpikingNeuron):
    """Integrate-and-fire neuron: ``h[t] = v[t-1] + x[t]``.

    Args:
        options: Threshold, reset and surrogate, as for :class:`SpikingNeuron`.

    Example:
        >>> neuron = IF()
        >>> neuron(torch.tensor([[0.75], [0.5], [0.5]])).flatten().tolist()
        [0.0, 1.0, 0.0]
    """

    def __init__(self, **options: Unpack[NeuronOptions]) -> None:
        super().__init__(**options)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes [T, B, *] of input currents ``x`` [T, B, *]."""
        v = torch.zeros_like(x[0])
        spikes = []
        for t in range(x.shape[0]):
            h = v + x[t]
            s = self.fire(h, self.v_threshold)
            v = self.reset(h, s, self.v_threshold)
            spikes.append(s)
        return torch.stack(spikes)


class LIF(SpikingNeuron):
    """Leaky integrate-and-fire neuron: ``h[t] = decay v[t-1] + x[t]``.

    Args:
        decay: Factor on the old potential, per step; its start value if learnable.
        learnable: Whether the decay is ``sigmoid`` of a parameter (the neuron known as PLIF).
        shape: Shape of the learnable decay: ``()``, per channel or per neuron.
        options: Threshold, reset and surrogate, as for :class:`SpikingNeuron`.

    Example:
        >>> neuron = LIF(0.5, v_reset=None)
        >>> neuron(torch.tensor([[1.5], [0.75], [0.75]])).flatten().tolist()
        [1.0, 1.0, 0.0]
    """

    def __init__(
        self,
        decay: float = 0.5,
        *,
        learnable: bool = False,
        shape: tuple[int, ...] = (),
        **options: Unpack[NeuronOptions],
    ) -> None:
        super().__init__(**options)
        self.decay = Decay(decay, learnable=learnable, shape=shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes [T, B, *] of input currents ``x`` [T, B, *]."""
        decay = self.decay()
        v = torch.zeros_like(x[0])
        spikes = []
        for t in range(x.shape[0]):
            h = decay * v + x[t]
            s = self.fire(h, self.v_threshold)
            v = self.reset(h, s, self.v_threshold)
            spikes.append(s)
        return torch.stack(spikes)
