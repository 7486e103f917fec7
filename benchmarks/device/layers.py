"""One layer of neurons as serial code, and what others make of the same neuron."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from snncc.nn import LIF, ATan

CHANNELS = 64
ALPHA = 2.0  # steepness of the arctangent surrogate, in all variants
SLOW = 0.88  # decay of the adaptation at the start
Layer = Callable[[Tensor], Tensor]


class Missing(Exception):  # noqa: N818 - no error: the variant is left out, visibly
    """A variant that cannot run here, and why."""


class TwoStates(nn.Module):
    """LIF neurons whose threshold rises with their spikes: two decays, learnable per channel."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.zeros(channels))
        self.decay_adaptation = nn.Parameter(torch.full((channels,), math.log(SLOW / (1.0 - SLOW))))
        self.spike = ATan(ALPHA)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of ``x`` [T, B, C]."""
        decay, slow = torch.sigmoid(self.decay), torch.sigmoid(self.decay_adaptation)
        v, a = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        spikes = []
        for t in range(x.shape[0]):
            h = decay * v + x[t]
            s = self.spike(h - (1.0 + 0.5 * a))
            a = slow * a + s
            v = h * (1.0 - s)
            spikes.append(s)
        return torch.stack(spikes)


def lif() -> nn.Module:
    """Return LIF neurons: decay 1/2, hard reset to zero."""
    return LIF(0.5, surrogate=ATan(ALPHA))


def plif() -> nn.Module:
    """Return LIF neurons with one learnable decay, which starts at 1/2."""
    return LIF(0.5, learnable=True, surrogate=ATan(ALPHA))


NEURONS: dict[str, Callable[[], nn.Module]] = {"lif": lif, "plif": plif, "two states": TwoStates}


class SpikingJelly(nn.Module):
    """A layer of SpikingJelly's, from one state zero to the next.

    Its kernels take inputs of a half type only beside a state in float32, which its modules have no
    way to ask for but an option that tunes kernels for each size; its functions take one.
    """

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.node = node

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of ``x`` [T, B, *]."""
        from spikingjelly.activation_based import functional, neuron

        node = self.node
        spikes: Tensor
        if x.dtype is torch.float32:
            functional.reset_net(node)
            spikes = node(x)
            return spikes
        v = torch.zeros_like(x[0], dtype=torch.float32)
        options = (
            node.decay_input, node.v_threshold, node.v_reset, node.surrogate_function,
            node.detach_reset,
        )  # fmt: skip
        if isinstance(node, neuron.ParametricLIFNode):
            spikes = functional.plif_multi_step(x, v, node.w, *options)[0]
        else:
            spikes = functional.lif_multi_step(x, v, node.tau, *options)[0]
        return spikes.to(x.dtype)


def spikingjelly(name: str, device: torch.device) -> tuple[Layer, str]:
    """Return SpikingJelly's neuron of the same maths, and what it runs.

    Raises:
        Missing: It is not installed, or has no such neuron.
    """
    try:
        from spikingjelly.activation_based import functional, neuron, surrogate
    except ImportError as error:
        raise Missing(f"SpikingJelly is not importable: {error}") from error
    options = {
        "decay_input": False,
        "v_reset": 0.0,
        "surrogate_function": surrogate.ATan(ALPHA),
        "step_mode": "m",
    }
    if name not in ("lif", "plif"):
        raise Missing("SpikingJelly has no kernel for it; FlexSN makes one")
    kind = neuron.LIFNode if name == "lif" else neuron.ParametricLIFNode
    taus = {"tau": 2.0} if name == "lif" else {"init_tau": 2.0}
    node = kind(**taus, **options).to(device)
    runs = "torch"
    if device.type == "cuda":
        runs = functional.neuron.neuron_implementation(name, device)["implementation"]
    return SpikingJelly(node), str(runs)


def _fire(h: Tensor, threshold: Tensor) -> Tensor:
    from spikingjelly.activation_based import surrogate

    spikes: Tensor = surrogate.atan.apply(h - threshold, ALPHA)
    return spikes


def _two_states(
    x: Tensor, v: Tensor, a: Tensor, decay: Tensor, slow: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    h = decay * v + x
    s = _fire(h, 1.0 + 0.5 * a)
    return s, h * (1.0 - s), slow * a + s


def flexsn(device: torch.device) -> Layer:
    """Return the neuron with two states as FlexSN takes it: its two decays are single numbers.

    Raises:
        Missing: SpikingJelly is not installed, or FlexSN cannot take the neuron.
    """
    try:
        from spikingjelly.activation_based import functional, neuron
    except ImportError as error:
        raise Missing(f"SpikingJelly is not importable: {error}") from error
    decays = tuple(nn.Parameter(torch.tensor(value)) for value in (0.5, SLOW))
    try:
        node = neuron.FlexSN(_two_states, 2, decays, "m").to(device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Missing(f"FlexSN refuses the neuron: {error}") from error

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        spikes = node(x)
        return spikes[0] if isinstance(spikes, tuple) else spikes

    return run
