"""Parallel spiking neurons: no reset, the potential is a linear function of the inputs over time.

``h = W x + b`` with x as [T, N] and W over time steps; ``s = 1 if h >= 0``.  Three choices of W:

* `PSN`: any [T, T], so that a step sees the future, and the length is fixed;
* `MaskedPSN`: a causal band of width k, approached during training;
* `SlidingPSN`: the same k weights at every step, for any length; it can run step by step.

Source: Fang et al. 2023, "Parallel Spiking Neurons with High Efficiency and Ability to Learn
Long-term Dependencies", equations 8 to 12.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snncc.nn.surrogate import ATan


class PSN(nn.Module):
    """Parallel spiking neuron: every step sees all T steps.

    Args:
        T: Number of time steps, fixed.
        surrogate: Spike function; ``ATan()`` where it is None.
    """

    def __init__(self, T: int, surrogate: nn.Module | None = None) -> None:
        super().__init__()
        self.T = T
        self.surrogate = ATan() if surrogate is None else surrogate
        self.weight = nn.Parameter(torch.empty(T, T))
        self.bias = nn.Parameter(torch.full((T, 1), -1.0))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def mixing(self) -> Tensor:
        """Return the weights [T, T] from input steps (columns) to steps of the potential."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes [T, B, *] of input currents ``x`` [T, B, *].

        Raises:
            ValueError: The sequence has another length than the weights.
        """
        if x.shape[0] != self.T:
            raise ValueError(f"A PSN of {self.T} steps got {x.shape[0]}.")
        h = torch.addmm(self.bias, self.mixing(), x.flatten(1))
        s: Tensor = self.surrogate(h)
        return s.reshape(x.shape)

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"T={self.T}"


class MaskedPSN(PSN):
    """PSN whose weights fade towards a causal band of width k.

    Args:
        T: Number of time steps, fixed.
        k: How many inputs, the present one included, a step sees in the end.
        surrogate: Spike function; ``ATan()`` where it is None.

    Attributes:
        strength: 0 leaves all weights, 1 leaves the band; raise it during training.
    """

    def __init__(self, T: int, k: int, surrogate: nn.Module | None = None) -> None:
        super().__init__(T, surrogate)
        self.k = k
        self.strength = 0.0
        self.register_buffer("band", torch.ones(T, T).tril().triu(1 - k))

    def mixing(self) -> Tensor:
        """Return the weights [T, T], those outside of the band faded."""
        band = self.get_buffer("band")
        return self.weight * (self.strength * band + (1.0 - self.strength))

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"T={self.T}, k={self.k}"


class SlidingPSN(nn.Module):
    """PSN with k weights shared by all steps; it runs on sequences of any length.

    Args:
        k: How many inputs, the present one included, a step sees.
        surrogate: Spike function; ``ATan()`` where it is None.
    """

    def __init__(self, k: int, surrogate: nn.Module | None = None) -> None:
        super().__init__()
        self.k = k
        self.surrogate = ATan() if surrogate is None else surrogate
        self.weight = nn.Parameter(0.5 ** torch.arange(k - 1, -1, -1, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes [T, B, *] of input currents ``x`` [T, B, *]."""
        past = [torch.zeros_like(x[0])] * (self.k - 1)
        spikes = []
        for t in range(x.shape[0]):
            window = [*past, x[t]]
            h: Tensor = self.bias
            for j in range(self.k):
                h = h + self.weight[j] * window[j]
            spikes.append(self.surrogate(h))
            past = window[1:]
        return torch.stack(spikes)

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"k={self.k}"
