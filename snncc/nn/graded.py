"""Graded neurons with a decay and a threshold for each time step (HD-LIF).

::

    m[t] = decay[t] v[t-1] + x[t]        decay[t] = sigmoid(a[t])
    m[t] = alpha[t] m[t] + beta[t] norm[t](m[t])     with membrane BN, alpha and beta sigmoids too
    s[t] = relu(m[t] - threshold[t])     threshold[t] = sigmoid(b[t])
    v[t] = m[t] - s[t]                   the reset P2: what is above the threshold is given away

The potential that is carried on is the normalised one.  Without a state (``parallel``) the spike is
``relu(x[t] - threshold[t])``.  In online training the gradient through ``v[t-1]`` is cut.

Source: HD-LIF, arXiv 2410.07547 (version 3); parameters are those of a layer, one for each step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Compress(torch.autograd.Function):
    """Four bits: multiples of a quarter up to 3.75; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: object, s: Tensor) -> Tensor:
        """Return the nearest multiple, halves to even."""
        return torch.clamp(torch.round(4 * s), 0, 15) / 4

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
        """Return the incoming gradient."""
        return grad_outputs[0]


class StepNorm(nn.Module):
    """One batch norm over channels for each time step.

    Args:
        T: Number of time steps.
        channels: C of the potentials [B, C, *].
        eps: What is added to the variance.
        momentum: Weight of a batch in the running statistics.
    """

    def __init__(self, T: int, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(T, channels))
        self.bias = nn.Parameter(torch.zeros(T, channels))
        self.register_buffer("running_mean", torch.zeros(T, channels))
        self.register_buffer("running_var", torch.ones(T, channels))

    def forward(self, m: Tensor, t: int) -> Tensor:
        """Return the potentials ``m`` [B, C, *] normalised with the statistics of step ``t``."""
        return F.batch_norm(
            m,
            self.get_buffer("running_mean")[t],
            self.get_buffer("running_var")[t],
            self.weight[t],
            self.bias[t],
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"{', '.join(map(str, self.weight.shape))}, eps={self.eps}"


class HDLIF(nn.Module):
    """HD-LIF: graded spikes, a decay and a threshold for each step.

    Args:
        T: Number of time steps, fixed.
        channels: C of the input [T, B, C, *]; needed for ``mem_bn`` only.
        parallel: No state: each step sees its own input alone.
        mem_bn: Normalise the potential before the threshold, by a batch norm for each step.
        online: Cut the gradient through the state, as online training does.
        compress: Give spikes with four bits; the state keeps what it would have without.

    Raises:
        ValueError: ``mem_bn`` has no channels, or no state to normalise.
    """

    def __init__(  # noqa: PLR0913 - the variants that are published
        self,
        T: int,
        channels: int | None = None,
        parallel: bool = False,
        mem_bn: bool = False,
        *,
        online: bool = False,
        compress: bool = False,
    ) -> None:
        super().__init__()
        if mem_bn and (channels is None or parallel):
            raise ValueError("'mem_bn' needs 'channels', and a state to normalise.")
        self.T, self.channels = T, channels
        self.parallel, self.online, self.compress = parallel, online, compress
        self.decay = nn.Parameter(torch.zeros(T))
        self.threshold = nn.Parameter(torch.zeros(T))
        self.norm: StepNorm | None = None
        if mem_bn:
            assert channels is not None
            self.norm = StepNorm(T, channels)
            self.mem_ratio = nn.Parameter(torch.zeros(T))
            self.bn_ratio = nn.Parameter(torch.zeros(T))

    def forward(self, x: Tensor) -> Tensor:
        """Return the graded spikes [T, B, C, *] of input currents ``x`` [T, B, C, *].

        Raises:
            ValueError: The sequence has another length than the parameters.
        """
        if x.shape[0] != self.T:
            raise ValueError(f"An HD-LIF of {self.T} steps got {x.shape[0]}.")
        decay, threshold = torch.sigmoid(self.decay), torch.sigmoid(self.threshold)
        v = torch.zeros_like(x[0])
        spikes = []
        for t in range(self.T):
            old = v.detach() if self.online else v
            m = x[t] if self.parallel else decay[t] * old + x[t]
            if self.norm is not None:
                mixed = torch.sigmoid(self.mem_ratio[t]) * m
                m = mixed + torch.sigmoid(self.bn_ratio[t]) * self.norm(m, t)
            s = torch.relu(m - threshold[t])
            v = m - s
            spikes.append(Compress.apply(s) if self.compress else s)  # type: ignore[no-untyped-call]
        return torch.stack(spikes)

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return (
            f"T={self.T}, channels={self.channels}, parallel={self.parallel}, "
            f"mem_bn={self.norm is not None}, online={self.online}, compress={self.compress}"
        )
