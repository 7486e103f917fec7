"""Python numbers that differ from step to step, as operands of operators on whole sequences.

At one step ``0.9 ** t * x`` multiplies by a Python number, which takes the type of the other
operand.  Over all steps the numbers are a tensor [T, 1, ...] of that type; where torch treats a
number and a tensor differently (the exponent of a power, a bound of a clamp), the operator runs
once a step instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.fx

TAKES_NUMBERS = frozenset(
    {
        torch.add, torch.sub, torch.mul, torch.div, torch.where, torch.lt, torch.le, torch.gt,
        torch.ge, torch.eq, torch.ne,
    }
)  # fmt: skip


def takes_numbers(node: torch.fx.Node, values: Sequence[float]) -> bool:
    """Tell whether a tensor of numbers means the same to an operator as the numbers do."""
    options = [v for v in node.kwargs.values() if isinstance(v, torch.fx.Node)]
    if node.target not in TAKES_NUMBERS or options:
        return False
    # In half precision torch computes with the number as it is; a tensor of numbers is rounded.
    return number_dtype(node, values).itemsize != 2


def number_dtype(node: torch.fx.Node, values: Sequence[float]) -> torch.dtype:
    """Return the type that Python numbers take as operands of a node."""
    operands = node.args[1:] if node.target is torch.where else node.args
    seen = [n.meta["dtype"] for n in operands if isinstance(n, torch.fx.Node) and "shape" in n.meta]
    number = float(values[0]) if any(isinstance(v, float) for v in values) else int(values[0])
    if not seen:
        return torch.result_type(torch.empty(0, dtype=torch.bool), number)
    strongest = max(seen, key=lambda d: (d.is_complex, d.is_floating_point, d.itemsize))
    return torch.result_type(torch.empty(0, dtype=strongest), number)
