"""Neurons of Norse 1.1: functional steps with explicit states in named tuples.

The initial potential asks for a gradient, and may be one number for all neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Group
from tests.compatibility.imports import quietly

norse = quietly("norse.torch")
reset = quietly("norse.torch.functional.reset")
izhikevich = quietly("norse.torch.functional.izhikevich")

library = Group("norse")
CASES = library.cases


def currents(scale: float) -> Callable[[int, int], tuple[Any, ...]]:
    def inputs(T: int, B: int) -> tuple[Any, ...]:
        return ((torch.rand(T, B, WIDTH) * scale).requires_grad_(),)

    return inputs


class Steps(nn.Module):
    """A cell in a loop over time; the state is None at first."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Any:
        state, out = None, []
        for x_t in x:
            z, state = self.cell(x_t, state)
            out.append(z)
        return torch.stack(out), state


def cell(name: str, notes: str, make: Callable[[], nn.Module], **facts: Any) -> None:
    """Add a case of a cell, called step by step."""
    # Its states and constants are float32 whatever the type of the input.
    given = {"inputs": currents(8.0), "double": False, **facts}
    library(name=name, notes=notes, **given)(lambda: Steps(make()))


def layer(name: str, notes: str, make: Callable[[], nn.Module], **facts: Any) -> None:
    """Add a case of a layer that loops over time itself."""
    given = {"inputs": currents(8.0), "double": False, **facts}
    library(name=name, notes=notes, **given)(make)


RECURRENT: dict[str, Any] = {"neurons": 0}
tonic = izhikevich.tonic_spiking

layer("LIF", "Leaky integrate and fire with a synaptic current.", norse.LIF)
layer("LIF_states", "All states are recorded.", lambda: norse.LIF(record_states=True))
for method in ("triangle", "tanh", "circ", "heavi_erfc", "heaviside"):
    layer(
        f"LIF_{method}",
        f"The surrogate '{method}'.",
        lambda method=method: norse.LIF(
            norse.LIFParameters(method=method, alpha=torch.tensor(0.5))
        ),
    )
layer("LI", "A leaky integrator.", norse.LI)
layer("LSNN", "An adaptive threshold.", norse.LSNN)
layer("IAF", "Integrate and fire.", norse.IAF)
layer("LIFEx", "An exponential term.", norse.LIFEx)
layer("LIFAdEx", "An exponential term and adaptation.", norse.LIFAdEx)
layer(
    "Izhikevich", "A quadratic term and recovery.", lambda: norse.Izhikevich(tonic),
    inputs=currents(60.0),
)  # fmt: skip
cell("LIFCell", "A leaky neuron whose first potential is one number.", norse.LIFCell)
cell("LICell", "A leaky integrator.", norse.LICell)
cell("LSNNCell", "An adaptive threshold.", norse.LSNNCell)
cell("IAFCell", "Integrate and fire.", norse.IAFCell)
cell("LIFBoxCell", "Without a synaptic current.", norse.LIFBoxCell)
cell(
    "LIFBoxCell_subtract", "A reset by subtraction.",
    lambda: norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=reset.reset_subtract)),
)  # fmt: skip
cell("LIBoxCell", "An integrator without a synaptic current.", norse.LIBoxCell)
cell("LIFExCell", "An exponential term.", norse.LIFExCell)
cell("LIFAdExCell", "An exponential term and adaptation.", norse.LIFAdExCell)
cell("LIFRefracCell", "A refractory time.", norse.LIFRefracCell)
cell("LIFAdExRefracCell", "Adaptation and a refractory time.", norse.LIFAdExRefracCell)
cell(
    "IzhikevichCell", "A quadratic term and recovery.", lambda: norse.IzhikevichCell(tonic),
    inputs=currents(60.0),
)  # fmt: skip
cell("LILinearCell", "An integrator with weights.", lambda: norse.LILinearCell(WIDTH, WIDTH))


def recurrent(name: str, make: Callable[[], nn.Module]) -> None:
    """Add a case of a layer or a cell with recurrent weights, of which none is to itself."""
    add = cell if name.endswith("Cell") else layer
    add(name, "Spikes come back through a matrix.", make, **RECURRENT | {"inputs": currents(3.0)})


for kind in ("LIF", "LSNN", "LIFEx", "LIFAdEx", "LIFRefrac", "LIFAdExRefrac"):
    for suffix in ("Recurrent", "RecurrentCell"):
        recurrent(kind + suffix, lambda name=kind + suffix: getattr(norse, name)(WIDTH, WIDTH))
# Its step forgets its input, so the number of steps is known from Python alone.
cell(
    "CobaLIFCell", "Conductances; spikes come back through a matrix.",
    lambda: norse.CobaLIFCell(WIDTH, WIDTH), **RECURRENT, programs=2, free=False,
)  # fmt: skip
recurrent("LIFMCRecurrentCell", lambda: norse.LIFMCRecurrentCell(WIDTH, WIDTH))
recurrent("LIFMCRefracRecurrentCell", lambda: norse.LIFMCRefracRecurrentCell(WIDTH, WIDTH))
recurrent("IzhikevichRecurrent", lambda: norse.IzhikevichRecurrent(WIDTH, WIDTH, tonic))
recurrent("IzhikevichRecurrentCell", lambda: norse.IzhikevichRecurrentCell(WIDTH, WIDTH, tonic))


@library(inputs=currents(8.0), double=False)
class LearnedParameters(nn.Module):
    """Time constants and the threshold are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((WIDTH,), 100.0))
        self.threshold = nn.Parameter(torch.tensor(0.8))
        self.lif = norse.LIF(norse.LIFParameters(tau_mem_inv=self.rate, v_th=self.threshold))

    def forward(self, x: Tensor) -> Any:
        return self.lif(x)


@library(inputs=currents(8.0), double=False)
class PassedState(nn.Module):
    """The final state of one half is the initial state of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = norse.LIFCell()

    def forward(self, x: Tensor) -> Any:
        state = norse.LIFFeedForwardState(v=x[0].tanh(), i=x[1])
        out = []
        for x_t in x:
            z, state = self.lif(x_t, state)
            out.append(z)
        return torch.stack(out), state


def images(T: int, B: int) -> tuple[Any, ...]:
    return ((torch.rand(T, B, 1, 6, 6) * 20).requires_grad_(),)


@library(inputs=images, neurons=2, double=False)
class Cells(nn.Module):
    """`SequentialState` of layers and cells in a loop over time; the largest potential."""

    def __init__(self) -> None:
        super().__init__()
        self.net = norse.SequentialState(
            nn.Conv2d(1, 4, 3), norse.LIFCell(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(16, 5), norse.LICell(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for x_t in x:
            y, state = self.net(x_t, state)
            out.append(y)
        return torch.stack(out).max(0).values


@library(inputs=images, neurons=2, double=False)
class Lifted(nn.Module):
    """`SequentialState` of lifted layers and of neurons that loop over time themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.net = norse.SequentialState(
            norse.Lift(nn.Conv2d(1, 4, 3)), norse.LIF(), norse.Lift(nn.AvgPool2d(2)),
            norse.Lift(nn.Flatten()), norse.Lift(nn.Linear(16, 5)), norse.LI(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        return self.net(x)[0]


layer(
    "Lift", "A network of one step, lifted over time.",
    lambda: norse.Lift(
        norse.SequentialState(
            nn.Linear(WIDTH, WIDTH), norse.LIFCell(), nn.Linear(WIDTH, 5), norse.LICell()
        )
    ),
    neurons=2,
)  # fmt: skip
cell(
    "RecurrentSequential", "The output of a network comes back to its input.",
    lambda: norse.RecurrentSequential(norse.LIFCell(), nn.Linear(WIDTH, WIDTH), norse.LIFCell()),
    **RECURRENT,
)  # fmt: skip
