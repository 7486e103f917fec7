"""The parameters of substituted neurons: one gate for each neuron layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snncc.passes.base import Rejection


class DecayGate(nn.Module):
    """The decay of a layer as a function of its last inputs, and the gain of these inputs.

    With ``weight`` zero and ``bias = logit(decay^tau)`` the decay is the given one at every step;
    ``gain = 1 / (1 - decay)`` makes up for the factor ``1 - decay`` that a dynamic decay gives its
    input.

    Args:
        decay: The decay of each channel at the start, [C], in (0, 1).
        kernel_size: How many inputs, the present one included, the decay depends on.
        tau: Exponent ``1 / tau`` of the sigmoid.
    """

    gain: Tensor

    def __init__(self, decay: Tensor, kernel_size: int, tau: float) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.tau = tau
        self.weight = nn.Parameter(decay.new_zeros(len(decay), kernel_size))
        exact = decay.detach().double()
        logit = tau * exact.log() - torch.log(-torch.expm1(tau * exact.log()))
        self.bias = nn.Parameter(logit.to(decay.dtype))
        self.register_buffer("gain", (1.0 / (1.0 - exact)).to(decay.dtype))

    def extra_repr(self) -> str:
        """Return the parameters for ``print``."""
        return f"{len(self.bias)}, kernel_size={self.kernel_size}, tau={self.tau}"


class DecayGates(nn.ModuleDict):
    """The gates of a compiled model by the names of their neurons.

    They are made by the first program of the model; every later one, of other sizes or flags, has
    the same neurons or is refused, so that no parameter appears behind an optimiser's back.

    Args:
        kernel_size: As for `DecayGate`.
        tau: As for `DecayGate`.
    """

    def __init__(self, kernel_size: int, tau: float) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.tau = tau

    def provide(self, decays: Sequence[tuple[str, Tensor]]) -> Rejection | None:
        """Make the gates of named neurons, or check that they are those that there are."""
        if not len(self):
            with torch.inference_mode(False):  # they outlive the call that makes them
                for name, decay in decays:
                    self[name] = DecayGate(decay.clone(), self.kernel_size, self.tau)
            return None
        known = [(name, gate.bias.shape) for name, gate in self.items()]
        if known != [(name, decay.shape) for name, decay in decays]:
            return Rejection(
                "other-neurons",
                "the neurons differ from those of the first call, in number or in channels",
            )
        return None
