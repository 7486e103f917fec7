"""From a recurrence to the NIR node that means the same, or the reason why there is none.

What the recurrence means was found by `classify_neurons`: a charge ``decay v + gain x + rest``, a
spike and a reset.  Its numbers are evaluated in float64 with the values that its parameters have,
and solved for the time constants of a step of forward Euler::

    tau = dt / (1 - decay);   r = gain tau / dt;   v_leak = rest / (1 - decay)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from snncc.ir import interpret
from snncc.ir.neuron_class import NeuronClass, Reset, Role, SpikeClass, StateClass, Values
from snncc.ir.nodes import Const, Expr, Op, Recurrence, Var
from snncc.passes.meaning.classify_neurons import classify_neuron


class InexpressibleError(Exception):
    """NIR has no node for a recurrence; the message says what is in the way."""


@dataclass(frozen=True)
class Translation:
    """A NIR node, and by what its inputs have to be scaled before they add up.

    Attributes:
        node: The node.
        scales: For each input of the recurrence its factor; None where that is 1.
    """

    node: Any
    scales: dict[str, Any]


@dataclass(frozen=True)
class _Euler:
    """The numbers of one state: ``decay v + sum(gain x) + rest``, each of the layer's shape."""

    decay: Tensor
    gains: dict[str, Tensor]
    rest: Tensor

    @property
    def gain(self) -> Tensor:
        """The factor on the first input."""
        return next(iter(self.gains.values()))


def neuron_node(
    recurrence: Recurrence, values: Mapping[str, Tensor], like: Tensor, dt: float
) -> Translation:
    """Return the NIR node of a recurrence.

    Args:
        recurrence: What one step computes.
        values: Its inputs of one value a lane, as they are now.
        like: One sample of its output, for shape and type.
        dt: Length of a step, in seconds.

    Raises:
        InexpressibleError: There is none.
    """
    return _Translator(recurrence, values, like, dt).translation()


class _Translator:
    def __init__(
        self, recurrence: Recurrence, values: Mapping[str, Tensor], like: Tensor, dt: float
    ) -> None:
        self.recurrence, self.dt, self.dtype = recurrence, dt, like.dtype
        self.zeros = torch.zeros(like.shape, dtype=torch.float64)
        self.values = {name: value.detach().double() for name, value in values.items()}
        self.neuron: NeuronClass = classify_neuron(recurrence)

    def translation(self) -> Translation:
        """Return the node."""
        import nir

        membrane = self._membrane()
        self._check_starts()
        currents = [s for s in self.neuron.states if s.role is Role.CURRENT]
        if len(currents) > 1:
            raise InexpressibleError("it has several currents")
        spike = self._spike(membrane)
        fired = {} if spike is None else self._firing(spike, membrane)
        if currents:
            synapse, euler = self._current(currents[0], membrane)
            kind = nir.CubaLI if spike is None else nir.CubaLIF
            tau, r, leak = self._solved(euler)
            tau_syn, w_in, _ = self._solved(synapse)
            node = kind(tau_syn=tau_syn, tau_mem=tau, r=r, v_leak=leak, w_in=w_in, **fired)
            return Translation(node, self._scales(synapse))
        if membrane.coupled_to:
            raise InexpressibleError(f"'{membrane.name}' depends on another state")
        euler = self._euler(membrane, self.recurrence.step_inputs)
        if bool((euler.decay == 1).all()) and not bool(euler.rest.any()):
            r = self._array(euler.gain / self.dt)
            node = nir.I(r=r) if spike is None else nir.IF(r=r, **fired)
        else:
            tau, r, leak = self._solved(euler)
            kind = nir.LI if spike is None else nir.LIF
            node = kind(tau=tau, r=r, v_leak=leak, **fired)
        return Translation(node, self._scales(euler))

    def _scales(self, euler: _Euler) -> dict[str, Any]:
        """Return by what each input has to be scaled where the node scales the first one only."""
        if not bool(euler.gain.all()):
            raise InexpressibleError("its input has no weight")
        ratios = {name: gain / euler.gain for name, gain in euler.gains.items()}
        return {n: None if bool((r == 1).all()) else self._array(r) for n, r in ratios.items()}

    def _membrane(self) -> StateClass:
        """Return the state whose potential fires, or leaves the neuron."""
        states = [s for s in self.neuron.states if s.role is not Role.CURRENT]
        if len(states) != 1:
            raise InexpressibleError(f"it is a {self.neuron.name}")
        return states[0]

    def _check_starts(self) -> None:
        for state in self.recurrence.states:
            start = state.initial
            value = self._value(start) if isinstance(start, Var) else torch.tensor(start.value)
            if bool(value.any()):
                raise InexpressibleError(f"its state '{state.name}' does not start at 0")

    def _spike(self, membrane: StateClass) -> SpikeClass | None:
        """Return the spike that leaves the neuron, or None where the potential does."""
        outputs = self.recurrence.outputs
        if len(outputs) != 1:
            raise InexpressibleError("both its spikes and its potential are used")
        if not self.neuron.spikes:
            if outputs[0] != membrane.update:
                raise InexpressibleError("what leaves it is not its new potential")
            return None
        spike = self.neuron.spikes[0]
        if len(self.neuron.spikes) > 1 or outputs[0] != spike.name:
            raise InexpressibleError("what leaves it is not its spike")
        return spike

    def _firing(self, spike: SpikeClass, membrane: StateClass) -> dict[str, Any]:
        """Return threshold and reset potential."""
        if spike.values is not Values.BINARY or spike.levels not in ((), (1.0,)) or spike.is_gated:
            raise InexpressibleError(f"its spikes are {spike.values.value}")
        if spike.membrane != membrane.name or spike.threshold is None or spike.is_adaptive:
            raise InexpressibleError("its spikes do not follow from its potential alone")
        if spike.is_early:
            raise InexpressibleError("it fires by what the step before left")
        if membrane.reset is not Reset.HARD or membrane.is_delayed or membrane.amount is None:
            raise InexpressibleError("NIR resets to a value, in the step of the spike")
        threshold = self._value(spike.threshold)
        if spike.comparison is Op.GE:  # above the next smaller number
            below = threshold.to(self.dtype).expand(self.zeros.shape)
            threshold = torch.nextafter(below, torch.full_like(below, -torch.inf)).double()
        elif spike.comparison is not Op.GT:
            raise InexpressibleError("it does not fire above a threshold")
        return {
            "v_threshold": self._array(threshold),
            "v_reset": self._array(self._value(membrane.amount)),
        }

    def _euler(self, state: StateClass, sources: Sequence[str]) -> _Euler:
        """Return the numbers of a state that some inputs, or another state, drive."""
        if state.decay is None or state.drive is None:
            raise InexpressibleError(f"'{state.name}' is not a decay and an input")
        if not sources:
            raise InexpressibleError("it has no input")
        states = (s.name for s in self.recurrence.states)
        zeros = dict.fromkeys((*states, *self.recurrence.step_inputs), self.zeros)
        rest = self._value(state.drive, zeros)
        one, two = self.zeros + 1, self.zeros + 2
        gains = {name: self._value(state.drive, zeros | {name: one}) - rest for name in sources}
        together = self._value(state.drive, zeros | dict.fromkeys(sources, two)) - rest
        if not torch.allclose(together, 2 * sum(gains.values(), self.zeros)):
            raise InexpressibleError(f"'{state.name}' does not add up its inputs")
        decay = self._value(state.decay, zeros)
        if not torch.equal(decay, self._value(state.decay, zeros | dict.fromkeys(sources, one))):
            raise InexpressibleError(f"the decay of '{state.name}' depends on its input")
        return _Euler(decay, gains, rest)

    def _current(self, current: StateClass, membrane: StateClass) -> tuple[_Euler, _Euler]:
        """Return the numbers of a synaptic current and of the membrane that sees its new value."""
        if current.coupled_to or membrane.coupled_to != (current.name,):
            raise InexpressibleError(f"'{membrane.name}' is not driven by one current")
        if current.reset is not Reset.NONE:
            raise InexpressibleError(f"a spike resets its current '{current.name}'")
        sources = self.recurrence.step_inputs
        synapse = self._euler(current, sources)
        euler = self._euler(membrane, (current.name,))
        seen = self._euler(membrane, sources)  # through the new current
        if bool(synapse.rest.any()) or not bool(synapse.decay.all()):
            raise InexpressibleError(f"its current '{current.name}' has a leak of its own")
        r = euler.gain / synapse.decay
        if any(not torch.allclose(seen.gains[n], r * synapse.gains[n]) for n in sources):
            raise InexpressibleError("its potential does not see the new current alone")
        return synapse, _Euler(euler.decay, {current.name: r}, euler.rest)

    def _solved(self, euler: _Euler) -> tuple[Any, Any, Any]:
        """Return tau, r and v_leak."""
        rate = 1 - euler.decay
        if not bool(((rate > 0) & (rate <= 1)).all()):
            raise InexpressibleError("a decay is not from 0 to below 1")
        return (
            self._array(self.dt / rate),
            self._array(euler.gain / rate),
            self._array(euler.rest / rate),
        )

    def _value(self, expr: Expr, more: Mapping[str, Tensor] | None = None) -> Tensor:
        """Evaluate an expression over parameters in float64."""
        values = {**(more or {}), **self.values}
        try:
            result = interpret.evaluate(expr, values, self.zeros)
        except KeyError as error:
            raise InexpressibleError(f"a parameter of it changes with {error}") from error
        while result.dim() > self.zeros.dim():
            if not bool((result == result[:1]).all()):
                raise InexpressibleError("a parameter of it differs from sample to sample")
            result = result[0]
        if isinstance(expr, Const):
            result = result.to(self.dtype)  # as the kernel rounds it
        return result.double().expand(self.zeros.shape)

    def _array(self, values: Tensor) -> numpy.ndarray[Any, Any]:
        return numpy.array(values.expand(self.zeros.shape).numpy(), dtype=numpy.float64)
