"""Trials: whether a program is the same at sizes that nobody has passed yet.

Recordings at 10 and at 11 steps look alike for a loop over all steps that drops what the last one
computes, and for a loop over half of the steps, which makes five in both.  Python does not tell
what it computes from a length, so before a size is taken to be free the model is recorded at sizes
far from those that were seen.  They are small, so a trial costs little.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.compilation.pipeline import Recording
from snncc.frontend.generalize import same_program
from snncc.frontend.state.signature import Shapes
from snncc.ir.tape import SourceKind
from snncc.ir.time_loop import TimeLoop

Place = tuple[int, int]  # one size: (position among the leaves of the arguments, dim)
Group = frozenset[Place]  # sizes that were equal in every recording
Sizes = Mapping[Place, int]

# Where the sizes to try start, in two turns: along time enough steps to show every loop.
STEPS = (13, 22)
ROWS = (3, 6)


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a model, and how it is recorded."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    record: Callable[[tuple[Any, ...], dict[str, Any]], Recording]

    @functools.cached_property
    def leaves(self) -> list[Any]:
        """The arguments, flattened."""
        return pytree.tree_leaves((self.args, self.kwargs))

    def at(self, sizes: Sizes) -> Recording | None:
        """Record the call at other sizes; return None where the model refuses them."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        resized: dict[tuple[int, Any], Tensor] = {}
        for position, leaf in enumerate(leaves):
            wanted = tuple((dim, size) for (p, dim), size in sizes.items() if p == position)
            if wanted and (id(leaf), wanted) not in resized:  # passed twice, it stays one object
                resized[id(leaf), wanted] = _resized(leaf, wanted)
            leaves[position] = resized.get((id(leaf), wanted), leaf)
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        try:
            return self.record(args, kwargs)
        except Exception:  # any error of the user's own code
            return None


class Trials:
    """What has been tried with one program.

    Args:
        known: What the program was compiled from.
        fixed: The sizes of the model that are known not to be free; they are added to it.
    """

    def __init__(self, known: Recording, fixed: set[Group]) -> None:
        self._known = known
        self._time = frozenset(_time_axes(known))
        self._free: set[Group] = set()
        self._fixed = fixed

    def allow(self, seen: Sequence[Shapes], call: Call) -> bool:
        """Tell whether all sizes that differ between recordings may be taken to be free.

        Sizes that state shares are, because a trial cannot change the state.

        Args:
            seen: The shapes of each recording: of the leaves of its arguments, then of state.
            call: The latest of these calls.
        """
        differing = _differing(seen, len(call.leaves))
        groups = [group for group in differing if group not in self._free]
        if not self._fixed.isdisjoint(groups):
            return False
        if self._are_free(groups, seen, call):
            self._free.update(groups)
            return True
        alone = {group: self._are_free([group], seen, call) for group in groups if len(groups) > 1}
        self._free.update(group for group in groups if alone.get(group))
        self._fixed.update(group for group in groups if not alone.get(group))
        return False

    def _are_free(self, groups: list[Group], seen: Sequence[Shapes], call: Call) -> bool:
        def holds(sizes: Sizes) -> bool:
            trial = call.at(sizes)
            return trial is not None and self._is_same(trial)

        if not groups:
            return True
        if all(holds(self._small(groups, seen, turn)) for turn in range(len(STEPS))):
            return True
        if not any(self._is_time(group) for group in groups):
            # The length is a number in the program: few rows, of the length that was seen.
            return holds(self._small(groups, seen, 0, is_short=False))
        # What needs many steps, or looks back many, is tried with more than were seen.
        longer = {p: 2 * max(_column(seen, p)) + 1 for g in groups if self._is_time(g) for p in g}
        return holds(self._small(groups, seen, 0, is_short=False) | longer)

    def _is_same(self, trial: Recording) -> bool:
        known, tape = self._known.tape, trial.tape
        steered = known.is_steered_by_sizes or tape.is_steered_by_sizes
        if steered or known.counts != tape.counts:
            return False
        return bool(same_program(self._known.rolled, trial.rolled))

    def _is_time(self, group: Group) -> bool:
        return not self._time or not self._time.isdisjoint(group)

    def _small(
        self, groups: list[Group], seen: Sequence[Shapes], turn: int, *, is_short: bool = True
    ) -> dict[Place, int]:
        """Return small sizes for some groups, and for the time of the call if it is to be short."""
        rows, steps = count(ROWS[turn], 2), count(STEPS[turn], 4)
        sizes: dict[Place, int] = {}
        for group in groups:
            taken = {size for place in group for size in _column(seen, place)}
            size = next(n for n in (steps if self._is_time(group) else rows) if n not in taken)
            sizes |= dict.fromkeys(group, size)
        return dict.fromkeys(self._time if is_short else (), next(steps)) | sizes


def _resized(leaf: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    value = leaf.detach()
    for dim, size in sizes:
        times = -(-size // max(value.shape[dim], 1))
        value = torch.cat([value] * times, dim).narrow(dim, 0, min(size, times * value.shape[dim]))
    return value.clone().requires_grad_(leaf.requires_grad)


def _differing(seen: Sequence[Shapes], leaves: int) -> Iterator[Group]:
    """Yield the groups of sizes of arguments in which recordings differ."""
    groups: dict[tuple[int, ...], list[Place]] = {}
    for leaf, shape in enumerate(seen[0]):
        for dim in range(len(shape)):
            groups.setdefault(_column(seen, (leaf, dim)), []).append((leaf, dim))
    for column, places in groups.items():
        if min(column) != max(column) and all(leaf < leaves for leaf, _ in places):
            yield frozenset(places)


def _column(seen: Sequence[Shapes], place: Place) -> tuple[int, ...]:
    return tuple([shapes[place[0]][place[1]] for shapes in seen])


def _time_axes(recording: Recording) -> Iterator[Place]:
    """Yield the sizes of arguments over which loops run."""
    sources = dict(
        zip(
            recording.rolled.graph.find_nodes(op="placeholder"),
            recording.rolled.sources,
            strict=True,
        )
    )
    for node in recording.rolled.graph.nodes:
        if isinstance(node.target, TimeLoop):
            for step in node.target.steps:
                base, dim = _origin(node.args[step.operand], step.dim)
                source = sources.get(base)
                if source is not None and source.kind is SourceKind.INPUT:
                    yield source.index, dim


def _origin(node: Any, dim: int) -> tuple[torch.fx.Node, int]:
    """Return the tensor and its dim of which a transposed tensor has this one."""
    while node.target in (torch.transpose, torch.permute):
        base, *dims = node.args
        if node.target is torch.permute:
            dim = dims[0][dim]
        elif dim in dims:
            dim = dims[1 - dims.index(dim)]
        node = base
    return node, dim
