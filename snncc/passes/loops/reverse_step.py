"""The reverse of one fused step of a loop: a step again, from cotangents to gradients.

The adjoint of a step without states has none either: it reads the cotangents of the outputs and
some forward values, and gives the gradients of the inputs.  Three things are folded into it so that
a reverse step costs one kernel::

    g_s = g_s_1 + g_s_2        the cotangents that reach an output from several places
    h, u, ...                  forward values that are cheaper to compute again than to keep
    sum_p' = sum_p + g_p       gradients of parameters, summed from step to step

Numerics: gradients of autograd up to the order of sums.
Source: `differentiate` for the adjoint, `cheapest_basis` for what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from snncc.ir.names import fresh_name
from snncc.ir.nodes import Binary, Const, Expr, Input, Let, Op, Rank, Recurrence, Var
from snncc.ir.walk import bool_lets, calls_maths, let_reads
from snncc.passes.gradients.differentiate import differentiate
from snncc.passes.gradients.plan_storage import CPU, FLOAT_BYTES
from snncc.passes.loops.minimum_cut import cheapest_basis
from snncc.passes.simplify_step import simplify_step

# Reading a value that exists for every step anyway, and storing it first.
READ, STORE = FLOAT_BYTES, 2 * FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class ReverseStep:
    """The reverse of a step.

    Attributes:
        recurrence: From cotangents, forward values and sums to gradients and new sums.
        cotangents: For each output of the step that has any, the names of its cotangents.
        kept: For each forward value that it reads - an input, output or let of the step - the name
            of the input that holds it.
        gradients: For each input of the step that was asked for, the output with its gradient, or
            the cotangent that is its gradient.
        narrow: Outputs that are of a half type, as pairs of their name and the type.
        sums: For each input whose gradient is summed, the input and the output with the sum.
    """

    recurrence: Recurrence
    cotangents: dict[str, tuple[str, ...]]
    kept: dict[str, str]
    gradients: dict[str, str]
    sums: dict[str, tuple[str, str]]
    narrow: tuple[tuple[str, torch.dtype], ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of the reverse of a step.

    Attributes:
        cotangents: For each output with a cotangent, from how many places one comes.
        wanted: Names of the inputs whose gradient is needed.
        summed: Those of them whose gradient is summed over all steps.
        stored: Names of inputs and outputs whose value exists for every step anyway.
        passed: Names of outputs whose cotangent may be given on as it is, without a copy.
        halves: The types of inputs and outputs that are of a half type.
    """

    cotangents: Mapping[str, int]
    wanted: Sequence[str]
    summed: Sequence[str] = ()
    stored: frozenset[str] = frozenset()
    passed: Sequence[str] = ()
    halves: Mapping[str, torch.dtype] = field(default_factory=dict)


def reverse_step(step: Recurrence, demand: Demand) -> ReverseStep:
    """Return the reverse of a step."""
    outputs = tuple(name for name in step.outputs if name in demand.cotangents)
    adjoint = differentiate(replace(step, outputs=outputs), demand.wanted)
    kept = _basis(step, adjoint.residuals, demand.stored)
    reverse = adjoint.recurrence
    names = {i.name for i in (*step.inputs, *reverse.inputs)}
    builder = _Builder({*names, *(let.name for let in (*step.lets, *reverse.lets))})
    places = {
        output: builder.split(cotangent, demand.cotangents[output])
        for output, cotangent in zip(outputs, adjoint.output_cotangents, strict=True)
    }
    read = {name: builder.read(name, bool_lets(step.lets)) for name in kept}
    builder.lets += _recomputed(step, adjoint.residuals, kept)
    builder.lets += reverse.lets
    found = dict(zip(step.step_inputs, adjoint.step_gradients, strict=True))
    gradients = {name: found[name] or builder.zero() for name in demand.wanted}
    sums = {name: builder.accumulate(name, gradients.pop(name)) for name in demand.summed}
    halves = {name: demand.halves[name] for name in gradients if name in demand.halves}
    gradients |= {name: builder.copy(gradients[name]) for name in halves}
    free = {place: name for name in demand.passed for place in places.get(name, ())}
    known = {place: demand.halves.get(name) for place, name in free.items()}
    whole = builder.recurrence(f"{step.name}_adjoint", gradients, sums)
    gradients = _without_copies(whole, gradients, known, halves)
    used = [name for name in gradients.values() if name not in free]
    recurrence = _without_unread(
        builder.recurrence(whole.name, {name: name for name in used}, sums)
    )
    left = {name: place for name, place in read.items() if place in recurrence.step_inputs}
    narrow = dict.fromkeys((gradients[name], dtype) for name, dtype in halves.items())
    written = tuple(pair for pair in narrow if pair[0] not in free)
    return ReverseStep(recurrence, places, left, gradients, sums, written)


class _Builder:
    """Collects the inputs and lets of the reverse step."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.inputs: list[Input] = []
        self.lets: list[Let] = []

    def fresh(self, base: str) -> str:
        return fresh_name(base, self.taken)

    def add_input(self, name: str) -> str:
        self.inputs.append(Input(name, Rank.STEP))
        return name

    def split(self, cotangent: str, count: int) -> tuple[str, ...]:
        """Return the names of the places that a cotangent comes from; more than one are added."""
        if count == 1:
            return (self.add_input(cotangent),)
        names = tuple(self.add_input(self.fresh(f"{cotangent}_{i + 1}")) for i in range(count))
        total: Var | Binary = Var(names[0])
        for name in names[1:]:
            total = Binary(Op.ADD, total, Var(name))
        self.lets.append(Let(cotangent, total))
        return names

    def read(self, name: str, bools: frozenset[str]) -> str:
        """Make a forward value an input and return its name there; a bool comes as 0 or 1."""
        if name not in bools:
            return self.add_input(name)
        stored = self.add_input(self.fresh(f"{name}_stored"))
        self.lets.append(Let(name, Binary(Op.NE, Var(stored), Const(0.0))))
        return stored

    def copy(self, name: str) -> str:
        copy = self.fresh(f"{name}_half")
        self.lets.append(Let(copy, Var(name)))
        return copy

    def zero(self) -> str:
        name = self.fresh("zero")
        self.lets.append(Let(name, Const(0.0)))
        return name

    def accumulate(self, name: str, gradient: str) -> tuple[str, str]:
        before = self.add_input(self.fresh(f"sum_{name}"))
        after = self.fresh(f"sum_{name}_next")
        self.lets.append(Let(after, Binary(Op.ADD, Var(before), Var(gradient))))
        return before, after

    def recurrence(
        self, name: str, gradients: Mapping[str, str], sums: Mapping[str, tuple[str, str]]
    ) -> Recurrence:
        """Return the reverse step with given outputs, simplified."""
        outputs = dict.fromkeys((*gradients.values(), *(new for _, new in sums.values())))
        whole = Recurrence(name, tuple(self.inputs), (), tuple(self.lets), tuple(outputs))
        return simplify_step(whole)


def _basis(step: Recurrence, residuals: tuple[str, ...], stored: frozenset[str]) -> tuple[str, ...]:
    """Return the inputs and lets to keep, in order."""
    names = [i.name for i in step.inputs] + [let.name for let in step.lets]
    kept = cheapest_basis(
        residuals,
        {let.name: _reads(let) for let in step.lets},
        {name: READ if name in stored else STORE for name in names},
        {let.name: CPU.transcendental_bytes * calls_maths([let]) for let in step.lets},
    )
    return tuple(name for name in names if name in kept)


def _reads(let: Let) -> set[str]:
    return let_reads(replace(let, surrogate=None))


def _recomputed(step: Recurrence, residuals: tuple[str, ...], kept: tuple[str, ...]) -> list[Let]:
    needed = set(residuals) - set(kept)
    found: list[Let] = []
    for let in reversed(step.lets):
        if let.name in needed:
            needed |= _reads(let) - set(kept)
            found.append(replace(let, surrogate=None))
    return found[::-1]


def _without_copies(
    recurrence: Recurrence,
    gradients: Mapping[str, str],
    free: Mapping[str, torch.dtype | None],
    halves: Mapping[str, torch.dtype],
) -> dict[str, str]:
    """Replace gradients that equal one another, or a cotangent, by the first of their kind."""
    values = {let.name: let.expr for let in recurrence.lets}
    first: dict[tuple[Expr, torch.dtype | None], str] = {
        (Var(name), dtype): name for name, dtype in free.items()
    }
    found: dict[str, str] = {}
    for name, gradient in gradients.items():
        expr, dtype = values[gradient], halves.get(name)
        known = first.get((expr, dtype)) or first.get((Var(gradient), dtype))
        found[name] = known or first.setdefault((expr, dtype), gradient)
        first.setdefault((Var(gradient), dtype), found[name])
    return found


def _without_unread(recurrence: Recurrence) -> Recurrence:
    """Drop inputs that nothing reads."""
    read = {name for let in recurrence.lets for name in let_reads(let)} | {*recurrence.outputs}
    return replace(recurrence, inputs=tuple(i for i in recurrence.inputs if i.name in read))
