"""Leaky integrate-and-fire neuron whose threshold rises with its own spikes.

``h[t] = decay v[t-1] + x[t]``, ``threshold[t] = v_threshold + adaptation a[t-1]``,
``s[t] = 1 if h[t] >= threshold[t]``, ``a[t] = decay_adaptation a[t-1] + s[t]``. A soft reset
subtracts the raised threshold of this step. Both states start at 0.

Source: Bellec et al. 2018, "Long short-term memory and learning-to-learn in networks of spiking
    neurons" (adaptive threshold).
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from snncc.nn.base import Decay, NeuronOptions, SpikingNeuron


class AdaptiveLIF(SpikingNeuron):
    """Leaky integrate-and-fire neuron with an adaptive threshold.

    Args:
        decay: Factor on the old membrane potential, per step.
        decay_adaptation: Factor on the old adaptation, per step.
        adaptation: Rise of the threshold per spike, in units of potential.
        learnable: Whether both decays are ``sigmoid`` of a parameter each.
        shape: Shape of the learnable decays: ``()``, per channel or per neuron.
        options: Threshold, reset and surrogate, as for :class:`SpikingNeuron`.

    Example:
        >>> neuron = AdaptiveLIF(0.5, 0.5, adaptation=1.0)
        >>> neuron(torch.tensor([[1.0], [1.5], [1.5]])).flatten().tolist()
        [1.0, 0.0, 1.0]
    """

    def __init__(
        self,
        decay: float = 0.5,
        decay_adaptation: float = 0.9,
        *,
        adaptation: float = 0.5,
        learnable: bool = False,
        shape: tuple[int, ...] = (),
        **options: Unpack[NeuronOptions],
    ) -> None:
        super().__init__(**options)
        self.adaptation = adaptation
        self.decay = Decay(decay, learnable=learnable, shape=shape)
        self.decay_adaptation = Decay(decay_adaptation, learnable=learnable, shape=shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes [T, B, *] of input currents ``x`` [T, B, *]."""
        decay = self.decay()
        decay_adaptation = self.decay_adaptation()
        a = torch.zeros_like(x[0])
        v = torch.zeros_like(x[0])
        spikes = []
        for t in range(x.shape[0]):
            h = decay * v + x[t]
            threshold = self.v_threshold + self.adaptation * a
            s = self.fire(h, threshold)
            v = self.reset(h, s, threshold)
            a = decay_adaptation * a + s
            spikes.append(s)
        return torch.stack(spikes)

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"adaptation={self.adaptation}, {super().extra_repr()}"
