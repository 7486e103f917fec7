"""Leaky integrator: a membrane without a threshold, the usual readout of a network.

``v[t] = decay v[t-1] + x[t]``, with ``v`` starting at 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snncc.nn.base import Decay


class LI(nn.Module):
    """Leaky integrator; returns potentials, not spikes.

    Args:
        decay: Factor on the old potential, per step; its start value if learnable.
        learnable: Whether the decay is ``sigmoid`` of a parameter.
        shape: Shape of the learnable decay: ``()``, per channel or per neuron.

    Example:
        >>> LI(0.5)(torch.tensor([[1.0], [0.0], [1.0]])).flatten().tolist()
        [1.0, 0.5, 1.25]
    """

    def __init__(
        self, decay: float = 0.5, *, learnable: bool = False, shape: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.decay = Decay(decay, learnable=learnable, shape=shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the potentials [T, B, *] of input currents ``x`` [T, B, *]."""
        decay = self.decay()
        v = torch.zeros_like(x[0])
        potentials = []
        for t in range(x.shape[0]):
            v = decay * v + x[t]
            potentials.append(v)
        return torch.stack(potentials)
