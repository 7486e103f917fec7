"""From the nodes of NIR to the modules of one step, by what the nodes hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snncc.nir.checks import CHECK, common_size, numbers, refused, whole
from snncc.nir.stages import (
    Current,
    Delay,
    Firing,
    Flatten,
    Integrator,
    Scale,
    Spike,
    Stage,
    Stateless,
    Threshold,
)

LONGEST_DELAY = 10_000  # steps; each is a state of its own


class NodeReader:
    """Makes the stage of a node.

    Args:
        dt: Length of a step in the units of the node's time constants, seconds.
        spike: The spike function, of ``v - v_threshold``.
    """

    def __init__(self, dt: float, spike: Spike) -> None:
        self.dt, self.spike = dt, spike

    def stage(self, name: str, node: Any) -> Stage:
        """Return the stage of a node of any type.

        Raises:
            OptionError: There is no such stage.
        """
        kind = type(node).__name__
        read = getattr(self, f"read_{kind.lower()}", None)
        if read is None:
            raise refused(f"Node '{name}' is a {kind}, for which there is no code.")
        try:
            stage: Stage = read(name, node)
        except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise refused(f"Node '{name}', a {kind}, cannot be read: {error}.", CHECK) from error
        return stage

    def read_linear(self, name: str, node: Any) -> Stage:
        """``y = W x``."""
        return _product(name, {"weight": node.weight})

    def read_affine(self, name: str, node: Any) -> Stage:
        """``y = W x + b``."""
        return _product(name, {"weight": node.weight, "bias": node.bias})

    def read_scale(self, name: str, node: Any) -> Stage:
        """``y = k x``, element by element."""
        held = numbers(name, {"scale": node.scale})
        return Scale(common_size(name, held), held["scale"])

    def read_conv1d(self, name: str, node: Any) -> Stage:
        """A convolution over one axis."""
        return _convolution(nn.Conv1d, name, node)

    def read_conv2d(self, name: str, node: Any) -> Stage:
        """A convolution over two axes."""
        return _convolution(nn.Conv2d, name, node)

    def read_avgpool2d(self, name: str, node: Any) -> Stage:
        """The mean of each window; padding counts as zeros."""
        return _pooling(name, node, None)

    def read_sumpool2d(self, name: str, node: Any) -> Stage:
        """The sum of each window."""
        return _pooling(name, node, 1)

    def read_flatten(self, _: str, node: Any) -> Stage:
        """Axes merged into one; the batch is not counted."""
        return Stateless(Flatten(int(node.start_dim), int(node.end_dim)))

    def read_threshold(self, name: str, node: Any) -> Stage:
        """A spike wherever the input is above a threshold."""
        held = numbers(name, {"threshold": node.threshold})
        return Threshold(common_size(name, held), held["threshold"], self.spike)

    def read_delay(self, name: str, node: Any) -> Stage:
        """A delay by whole steps, the same for all elements."""
        held = numbers(name, {"delay": node.delay})
        steps = held["delay"].double() / self.dt
        count = round(float(steps.flatten()[0]))
        if count < 0 or not torch.allclose(steps, steps.new_tensor(float(count)), atol=1e-3):
            raise refused(
                f"The delays of node '{name}' are not all the same number of steps of {self.dt} s.",
                "Choose a step 'dt' that divides them, and one node for each delay.",
            )
        if count > LONGEST_DELAY:
            raise refused(
                f"Node '{name}' waits for {count} steps of {self.dt} s, more than {LONGEST_DELAY}.",
                "Choose a longer step 'dt'.",
            )
        return Delay(common_size(name, held), count)

    def read_i(self, name: str, node: Any) -> Stage:
        """An integrator without leak."""
        return self.integrator(name, {"r": node.r})

    def read_li(self, name: str, node: Any) -> Stage:
        """A leaky integrator."""
        return self.integrator(name, {"tau": node.tau, "r": node.r, "v_leak": node.v_leak})

    def read_if(self, name: str, node: Any) -> Stage:
        """An integrate-and-fire neuron without leak."""
        return self.firing(name, node, {"r": node.r})

    def read_lif(self, name: str, node: Any) -> Stage:
        """A leaky integrate-and-fire neuron."""
        return self.firing(name, node, {"tau": node.tau, "r": node.r, "v_leak": node.v_leak})

    def read_cubali(self, name: str, node: Any) -> Stage:
        """A leaky integrator behind a synapse."""
        membrane = {"tau": node.tau_mem, "r": node.r, "v_leak": node.v_leak}
        return Current(self.synapse(name, node), self.integrator(name, membrane))

    def read_cubalif(self, name: str, node: Any) -> Stage:
        """A leaky integrate-and-fire neuron behind a synapse."""
        membrane = {"tau": node.tau_mem, "r": node.r, "v_leak": node.v_leak}
        return Current(self.synapse(name, node), self.firing(name, node, membrane))

    def synapse(self, name: str, node: Any) -> Integrator:
        """Return the current of a neuron, whose leak is at 0."""
        return self.integrator(name, {"tau": node.tau_syn, "r": node.w_in, "v_leak": 0.0})

    def integrator(self, name: str, values: Mapping[str, Any]) -> Integrator:
        """Return what integrates and does not fire."""
        held = numbers(name, values)
        return Integrator(common_size(name, held), **self.euler(name, held))

    def firing(self, name: str, node: Any, values: Mapping[str, Any]) -> Firing:
        """Return what integrates and fires."""
        fires = numbers(name, {"v_threshold": node.v_threshold, "v_reset": node.v_reset})
        held = numbers(name, values)
        return Firing(common_size(name, held | fires), self.spike, fires | self.euler(name, held))

    def euler(self, name: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return forward Euler of ``tau dv/dt = v_leak - v + r x``, or of ``dv/dt = r x``.

        Raises:
            OptionError: A time constant is shorter than a step, where Euler's method oscillates.
        """
        wide = {key: value.double() for key, value in values.items()}
        if "tau" not in wide:
            one = torch.ones((), dtype=torch.float64)
            return {"decay": one, "gain": wide["r"] * self.dt, "leak": 0 * one}
        rate = self.dt / wide["tau"]
        if not bool(((rate > 0) & (rate <= 1)).all()):
            raise refused(
                f"A time constant of node '{name}' is not longer than a step of {self.dt} s.",
                "Choose a shorter step 'dt'.",
            )
        return {"decay": 1.0 - rate, "gain": rate * wide["r"], "leak": rate * wide["v_leak"]}


def _product(name: str, values: Mapping[str, Any]) -> Stage:
    held = numbers(name, values)
    rows, columns = held["weight"].shape
    made = nn.Linear(columns, rows, bias="bias" in held)
    _fill(name, made, held)
    return Stateless(made, 1, (rows,))


def _convolution(kind: type[nn.Conv1d | nn.Conv2d], name: str, node: Any) -> Stage:
    held = numbers(name, {"weight": node.weight, "bias": node.bias})
    outputs, inputs, *kernel = held["weight"].shape
    (groups,) = whole(name, "groups", node.groups, least=1)
    if outputs % groups:
        raise refused(f"Node '{name}' has {outputs} channels in {groups} groups.")
    padding = node.padding
    if not isinstance(padding, str):
        padding = _axes(name, "padding", padding, len(kernel), 0)
    made = kind(
        inputs * groups,
        outputs,
        tuple(kernel),  # type: ignore[arg-type]
        _axes(name, "stride", node.stride, len(kernel), 1),  # type: ignore[arg-type]
        padding,
        _axes(name, "dilation", node.dilation, len(kernel), 1),  # type: ignore[arg-type]
        groups,
    )
    _fill(name, made, held)
    return Stateless(made, 1 + len(kernel))


def _pooling(name: str, node: Any, divisor: int | None) -> Stage:
    kernel, stride, padding = (
        _axes(name, key, getattr(node, key), 2, least)
        for key, least in (("kernel_size", 1), ("stride", 1), ("padding", 0))
    )
    made = nn.AvgPool2d(
        kernel,  # type: ignore[arg-type]
        stride,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        divisor_override=divisor,
    )
    return Stateless(made, 3)


def _fill(name: str, module: nn.Module, held: Mapping[str, Tensor]) -> None:
    """Copy weights and bias into a module."""
    for key, values in held.items():
        target: Any = getattr(module, key)
        if target.shape != values.shape:
            raise refused(
                f"'{key}' of node '{name}' has the shape {list(values.shape)}, "
                f"not {list(target.shape)}.",
                CHECK,
            )
        with torch.no_grad():
            target.copy_(values)


def _axes(name: str, key: str, value: Any, count: int, least: int) -> tuple[int, ...]:
    """Return one number for each axis."""
    found = whole(name, key, value, least=least)
    return found * count if len(found) == 1 else found
