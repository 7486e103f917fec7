"""Neurons of snnTorch and SpikingJelly are recorded as plain operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snncc.ir.custom_gradient import CustomGradient
from tests.frontend.recordings import check, randn

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL, LARGE = (randn(3, 2, 5),), (randn(3, 7, 5),)
SUMS = 1e-5  # their gradients are the same sums in another order


class Stepwise(nn.Module):
    """Feeds a sequence to a neuron, one step at a time, after a reset."""

    def __init__(self, neuron: nn.Module, initial: str = "", before: Any = None) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)
        self.neuron = neuron
        self.initial = initial
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            self.before(self.neuron)
        state: Any = getattr(self.neuron, self.initial)() if self.initial else ()
        state = state if isinstance(state, tuple) else (state,)
        out = []
        for t in range(x.size(0)):
            result = self.neuron(self.fc(x[t]), *state)
            result = result if isinstance(result, tuple) else (result,)
            state = result if self.initial == "init_rleaky" else result[1:]
            out.append(result[0])
        return torch.stack(out)


def snntorch_models() -> dict[str, nn.Module]:
    snn = pytest.importorskip("snntorch")
    from snntorch import surrogate, utils

    fast, atan = surrogate.fast_sigmoid(25), surrogate.atan()

    def leaky(**options: Any) -> nn.Module:
        return Stepwise(snn.Leaky(beta=0.9, **options), "init_leaky")

    hidden = snn.Leaky(beta=0.9, init_hidden=True)
    return {
        "leaky": leaky(),
        "fast sigmoid": leaky(spike_grad=fast),
        "reset to zero": leaky(spike_grad=atan, reset_mechanism="zero"),
        "no reset": leaky(reset_mechanism="none"),
        "learned": leaky(learn_beta=True, learn_threshold=True),
        "no delay": leaky(reset_delay=False),
        "straight through": leaky(spike_grad=surrogate.straight_through_estimator()),
        "hidden": Stepwise(hidden, before=utils.reset),
        "synaptic": Stepwise(snn.Synaptic(alpha=0.8, beta=0.9), "init_synaptic"),
        "lapicque": Stepwise(snn.Lapicque(beta=0.9), "init_lapicque"),
        "recurrent": Stepwise(snn.RLeaky(beta=0.9, linear_features=5), "init_rleaky"),
    }


def spikingjelly_models() -> dict[str, nn.Module]:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, neuron, surrogate

    return {
        name: Stepwise(n, before=functional.reset_net)
        for name, n in {
            "IF": neuron.IFNode(),
            "LIF": neuron.LIFNode(),
            "detached reset": neuron.LIFNode(
                detach_reset=True, surrogate_function=surrogate.ATan()
            ),
            "soft reset": neuron.LIFNode(v_reset=None),
            "PLIF": neuron.ParametricLIFNode(),
            "simple": neuron.SimpleLIFNode(2.0, True),
        }.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        "leaky", "fast sigmoid", "reset to zero", "no reset", "learned", "no delay",
        "straight through", "hidden", "synaptic", "lapicque", "recurrent",
    ],
)  # fmt: skip
def test_snntorch(name: str) -> None:
    """A neuron of snnTorch replays with its surrogate."""
    torch.manual_seed(0)

    check(snntorch_models()[name], *SMALL, again=LARGE, gradient_error=SUMS)


@pytest.mark.parametrize("name", ["IF", "LIF", "detached reset", "soft reset", "PLIF", "simple"])
def test_spikingjelly(name: str) -> None:
    """A neuron of SpikingJelly is plain torch, bit by bit its own operator's result."""
    torch.manual_seed(0)
    tape = check(spikingjelly_models()[name], *SMALL, again=LARGE, gradient_error=SUMS)

    spikes = [n for n in tape.graph.nodes if isinstance(n.target, CustomGradient)]
    assert len(spikes) == 3
    assert not any(isinstance(n.target, torch._ops.OpOverload) for n in tape.graph.nodes)


def test_spikingjelly_multi_step() -> None:
    """A whole sequence given to a neuron is unrolled as well."""
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, neuron

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = neuron.LIFNode(step_mode="m")

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self)
            return self.neuron(x)

    check(Model(), *SMALL, again=LARGE, gradient_error=SUMS)
