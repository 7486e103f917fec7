"""Comparisons of tensors, and the report that they make: what `snncc.verify` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from rich.table import Table
from torch import Tensor

from snncc.errors import EquivalenceError
from snncc.ir.numerics import Numerics
from snncc.reporting.report import render

# Relative error allowed to gradients that sum the same terms in another order, per dtype: a few
# hundred roundings, the length of the longest sums here; sums of half types are taken in float32
# and rounded a few times.
GRADIENT_TOLERANCE = {
    torch.float32: 1e-4,
    torch.float64: 1e-9,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
# Errors of a gradient are relative to its own magnitude, or to this part of the largest gradient's.
SMALL_GRADIENT = 1e-2
# Relative error allowed to the outputs of a network whose products are batched over time, as long
# as no spike differs.
OUTPUT_TOLERANCE = {
    torch.float32: 1e-4,
    torch.float64: 1e-9,
    torch.float16: 2 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 2 * torch.finfo(torch.bfloat16).eps,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of a report.

    Attributes:
        part: ``structure``, ``product``, ``fold``, ``kernel`` or ``network``.
        name: What was compared.
        values: How many numbers.
        differing: How many are not equal bit by bit.
        error: Largest difference relative to the largest magnitude; for the spikes of a neuron
            behind a folded norm the largest margin, see `snncc.equivalence.folds`.
        allowed: The bound on ``error``; 0 means that nothing may differ.
        first: Where the first difference is, as an index tuple ([t, b, n] for a sequence).
        explained: Whether the other comparisons show that a difference is one of rounding.
    """

    part: str
    name: str
    values: int
    differing: int
    error: float
    allowed: float
    first: tuple[int, ...] | None
    explained: bool = False

    @property
    def within(self) -> bool:
        """Whether the difference is within the bound."""
        return self.differing == 0 or self.error <= self.allowed

    @property
    def ok(self) -> bool:
        """Whether the difference is within the bound, or explained."""
        return self.within or self.explained


@dataclass(frozen=True)
class Report:
    """An equivalence certificate: ``print(report)``, ``report.ok``, ``report.comparisons``."""

    comparisons: tuple[Comparison, ...]
    numerics: Numerics
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every comparison is within its bound."""
        return all(c.ok for c in self.comparisons)

    def require(self) -> Report:
        """Return the report.

        Raises:
            EquivalenceError: A comparison is beyond its bound.
        """
        for c in self.comparisons:
            if not c.ok:
                raise EquivalenceError(
                    f"The {c.part} comparison of '{c.name}' is beyond its bound.",
                    code="verify.differs",
                    notes=[
                        f"{c.differing} of {c.values} values differ, first at {c.first}",
                        f"relative error {c.error:.2e}, allowed {c.allowed:.0e}",
                    ],
                )
        return self

    def __str__(self) -> str:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("part", "what", "values", "differing", "rel. error", "allowed", "ok"):
            table.add_column(title, justify="left" if title in ("part", "what") else "right")
        for c in self.comparisons:
            table.add_row(
                c.part,
                c.name,
                str(c.values),
                str(c.differing) + (f" (first {list(c.first)})" if c.first else ""),
                f"{c.error:.1e}" if c.differing else "0",
                "bitwise" if c.allowed == 0 else f"{c.allowed:.0e}",
                "yes" if c.within else "explained" if c.explained else "NO",
            )
        verdict = "equivalent" if self.ok else "NOT equivalent"
        head = f"{verdict} (network: {self.numerics.value})"
        return "\n".join([head, render(table), *(f"  {note}" for note in self.notes)])


def compare_gradients(
    part: str, wanted: dict[str, Tensor], found: dict[str, Tensor]
) -> list[Comparison]:
    """Compare gradients by name; one that is missing is zero.

    A gradient that is zero but for roundings, as that of a bias in front of a norm, has no
    magnitude of its own: its error is relative to a part of the largest gradient.
    """
    sizes = {n: float(g.abs().max().nan_to_num(0.0, 0.0)) for n, g in wanted.items() if g.numel()}
    least = SMALL_GRADIENT * max(sizes.values(), default=0.0)
    comparisons = []
    for name, g in wanted.items():
        pair = g, found.get(name, torch.zeros_like(g))
        one = compare(part, f"grad {name}", *pair, GRADIENT_TOLERANCE.get(g.dtype, 0.0))
        if 0.0 < sizes.get(name, 0.0) < least:
            one = replace(one, error=one.error * sizes[name] / least)
        comparisons.append(one)
    return comparisons


def compare_all(
    part: str, name: str, expected: list[Tensor], actual: list[Tensor], allowed: float
) -> list[Comparison]:
    """Compare lists of tensors, which are numbered where there are several."""
    return [
        compare(part, f"{name} {i}" if len(expected) > 1 else name, a, b, allowed)
        for i, (a, b) in enumerate(zip(expected, actual, strict=True))
    ]


def compare(part: str, name: str, a: Tensor, b: Tensor, allowed: float) -> Comparison:
    """Compare two tensors; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return Comparison(
            part,
            f"{name}: {b.dtype} {tuple(b.shape)} for {a.dtype} {tuple(a.shape)}",
            a.numel(),
            a.numel(),
            math.inf,
            allowed,
            None,
        )
    a, b = a.detach(), b.detach()
    equal = (a == b) | (a.isnan() & b.isnan())
    differing = int((~equal).sum())
    if differing == 0:
        return Comparison(part, name, a.numel(), 0, 0.0, allowed, None)
    first = tuple(int(i) for i in (~equal).nonzero()[0])
    scale = float(a.double().abs().max().nan_to_num(1.0, 1.0)) or 1.0
    error = float((a.double() - b.double()).abs().max()) / scale
    error = math.inf if math.isnan(error) else error
    return Comparison(part, name, a.numel(), differing, error, allowed, first)
