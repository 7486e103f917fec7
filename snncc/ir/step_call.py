"""The elementwise part of one time step of a loop, as one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.ir import interpret
from snncc.ir.nodes import Recurrence
from snncc.ir.time_loop import Fill


@dataclass(frozen=True, eq=False)
class StepCall:
    """Target of a ``call_function`` node in the body of a `TimeLoop`: ``call(*inputs)``.

    It evaluates one step of a recurrence that has no states of its own: what flows from step to
    step are carries of the loop, which come in as STEP inputs and go out as outputs.  The inputs
    are tensors of any dtype that broadcast together, or numbers; the result is a tuple, one tensor
    of all lanes for each output, bools as 0 and 1.  Calling it runs the reference interpreter.

    Attributes:
        recurrence: The step; its inputs are all STEP inputs.
        dtype: The working type.
        narrow: Outputs that are of a half type, as pairs of their name and the type.
    """

    recurrence: Recurrence
    dtype: torch.dtype
    narrow: tuple[tuple[str, torch.dtype], ...] = ()

    @property
    def __name__(self) -> str:
        return self.recurrence.name

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Evaluate the step by the reference interpreter."""
        names = self.recurrence.step_inputs
        inputs = {n: self._tensor(x) for n, x in zip(names, arguments, strict=True)}
        shape = torch.broadcast_shapes(*(x.shape for x in inputs.values()))  # type: ignore[no-untyped-call]
        values = interpret.run_step(self.recurrence, inputs, {})
        outputs = self.recurrence.outputs
        return tuple(values[name].to(self.type_of(name)).expand(shape) for name in outputs)

    def type_of(self, output: str) -> torch.dtype:
        """Return the type of an output."""
        return dict(self.narrow).get(output, self.dtype)

    def _tensor(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(self.dtype)
        if not isinstance(value, Fill):
            return torch.tensor(float(value), dtype=self.dtype)
        return torch.tensor(float(value.value), dtype=value.dtype or self.dtype).to(self.dtype)


def step_inputs(call: torch.fx.Node) -> dict[str, torch.fx.Node]:
    """Return what a call of a step reads, by the names of its inputs."""
    step: Any = call.target
    nodes: Any = call.args
    return dict(zip(step.recurrence.step_inputs, nodes, strict=True))


def output_name(output: torch.fx.Node) -> str:
    """Return the name that an output of a step has inside of it."""
    call, position = output.args
    step: Any = call.target  # type: ignore[union-attr]
    name: str = step.recurrence.outputs[position]
    return name
