"""The call of a recurrence inside a sequence graph (L2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snncc.ir import interpret
from snncc.ir.program import NeuronProgram


@dataclass(frozen=True, eq=False)
class NeuronCall:
    """Target of a ``call_function`` node: ``call(length, *steps, *lanes)``.

    Its arguments are T, one tensor for each STEP input (broadcastable to [T, *lanes]) and one for
    each LANE input (broadcastable to [*lanes]), in the order of the recurrence; its result is a
    tuple, the outputs [T, *lanes] followed by the finals [*lanes].  Calling it runs the reference
    interpreter, which rounds as the serial code does; `wide` rounds as kernels do.
    """

    program: NeuronProgram

    @property
    def __name__(self) -> str:
        return self.program.forward.name

    def __call__(self, length: int, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Run the recurrence by the reference interpreter."""
        if self.program.result in (torch.float32, torch.float64):
            arguments = _as(self.program.result, arguments)
        return self._interpret(length, arguments)

    def wide(self, length: int, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Run the recurrence with its state in float32 where results are of a half type."""
        result = self.program.result
        if result not in interpret.HALVES:
            return self(length, *arguments)
        return _as(result, self._interpret(length, _as(torch.float32, arguments)))

    def _interpret(self, length: int, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        forward = self.program.forward
        names = (*forward.step_inputs, *forward.lane_inputs)
        inputs = dict(zip(names, arguments, strict=True))
        results = interpret.run_in_order(forward, inputs, length)
        narrow = dict(self.program.narrow)
        types = [narrow.get(name) for name in forward.outputs] + [None] * len(forward.finals)
        return tuple(
            value if dtype is None else value.to(dtype)
            for value, dtype in zip(results, types, strict=True)
        )


def _as(dtype: torch.dtype, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.to(dtype) for tensor in tensors)
