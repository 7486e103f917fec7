"""The sizes of a value inside a time loop, known before the loop runs.

Sizes are the same at every step, while the value itself may depend on everything before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from snncc.ir.time_loop import Result, TimeLoop, Trip

Signature = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class StepSizes:
    """Target of a node that takes the operands of a loop: the sizes of one value of its body.

    Two steps are run on tensors without data, once for each combination of operand sizes.
    """

    loop: TimeLoop
    node: str
    known: dict[Signature, tuple[int, ...]] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        return f"sizes_of_{self.node}"

    def __call__(self, *operands: Any) -> tuple[int, ...]:
        """Return the sizes of the value."""
        signature = tuple(_signature(x) for x in operands)
        if signature not in self.known:
            self.known[signature] = self._run(operands)
        return self.known[signature]

    def _run(self, operands: tuple[Any, ...]) -> tuple[int, ...]:
        steps = min(2, self.loop.length(operands))
        loop = replace(self.loop, trip=Trip(steps), results=(Result(self.node, stacked=False),))
        plain = [x.detach() if isinstance(x, Tensor) else x for x in operands]
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in plain]
            (value,) = loop(*fakes)
        return tuple(int(n) for n in value.shape)


def _signature(value: Any) -> Any:
    return (tuple(value.shape), value.dtype, value.device) if isinstance(value, Tensor) else value
