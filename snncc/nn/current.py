"""Current-based leaky integrate-and-fire neuron: a synaptic current in front of the membrane.

``i[t] = decay_synapse i[t-1] + x[t]``, ``h[t] = decay v[t-1] + i[t]``, then fire and reset. The
membrane sees the *new* current; the current is not reset by a spike. Both states start at 0.

Source: Pedersen et al. 2024, "Neuromorphic intermediate representation" (``CubaLIF``), in steps
    instead of continuous time.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from snncc.nn.base import Decay, NeuronOptions, SpikingNeuron


class CubaLIF(SpikingNeuron):
    """Current-based leaky integrate-and-fire neuron.

    Args:
        decay: Factor on the old membrane potential, per step.
        decay_synapse: Factor on the old synaptic current, per step.
        learnable: Whether both decays are ``sigmoid`` of a parameter each.
        shape: Shape of the learnable decays: ``()``, per channel or per neuron.
        options: Threshold, reset and surrogate, as for :class:`SpikingNeuron`.

    Example:
        >>> neuron = CubaLIF(0.5, 0.5)
        >>> neuron(torch.tensor([[0.75], [0.5], [0.0]])).flatten().tolist()
        [0.0, 1.0, 0.0]
    """

    def __init__(
        self,
        decay: float = 0.5,
        decay_synapse: float = 0.5,
        *,
        learnable: bool = False,
        shape: tuple[int, ...] = (),
        **options: Unpack[NeuronOptions],
    ) -> None:
        super().__init__(**options)
        self.decay = Decay(decay, learnable=learnable, shape=shape)
        self.decay_synapse = Decay(decay_synapse, learnable=learnable, shape=shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes [T, B, *] of synaptic inputs ``x`` [T, B, *]."""
        decay = self.decay()
        decay_synapse = self.decay_synapse()
        i = torch.zeros_like(x[0])
        v = torch.zeros_like(x[0])
        spikes = []
        for t in range(x.shape[0]):
            i = decay_synapse * i + x[t]
            h = decay * v + i
            s = self.fire(h, self.v_threshold)
            v = self.reset(h, s, self.v_threshold)
            spikes.append(s)
        return torch.stack(spikes)
