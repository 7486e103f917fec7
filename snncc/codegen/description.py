"""The comment at the head of an emitted kernel."""

from __future__ import annotations

from collections.abc import Iterator

from snncc.codegen.kernel_ir import Kernel
from snncc.ir.nodes import TRANSCENDENTAL, Binary, Op, Unary
from snncc.ir.walk import subexpressions


def operations(kernel: Kernel) -> Iterator[Op]:
    """Yield the operations that a kernel uses."""
    solve = None if kernel.solve is None else kernel.solve.sweep
    for sweep in (kernel.main, kernel.recompute, solve):
        for let in sweep.step.lets if sweep is not None else ():
            for node in subexpressions(let.expr):
                if isinstance(node, Unary | Binary):
                    yield node.op


def describe(kernel: Kernel) -> list[str]:
    """Return the lines that say what a kernel computes and how it rounds."""
    used = set(operations(kernel))
    inexact = sorted(op.value for op in used & TRANSCENDENTAL)
    numerics = "each operation is rounded once, as eager torch does"
    if inexact:
        numerics = f"{', '.join(inexact)}: units in the last place from torch; otherwise {numerics}"
    if Op.QUOTIENT in used:
        numerics = f"quotients of gradients are within two such units; {numerics}"
    return [
        f"Kernel {kernel.name}, {kernel.dtype.value}, emitted by snncc.",
        "",
        *kernel.comment.splitlines(),
        "",
        f"Numerics: {numerics}.",
    ]
