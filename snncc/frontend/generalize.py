"""Compare two recordings of one model: are they the same program at different sizes?

A recording knows its sizes only as numbers where Python used them: a loop's number of steps, the
size of a buffer, a mean's divisor.  A second recording at other sizes tells which of these numbers
follow the sizes and which are constants of the model.  Program a *is* program b if a, run on the
inputs of b, does what b does:

* both have the same inputs, the same operators in the same order on the same operands, the same
  literals, types and ranks;
* the loops of both have the same body, carries, per-step inputs and results;
* each loop of a, given operands of the sizes that b saw, makes as many steps as the loop of b.

Then the sizes in which the two recordings differ are free: the numbers in the program follow them
or do not depend on them.  A number that Python computed from a size by a rule with a bend, like
``min(T, 50)``, can look constant in two recordings on one side of the bend;
`snncc.compilation.trials` looks further.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from snncc.errors import Location
from snncc.frontend.reroll import Rolled
from snncc.ir.tape import Held, Position, Source, Tape
from snncc.ir.time_loop import TimeLoop, Trip


@dataclass(frozen=True, slots=True)
class Generalization:
    """Two recordings are one program; true in a condition.

    Attributes:
        free: The sizes in which they differ, as (position among the sources, dim).
    """

    free: frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Two recordings are different programs; false in a condition.

    Attributes:
        reason: What differs, as the end of a sentence.
        location: The user's line, where there is one.
    """

    reason: str
    location: Location | None = None

    def __bool__(self) -> bool:
        return False


def same_program(a: Rolled, b: Rolled) -> Generalization | Mismatch:
    """Tell whether program a, run on inputs of the sizes of b, does what b does.

    Args:
        a: The program that is to be reused.
        b: A recording of the same model at other sizes.

    Returns:
        The sizes that are free, or the first difference.
    """
    if len(a.sources) != len(b.sources):
        return Mismatch(f"they read {len(a.sources)} and {len(b.sources)} tensors")
    for x, y in zip(a.sources, b.sources, strict=True):
        if not _same_source(x, y):
            return Mismatch(f"one reads '{x.name}', the other '{y.name}'")
    difference = _Comparison().graphs(a.graph, b.graph)
    if difference is not None:
        return difference
    free = _free(a.graph, b.graph)
    single = _single(a, free)
    if single is not None:
        return Mismatch(f"'{single}' had a size of 1, which fits any other size")
    return Generalization(free)


def _single(a: Rolled, free: frozenset[tuple[int, int]]) -> str | None:
    """Return a source with a free size that was 1 in the recording, where everything broadcasts.

    There the shapes of values tell less: a mean over the batch has the shape of the batch.
    """
    places = [n for n in a.graph.nodes if n.op == "placeholder"]
    names = (a.sources[i].name for i, dim in sorted(free) if places[i].meta["shape"][dim] == 1)
    return next(names, None)


def same_outcome(a: Tape, b: Tape) -> bool:
    """Tell whether two recordings of one program give and leave behind the same of its results.

    Python may have computed what they return or keep besides tensors: ``T / 2``, a counter.
    """
    kept = [
        [(x.name, x.spec, x.in_place, _leaves(x.leaves)) for x in tape.bindings] for tape in (a, b)
    ]
    written = [
        [(w.source.kind, w.source.name, w.value, w.in_place) for w in tape.writes]
        for tape in (a, b)
    ]
    return (
        a.out_spec == b.out_spec
        and _leaves(a.output_leaves) == _leaves(b.output_leaves)
        and kept[0] == kept[1]
        and written[0] == written[1]
        and a.deleted == b.deleted
    )


def _leaves(leaves: tuple[Any, ...]) -> list[Any]:
    """Return leaves as values that are equal where they mean the same."""
    known = (Position, Held, bool, int, str, type(None))
    return [
        x.hex() if isinstance(x, float) else (type(x), x if isinstance(x, known) else id(x))
        for x in leaves
    ]


def _same_source(a: Source, b: Source) -> bool:
    if (a.kind, a.index) != (b.kind, b.index):
        return False
    if a.tensor is None or b.tensor is None or a.tensor is b.tensor:
        return a.name == b.name and (a.tensor is None) == (b.tensor is None)
    same = a.tensor.shape == b.tensor.shape and a.tensor.dtype == b.tensor.dtype
    return same and a.tensor.device == b.tensor.device and torch.equal(a.tensor, b.tensor)


def _free(a: torch.fx.Graph, b: torch.fx.Graph) -> frozenset[tuple[int, int]]:
    places = [[n for n in g.nodes if n.op == "placeholder"] for g in (a, b)]
    return frozenset(
        (position, dim)
        for position, pair in enumerate(zip(*places, strict=True))
        for dim, sizes in enumerate(zip(*[n.meta["shape"] for n in pair], strict=True))
        if sizes[0] != sizes[1]
    )


def least_sizes(rolled: Rolled) -> dict[tuple[int, int], int]:
    """Return how large axes of the sources have to be for a program to run.

    A loop behind iterations that were left alone, because they differ, needs as many steps more.

    Args:
        rolled: The program.

    Returns:
        Sizes by (position among the sources, dim).
    """
    places = {n: i for i, n in enumerate(rolled.graph.find_nodes(op="placeholder"))}
    least: dict[tuple[int, int], int] = {}

    def require(tensor: Any, dim: Any, size: int) -> None:
        if tensor in places and isinstance(dim, int):
            key = places[tensor], dim
            least[key] = max(size, least.get(key, 1))

    for node in rolled.graph.nodes:
        if isinstance(node.target, TimeLoop) and node.target.trip.operand is not None:
            trip = node.target.trip
            require(node.args[trip.operand], trip.dim, 1 - trip.offset)
        elif node.target is torch.select and isinstance(node.args[2], int):
            base, dim, index = node.args
            require(base, dim, index + 1 if index >= 0 else -index)
    return least


class _Comparison:
    """Walks two graphs in step; ``nodes`` maps the nodes of a to those of b.

    ``shapes`` maps the shapes of a to those of b.  Values that have equal shapes in a have them in
    b too, or they are equal by chance: as many samples as neurons.
    """

    def __init__(self, *, is_body: bool = False) -> None:
        self.is_body = is_body
        self.nodes: dict[torch.fx.Node, torch.fx.Node] = {}
        self.shapes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def graphs(self, a: torch.fx.Graph, b: torch.fx.Graph) -> Mismatch | None:
        """Return the first difference."""
        if len(a.nodes) != len(b.nodes):
            counts = f"{len(a.nodes)} and {len(b.nodes)}"
            return Mismatch(f"they have {counts} operations")
        for x, y in zip(a.nodes, b.nodes, strict=True):
            reason = self.difference(x, y)
            if isinstance(reason, Mismatch):
                return reason
            if reason:
                return Mismatch(reason, x.meta.get("where"))
            self.nodes[x] = y
        return None

    def difference(self, x: torch.fx.Node, y: torch.fx.Node) -> str | Mismatch:
        if x.op != y.op:
            return f"'{x.name}' is a {x.op} in one and a {y.op} in the other"
        if x.meta.get("dtype") != y.meta.get("dtype"):
            return f"the type of '{x.name}' differs"
        a, b = tuple(x.meta.get("shape", ())), tuple(y.meta.get("shape", ()))
        if len(a) != len(b):
            return f"the rank of '{x.name}' differs"
        # Only what a loop computes at each step is told apart by its shape.
        if self.is_body and x.op == "call_function" and self.shapes.setdefault(a, b) != b:
            return f"the shape of '{x.name}' was that of another value, and is not"
        if x.op != "placeholder":
            for left, right in ((x.args, y.args), (x.kwargs, y.kwargs)):
                literal = self.arguments(left, right)
                if literal:
                    return f"an argument of '{x.name}' is {literal}"
        if isinstance(x.target, TimeLoop) and isinstance(y.target, TimeLoop):
            return _different_loop(x, y)
        called = x.op == "call_function" and x.target != y.target
        return f"'{x.name}' and '{y.name}' are different operators" if called else ""

    def arguments(self, a: Any, b: Any) -> str:
        """Return the literals that differ, or an empty string."""
        if isinstance(a, torch.fx.Node) or isinstance(b, torch.fx.Node):
            same = isinstance(a, torch.fx.Node) and self.nodes.get(a) is b
            return "" if same else f"'{a}' in one and '{b}' in the other"
        if isinstance(a, tuple | list) and isinstance(b, tuple | list):
            if len(a) != len(b):
                return f"a list of {len(a)}, then of {len(b)}"
            return next(filter(None, (self.arguments(x, y) for x, y in zip(a, b, strict=True))), "")
        if isinstance(a, dict) and isinstance(b, dict):
            return self.arguments([*a.items()], [*b.items()])
        if isinstance(a, slice) and isinstance(b, slice):
            return self.arguments((a.start, a.stop, a.step), (b.start, b.stop, b.step))
        return "" if _exact(a) == _exact(b) else f"{a}, then {b}"


def _exact(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else (type(value), value)


def _different_loop(x: torch.fx.Node, y: torch.fx.Node) -> str | Mismatch:
    a, b = x.target, y.target
    assert isinstance(a, TimeLoop)
    assert isinstance(b, TimeLoop)
    steps = _steps(a.trip, y)
    if steps != b.trip.seen:
        return f"a loop makes {b.trip.seen} steps where the first recording implies {steps}"
    if len(a.body.nodes) != len(b.body.nodes):
        return "the bodies of a loop differ"
    names = {p.name: q.name for p, q in zip(a.body.nodes, b.body.nodes, strict=True)}
    if _renamed(a, names) != _renamed(b, {n.name: n.name for n in b.body.nodes}):
        return "the carries, per-step inputs or results of a loop differ"
    difference = _Comparison(is_body=True).graphs(a.body, b.body)
    return "" if difference is None else difference


def _steps(trip: Trip, call: torch.fx.Node) -> int:
    """Return how many steps a loop makes on the operands of a call."""
    if trip.operand is None:
        return trip.seen
    operand = call.args[trip.operand]
    assert isinstance(operand, torch.fx.Node)
    return int(operand.meta["shape"][trip.dim]) + trip.offset


def _renamed(loop: TimeLoop, names: dict[str, str]) -> tuple[Any, ...]:
    """Return what a loop says about its body, under the names of another body."""
    return (
        loop.operands,
        [(names[c.name], _start(c.initial, names), names[c.update]) for c in loop.carries],
        [(names[s.name], s.operand, s.dim, s.start, s.stride) for s in loop.steps],
        [(names[t.name], [_exact(v) for v in t.values]) for t in loop.tables],
        [(names[i.name], i.operand) for i in loop.invariants],
        [(names[r.node], r.stacked) for r in loop.results],
    )


def _start(initial: Any, names: dict[str, str]) -> Any:
    if isinstance(initial, int):
        return initial
    return _exact(initial.value), initial.like and names[initial.like], initial.dtype
