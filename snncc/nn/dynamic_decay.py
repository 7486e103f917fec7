"""A neuron without reset whose decay is computed from its input at each step.

With a causal depthwise convolution over the last ``k`` inputs as the gate::

    a'[t]    = bias + sum_j weight[j] x[t-k+1+j]
    g[t]     = logsigmoid(a'[t]) / tau              decay[t] = exp(g[t]) = sigmoid(a'[t])^(1/tau)
    h[t]     = decay[t] h[t-1] + (1 - decay[t]) x[t]
    s[t]     = clip(round(h[t]), 0, levels)         or a binary spike of h[t] - v_threshold

The decay is formed in logarithmic space, so that neither a decay near one nor a product of many
decays loses its digits.  ``1 - decay`` is ``-expm1(g)`` where the decay is near one; where it is
near zero it is the difference as written, because autograd takes ``expm1(g) + 1`` for the
derivative of ``expm1(g)``, which has no digits left there.  The potential is a convex combination
of inputs: bounded inputs give bounded potentials, whatever the length of the sequence.

Source: arXiv 2602.01133 (dynamic decay spiking neuron), equations 9 to 12; the convolution is
depthwise and padded with zeros on the left.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snncc.nn.surrogate import IntegerSpike

State: TypeAlias = tuple[Tensor, ...]


class DynamicDecay(nn.Module):
    """Dynamic decay neuron: input-dependent decay, integer spikes, no reset.

    Args:
        channels: C of the input [T, B, C, *].
        kernel_size: How many inputs, the present one included, the decay depends on.
        tau: Exponent ``1 / tau`` of the sigmoid; a small ``tau`` forgets fast.
        levels: Largest number of spikes in one step.
        surrogate: Spike function of the potential; ``IntegerSpike(levels)`` where it is None.

    Raises:
        ValueError: A size is not positive, or ``tau`` is not.

    Example:
        >>> neuron = DynamicDecay(1)
        >>> neuron(torch.zeros(5, 2, 1)).shape
        torch.Size([5, 2, 1])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 4,
        tau: float = 0.25,
        levels: int = 4,
        surrogate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if min(channels, kernel_size, levels) < 1 or tau <= 0:
            raise ValueError("'channels', 'kernel_size', 'levels' and 'tau' are positive.")
        self.channels = channels
        self.kernel_size = kernel_size
        self.tau = tau
        self.levels = levels
        self.surrogate = IntegerSpike(levels) if surrogate is None else surrogate
        bound = kernel_size**-0.5
        self.weight = nn.Parameter(torch.empty(channels, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels))

    def initial(self, x: Tensor) -> State:
        """Return the state before the first step of ``x`` [T, B, C, *]: potential, past inputs."""
        return (torch.zeros_like(x[0]),) * self.kernel_size

    def run(self, x: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Run from a state.

        Args:
            x: Input currents [T, B, C, *].
            state: The potential and the last ``kernel_size - 1`` inputs, oldest first, [B, C, *].
            lengths: How many steps each sample of a padded batch has, [B]; all of them where it
                is None.  A sample that is over does not spike, and its state stays.

        Returns:
            The spikes [T, B, C, *] and the state after the last step of each sample.
        """
        shape = (self.channels, *(1,) * (x.dim() - 3))
        weight = [self.weight[:, j].reshape(shape) for j in range(self.kernel_size)]
        bias = self.bias.reshape(shape)
        spikes = []
        for t in range(x.shape[0]):
            h, *past = state
            window = [*past, x[t]]
            logit = bias
            for j in range(self.kernel_size):
                logit = logit + weight[j] * window[j]
            gate = F.logsigmoid(logit) / self.tau
            decay = torch.exp(gate)
            gain = torch.where(decay < 0.5, 1.0 - decay, -torch.expm1(gate))
            h = decay * h + gain * x[t]
            s = self.surrogate(h)
            after = (h, *window[1:])
            if lengths is not None:
                goes_on = (t < lengths).reshape(-1, *(1,) * (x.dim() - 2))
                s = torch.where(goes_on, s, 0.0)
                after = tuple(
                    torch.where(goes_on, new, old) for new, old in zip(after, state, strict=True)
                )
            spikes.append(s)
            state = after
        return torch.stack(spikes), state

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the spikes [T, B, C, *] of input currents ``x`` [T, B, C, *].

        Args:
            x: The input currents.
            lengths: As for `run`.
        """
        return self.run(x, self.initial(x), lengths)[0]

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, tau={self.tau}, levels={self.levels}"
        )
