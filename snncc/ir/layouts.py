"""How operands lie in memory, where an operator rounds by that.

A sum takes its terms in the order of memory, a product chooses its kernel by strides, and torch
computes some functions with vectors in the middle of a tensor and with other code at its end.  A
compiled program holds time outermost and leaves out copies, as `contiguous`, that change nothing
but the order of elements; such operators are given what the serial code gave them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

# The axes of an operand from the outermost in memory to the innermost; None where that is their
# order, without gaps.
Order: TypeAlias = tuple[int, ...] | None

_SUMS = (
    torch.sum, torch.mean, torch.prod, torch.var, torch.std, torch.var_mean, torch.std_mean,
    torch.norm, torch.Tensor.norm, torch.linalg.vector_norm, torch.logsumexp, torch.softmax,
    torch.log_softmax, torch.cumsum, torch.cumprod, torch.nansum, torch.nanmean, torch.cdist,
)  # fmt: skip
_PRODUCTS = (
    torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot, torch.einsum, torch.addmm,
    torch.baddbmm, torch.tensordot, torch.conv1d, torch.conv2d, torch.conv3d,
)  # fmt: skip
_MATHS = (torch.sigmoid, torch.sinh, torch.cosh, torch.atan2, torch.hypot, torch.pow)
_NAMED = frozenset((*_SUMS, *_PRODUCTS, *_MATHS))
# Of the functions of `torch.nn.functional`, those that only choose, compare or move.
_EXACT = frozenset(
    {
        *(F.relu, F.leaky_relu, F.hardtanh, F.threshold, F.pad, F.one_hot, F.embedding),
        *(F.dropout, F.max_pool1d, F.max_pool2d, F.max_pool3d),
        *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    }
)

# Views that change the order of axes, and those that keep the order that they find.
TURNING = frozenset({torch.transpose, torch.permute, torch.movedim, torch.t, torch.swapaxes})
VIEWS = frozenset(
    {
        *(torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze),
        *(torch.select, torch.narrow, torch.Tensor.expand, torch.detach, operator.getitem),
    }
)


def rounds_by_layout(target: Any) -> bool:
    """Tell whether the results of a function may depend on how its operands lie in memory."""
    module = getattr(target, "__module__", "")
    is_layer = module in ("torch.nn.functional", "torch._C._nn")
    return target in _NAMED or (is_layer and target not in _EXACT)


def orders_of(operands: Sequence[Any]) -> tuple[Order, ...]:
    """Return the order of each operand; nothing where all have none of their own."""
    orders = tuple([_order(x) if isinstance(x, Tensor) else None for x in operands])
    return orders if any(orders) else ()


def _order(x: Tensor) -> Order:
    if x.layout is not torch.strided or x.is_contiguous():
        return None
    return tuple(sorted(range(x.dim()), key=x.stride, reverse=True))


def in_order(x: Tensor, order: Order) -> Tensor:
    """Return a tensor whose elements lie in an order, the same where they do already."""
    if order is None:
        return x.contiguous()
    moved = x.permute(order)
    if moved.is_contiguous():
        return x
    back = sorted(range(len(order)), key=order.__getitem__)
    return moved.contiguous().permute(back)


def arranged(args: Sequence[Any], layouts: Mapping[int, Order]) -> tuple[Any, ...]:
    """Return arguments of which some lie in an order."""
    given = list(args)
    for place, order in layouts.items():
        given[place] = in_order(given[place], order)
    return tuple(given)


@dataclass(frozen=True, eq=False)
class Arranging:
    """Target of a node that arranges operands before it calls an operator.

    Attributes:
        operator: The operator.
        layouts: For positions among the arguments the order of what is there.
    """

    operator: Callable[..., Any]
    layouts: Mapping[int, Order]

    @property
    def __name__(self) -> str:
        return str(self.operator.__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the operator."""
        return self.operator(*arranged(args, self.layouts), **kwargs)
