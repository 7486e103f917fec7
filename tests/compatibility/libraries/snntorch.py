"""Neurons of snnTorch 1.0: explicit and hidden states, resets, surrogates, learnable parameters.

Its neurons reset one step late, by a detached spike, and fire above the threshold, not at it.
A state whose shape is not that of the input is silently taken for zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Group
from tests.compatibility.imports import quietly

snn = quietly("snntorch")
surrogate = quietly("snntorch.surrogate")
utils = quietly("snntorch.utils")
quant = quietly("snntorch.functional.quant")

library = Group("snntorch")
CASES = library.cases

# The state keeps the shape of the batch before, so the first batch of another size is recorded.
# Its spikes are float32 whatever the type of the input.
STALE = {"programs": 3, "free": False, "double": False}


class Explicit(nn.Module):
    """States are passed from step to step; spikes and all states are recorded."""

    def __init__(self, neuron: nn.Module, states: int, feedback: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.neuron = neuron
        self.states = states
        self.feedback = feedback  # whether the spike is passed back too

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        start = self.neuron.reset_mem()
        state = list(start) if isinstance(start, tuple) else [start]
        spikes, potentials = [], []
        for t in range(x.size(0)):
            spike, *rest = self.neuron(self.fc(x[t]), *state)
            state = [spike, *rest] if self.feedback else rest
            spikes.append(spike)
            potentials.append(rest[-1])
        return torch.stack(spikes), torch.stack(potentials)


class Hidden(nn.Module):
    """States are inside the neurons, forgotten before each sequence."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), *layers)

    def forward(self, x: Tensor) -> Any:
        utils.reset(self.net)
        out = [self.net(x[t]) for t in range(x.size(0))]
        if isinstance(out[0], tuple):
            return tuple(torch.stack(part) for part in zip(*out, strict=True))
        return torch.stack(out)


def strong(T: int, B: int) -> tuple[Any, ...]:
    return ((torch.randn(T, B, WIDTH) * 8.0).requires_grad_(),)


def leaky(name: str, notes: str, inputs: Callable[..., Any] = strong, **options: Any) -> None:
    """Add a case of a leaky neuron with explicit state."""

    def make() -> nn.Module:
        return Explicit(snn.Leaky(**{"beta": 0.9} | options), 1)

    library(name=name, notes=notes, inputs=inputs, **STALE)(make)


leaky("Leaky", "Explicit state, reset by subtraction.")
leaky("Leaky_zero", "Reset to zero.", reset_mechanism="zero")
leaky("Leaky_none", "No reset: an integrator.", reset_mechanism="none")
leaky(
    "Leaky_prompt_reset", "`reset_delay=False`: the reset is in the same step.", reset_delay=False
)
leaky(
    "Leaky_prompt_zero",
    "A reset to zero in the same step.",
    reset_delay=False,
    reset_mechanism="zero",
)
leaky("Leaky_learned", "Learnable decay and threshold.", learn_beta=True, learn_threshold=True)
leaky("Leaky_graded", "Spikes of a learnable size.", learn_graded_spikes_factor=True)
leaky("Leaky_fast_sigmoid", "The fast sigmoid surrogate.", spike_grad=surrogate.fast_sigmoid(25))
leaky("Leaky_sigmoid", "The sigmoid surrogate.", spike_grad=surrogate.sigmoid(1))
leaky("Leaky_triangular", "The triangular surrogate.", spike_grad=surrogate.triangular())
leaky(
    "Leaky_rate_escape", "The surrogate of escape rates.", spike_grad=surrogate.spike_rate_escape()
)
leaky("Leaky_sparse_sigmoid", "A surrogate that is zero far away.", spike_grad=surrogate.SFS(25, 1))
leaky(
    "Leaky_straight_through",
    "The straight-through surrogate.",
    spike_grad=surrogate.straight_through_estimator(),
)
leaky(
    "Leaky_custom_surrogate",
    "A surrogate of the user's.",
    spike_grad=surrogate.custom_surrogate(lambda x, grad, spikes: grad * (x.abs() < 0.5)),
)
leaky("Leaky_no_surrogate", "Surrogates are disabled.", surrogate_disable=True)


@library(inputs=strong, **STALE)
def Leaky_per_neuron() -> nn.Module:  # noqa: N802
    """Learnable decays and thresholds, one for each neuron."""
    beta, threshold = torch.rand(WIDTH), torch.rand(WIDTH) + 0.5
    options = {"learn_beta": True, "learn_threshold": True}
    return Explicit(snn.Leaky(beta=beta, threshold=threshold, **options), 1)


@library(inputs=strong, **STALE)
def Leaky_inhibition() -> nn.Module:  # noqa: N802
    """Only the neuron with the highest potential fires."""
    return Explicit(snn.Leaky(beta=0.9, inhibition=True), 1)


@library(inputs=strong, neurons=0, **STALE)
def Leaky_quantised() -> nn.Module:  # noqa: N802
    """The potential is rounded to the nearest of a few levels, found by a search."""
    state_quant = quant.state_quant(num_bits=4, uniform=True, threshold=1.0)
    return Explicit(snn.Leaky(beta=0.9, state_quant=state_quant), 1)


def second_order(name: str, notes: str, make: Callable[[], nn.Module], states: int) -> None:
    """Add a case of a neuron with more states or parameters."""
    library(name=name, notes=notes, inputs=strong, **STALE)(lambda: Explicit(make(), states))


for reset in ("subtract", "zero", "none"):
    second_order(
        f"Synaptic_{reset}",
        f"A synaptic current and a potential, reset: {reset}.",
        lambda reset=reset: snn.Synaptic(alpha=0.8, beta=0.9, reset_mechanism=reset),
        2,
    )
    second_order(
        f"Alpha_{reset}",
        f"Excitatory and inhibitory currents and a potential, reset: {reset}.",
        lambda reset=reset: snn.Alpha(alpha=0.9, beta=0.8, reset_mechanism=reset),
        3,
    )
    second_order(
        f"Lapicque_{reset}",
        f"A circuit of a resistor and a capacitor, reset: {reset}.",
        lambda reset=reset: snn.Lapicque(beta=0.5, time_step=0.1, reset_mechanism=reset),
        1,
    )


@library(inputs=strong, **STALE)
def Synaptic_learned() -> nn.Module:  # noqa: N802
    """Learnable decays, one for each neuron, and a learnable threshold."""
    alpha, beta = torch.rand(WIDTH), torch.rand(WIDTH)
    options = {"learn_alpha": True, "learn_beta": True, "learn_threshold": True}
    return Explicit(snn.Synaptic(alpha=alpha, beta=beta, **options), 2)


def recurrent(name: str, notes: str, neurons: int, make: Callable[[], nn.Module]) -> None:
    """Add a case of a neuron whose spikes come back through weights."""
    library(name=name, notes=notes, inputs=strong, neurons=neurons, **STALE)(
        lambda: Explicit(make(), 2, feedback=True)
    )


recurrent(
    "RLeaky", "Spikes come back through a matrix.", 0,
    lambda: snn.RLeaky(beta=0.9, linear_features=WIDTH),
)  # fmt: skip
recurrent(
    "RLeaky_one_to_one", "Each neuron hears itself alone.", 1,
    lambda: snn.RLeaky(beta=0.9, all_to_all=False, V=0.5),
)  # fmt: skip
recurrent(
    "RSynaptic", "Spikes come back through a matrix, into a synaptic current.", 0,
    lambda: snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=WIDTH),
)  # fmt: skip


class LongShortTerm(Explicit):
    """A cell with gates instead of the linear layer."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        synaptic, potential = self.neuron.reset_mem()
        spikes = []
        for t in range(x.size(0)):
            spike, synaptic, potential = self.neuron(x[t], synaptic, potential)
            spikes.append(spike)
        return torch.stack(spikes), potential


@library(neurons=0, **STALE)
def SLSTM() -> nn.Module:  # noqa: N802
    """A spiking long short-term memory."""
    return LongShortTerm(snn.SLSTM(WIDTH, WIDTH, threshold=0.1), 2)


@library(neurons=0, **STALE | {"programs": 2})
def SLSTM_forgets() -> nn.Module:  # noqa: N802
    """With more units than inputs its states are zeroed at each step: no recurrence."""
    return LongShortTerm(snn.SLSTM(WIDTH, WIDTH + 3, threshold=0.1), 2)


def images(T: int, B: int) -> tuple[Any, ...]:
    return (torch.randn(T, B, 1, 4, 4).requires_grad_(),)


@library(inputs=images, neurons=0, **STALE)
def SConv2dLSTM() -> nn.Module:  # noqa: N802
    """A convolutional spiking long short-term memory."""
    return LongShortTerm(snn.SConv2dLSTM(1, 2, 3, threshold=0.05), 2)


@library(inputs=strong, **STALE)
def Leaky_hidden() -> nn.Module:  # noqa: N802
    """`init_hidden=True` and `utils.reset`."""
    return Hidden(snn.Leaky(beta=0.9, init_hidden=True))


@library(inputs=strong, neurons=3, **STALE)
def Sequential() -> nn.Module:  # noqa: N802
    """`nn.Sequential` of layers with hidden states; the last has `output=True`."""
    return Hidden(
        snn.Leaky(beta=0.9, init_hidden=True, spike_grad=surrogate.fast_sigmoid(25)),
        nn.Linear(WIDTH, WIDTH),
        snn.Synaptic(alpha=0.5, beta=0.8, init_hidden=True),
        nn.Linear(WIDTH, 5),
        snn.Lapicque(beta=0.5, init_hidden=True, output=True),
    )


class Persistent(Hidden):
    """Nobody resets: the state goes on in the next sequence."""

    def forward(self, x: Tensor) -> Any:
        return torch.stack([self.net(x[t]) for t in range(x.size(0))])


@library(inputs=strong, **STALE)
def Leaky_persistent() -> nn.Module:  # noqa: N802
    """The hidden state survives the sequence; another batch size starts from zeros."""
    return Persistent(snn.Leaky(beta=0.9, init_hidden=True))


class PassedState(nn.Module):
    """A state of another shape than the input is silently taken for zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        out = []
        for t in range(x.size(0)):
            spike, mem = self.neuron(x[t], mem)
            out.append(spike)
        return torch.stack(out), mem


def with_state(T: int, B: int) -> tuple[Any, ...]:
    return (*strong(T, B), torch.rand(B, WIDTH).requires_grad_())


def with_one_state(T: int, B: int) -> tuple[Any, ...]:
    return (*strong(T, B), torch.rand(1, WIDTH).requires_grad_())


library(
    name="State_passed",
    notes="The potential is an argument.",
    inputs=with_state,
    double=False,
    programs=2,
)(PassedState)
library(
    name="State_of_another_shape",
    notes="A potential for a batch of one is not broadcast but forgotten.",
    inputs=with_one_state,
    double=False,
    programs=2,
    free=False,
)(PassedState)


@library(inputs=lambda T, B: (strong(T, B)[0][0],), sizes=((7, 3), (7, 2)), neurons=2, **STALE)
class Tutorial(nn.Module):
    """The network of the second tutorial: one image for all steps, records in lists."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, WIDTH)
        self.lif1 = snn.Leaky(beta=0.95)
        self.fc2 = nn.Linear(WIDTH, 3)
        self.lif2 = snn.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(9):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


@library(inputs=lambda T, B: (torch.randn(T, B, 1, 12, 12).requires_grad_(),), neurons=3, **STALE)
class Convolutional(nn.Module):
    """The convolutional network of the sixth tutorial, smaller."""

    def __init__(self) -> None:
        super().__init__()
        spike_grad = surrogate.fast_sigmoid(slope=25)
        options = {"beta": 0.5, "spike_grad": spike_grad, "init_hidden": True}
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.MaxPool2d(2),
            snn.Leaky(**options),
            nn.Conv2d(4, 6, 2),
            nn.MaxPool2d(2),
            snn.Leaky(**options),
            nn.Flatten(),
            nn.Linear(24, 10),
            snn.Leaky(**options, output=True),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        utils.reset(self.net)
        spikes, potentials = [], []
        for step in range(x.size(0)):
            spk_out, mem_out = self.net(x[step])
            spikes.append(spk_out)
            potentials.append(mem_out)
        return torch.stack(spikes), torch.stack(potentials)
