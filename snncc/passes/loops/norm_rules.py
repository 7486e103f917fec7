"""Batch norms inside a recurrent loop that take the statistics of each step: their gradients.

Forward notes the mean and the deviation of each step, and the reverse step is one call::

    x'  = (x - mean) / deviation
    gx  = weight / deviation (g - mean(g) - x' mean(g x'))      gw = sum(g x')      gb = sum(g)

Running statistics change in forward, step by step, and have no gradients.

Numerics: forward bitwise, the calls that torch makes; gradients those of torch's own backward,
those of weight and bias up to the order of the sum over steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

Node = torch.fx.Node
_TYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm with statistics of its batch.

    Attributes:
        node: The operator.
        x: What is normalised.
        weight: The factor of each channel, or None.
        bias: The summand of each channel, or None.
        eps: What is added to a variance.
    """

    node: Node
    x: Node
    weight: Node | None
    bias: Node | None
    eps: float

    @property
    def differentiable(self) -> tuple[Node | None, ...]:
        """What may have a gradient, in the order of `norm_ops.norm_gradient`."""
        return self.x, self.weight, self.bias


def find_norm(node: Node) -> Norm | None:
    """Return a node of a loop's body as a norm that has a rule, or None."""
    args: Any = node.args
    if node.target is not F.batch_norm or node.kwargs or len(args) != 8:
        return None
    x, mean, var, weight, bias, training, momentum, eps = args
    tensors = [x, *(t for t in (mean, var, weight, bias) if t is not None)]
    if not all(isinstance(t, Node) and t.meta.get("dtype") in _TYPES for t in tensors):
        return None
    numbers = isinstance(momentum, int | float) and isinstance(eps, int | float)
    same = len({t.meta["dtype"] for t in tensors}) == 1
    return Norm(node, x, weight, bias, eps) if training is True and numbers and same else None
