"""Translation validation: run the program before and after a pass on the same data and compare.

It runs in float64, where a sum taken in another order differs by about 1e-16 and practically never
moves a potential across the threshold, so that the bound below is far from both rounding and from
any fault of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor

from snncc.errors import InternalError
from snncc.ir.custom_gradient import run_graph
from snncc.ir.numerics import Numerics
from snncc.passes.base import Pass

# Relative error allowed to a pass that reassociates, in float64.
TOLERANCE = 1e-9


def check_translation(
    each: Pass, before: torch.fx.Graph, after: torch.fx.Graph, leaves: Sequence[Tensor]
) -> None:
    """Compare the results of a graph before and after a pass.

    Raises:
        InternalError: They differ by more than the numerics of the pass allow.
    """
    values = [_widened(leaf) for leaf in leaves]
    expected, actual = run_graph(before, values), run_graph(after, values)
    exact = each.numerics is Numerics.BITWISE
    for position, (a, b) in enumerate(zip(expected, actual, strict=True)):
        if isinstance(a, Tensor) and not _agrees(a, b, exact):
            raise InternalError(
                f"pass '{each.name}' changed output {position} beyond '{each.numerics.value}'"
            )


def _widened(leaf: Tensor) -> Tensor:
    copy = leaf.detach().clone()
    return copy.double() if copy.is_floating_point() else copy


def _agrees(a: Tensor, b: Tensor, exact: bool) -> bool:
    if a.shape != b.shape:
        return False
    if exact or not a.is_floating_point():
        return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    return torch.allclose(a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
