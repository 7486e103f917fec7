"""The call of a recurrent loop inside a sequence graph (L2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.fx

from snncc.ir.time_loop import TimeLoop


@dataclass(frozen=True, eq=False)
class LoopAdjoint:
    """The gradient of a loop: a loop in reverse time, and what runs once after it.

    Attributes:
        training: The loop with more results after its own: what ``backward`` needs of each step.
        backward: Maps the operands of the loop, the results of ``training`` and one cotangent for
            each result of the loop to a tuple: for each operand its gradient, or None.
        differentiable: For each result of the loop whether it has a gradient.
    """

    training: TimeLoop
    backward: torch.fx.Graph
    differentiable: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class LoopCall:
    """Target of a ``call_function`` node: a loop whose steps depend on one another across lanes.

    It takes and returns what its loop does.  The body of the loop calls operators that stay as they
    are, and `StepCall`s.  Calling it runs the reference, step by step.
    """

    forward: TimeLoop
    adjoint: LoopAdjoint | None = None

    @property
    def __name__(self) -> str:
        return self.forward.name

    @property
    def wanted(self) -> tuple[bool, ...]:
        """For each operand whether its gradient is computed."""
        if self.adjoint is None:
            return (False,) * self.forward.operands
        gradients: Any = self.adjoint.backward.output_node().args[0]
        return tuple(gradient is not None for gradient in gradients)

    @property
    def loops(self) -> tuple[TimeLoop, ...]:
        """The loop, and where it has a gradient the loop of training and the reverse loop."""
        if self.adjoint is None:
            return (self.forward,)
        targets = (node.target for node in self.adjoint.backward.nodes)
        reverse = (target.forward for target in targets if isinstance(target, LoopCall))
        return (self.forward, self.adjoint.training, *reverse)

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Run the loop by the reference, step by step."""
        return self.forward(*arguments)


def loop_of(node: torch.fx.Node) -> TimeLoop | None:
    """Return the loop that a node of a sequence graph calls, or None where it calls none."""
    if isinstance(node.target, LoopCall):
        return node.target.forward
    return node.target if isinstance(node.target, TimeLoop) else None
