"""Translation validation of re-rolling: the tape and the loops on the same data, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.errors import InternalError
from snncc.frontend.reroll.stages import Rolled
from snncc.ir.custom_gradient import run_graph
from snncc.ir.tape import Tape


def check(rolled: Rolled, tape: Tape, values: Sequence[Any]) -> None:
    """Run a tape and what it was rolled into, and compare all bits of all results.

    Random numbers are drawn from the same state of the CPU's generator in both runs, which is put
    back afterwards.  Buffers that operators change behind the scenes are compared too; ``values``
    themselves stay as they are.

    Args:
        rolled: The program with loops.
        tape: The record that it comes from.
        values: For each source of the tape its tensor.

    Raises:
        InternalError: A result differs.
    """
    expected, changed = _run(tape.graph, values)
    actual, rolled_changed = _run(rolled.graph, values)
    if len(expected) != len(actual):
        raise InternalError(f"re-rolling made {len(actual)} outputs of {len(expected)}")
    for position, (a, b) in enumerate(zip(expected, actual, strict=True)):
        if not _same(a, b):
            raise InternalError(f"re-rolling changed output {position}")
    for source, a, b in zip(tape.sources, changed, rolled_changed, strict=True):
        if not _same(a, b):
            raise InternalError(f"re-rolling changed what happens to '{source.name}'")


def _run(graph: torch.fx.Graph, values: Sequence[Any]) -> tuple[tuple[Any, ...], list[Any]]:
    """Return the outputs of a graph, and its inputs as they are afterwards."""
    copies = [v.detach().clone() if isinstance(v, Tensor) else v for v in values]
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        outputs: tuple[Any, ...] = tuple(run_graph(graph, copies))
    return outputs, copies


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # NaN is equal to NaN here, and -0.0 is not equal to 0.0.
    return torch.equal(_bits(a), _bits(b))


def _bits(x: Tensor) -> Tensor:
    x = x.detach().contiguous()
    if not x.is_floating_point():
        return x
    x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return x.flatten().view(torch.uint8)
