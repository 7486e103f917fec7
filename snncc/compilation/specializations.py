"""The programs that were made of one model, and which of them serves a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snncc.compilation.pipeline import Compiled, Recording, build, record
from snncc.compilation.short_sequence import FEW, record_longer
from snncc.compilation.trials import Call, Group, Trials
from snncc.errors import UnsupportedError
from snncc.frontend.generalize import least_sizes, same_outcome, same_program
from snncc.frontend.operators.canonical import graft
from snncc.frontend.state.signature import Shape, Shapes, describe_arguments
from snncc.frontend.state.sources import gather, holds
from snncc.frontend.state.watch import StateWatcher, flatten
from snncc.frontend.surroundings import plain_surroundings, surroundings
from snncc.ir.tape import SourceKind, Tape
from snncc.options import Options
from snncc.passes.dynamic_decay.gates import DecayGates
from snncc.runtime import memory

# Recording patches torch for the whole process, so one thread records at a time.
RECORDING = threading.RLock()


class Specializations:
    """The programs of one model.

    Args:
        program: The serial code.
        name: Its name.
        options: How it is compiled.
        gates: The parameters of substituted neurons, or None.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        name: str,
        options: Options,
        gates: DecayGates | None = None,
    ) -> None:
        self.program = program
        self.name = name
        self.options = options
        self.gates = gates
        self._calm = replace(options, spikes="threshold", refractory_dropout=0.0)
        self._watcher = StateWatcher(program)
        self._families: dict[Hashable, _Family] = {}
        self._last: tuple[Hashable, _Member] | None = None
        self._asks_for_layouts = False

    def __iter__(self) -> Iterator[Compiled]:
        """Iterate over the programs in the order in which they were made."""
        made = (m.compiled for family in self._families.values() for m in family.members)
        return iter(dict.fromkeys(made))

    def find(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool = False
    ) -> Compiled:
        """Return the program for these arguments; record where none is known to serve them.

        Args:
            args: The arguments of a call.
            kwargs: Its keyword arguments.
            training: Whether the model is in training mode, where spikes may be drawn, and neurons
                may be spared from being refractory.
        """
        options = self.options if training else self._calm
        leaves, spec = flatten(args, kwargs)
        state, held = self._watcher.state()
        given, sizes = describe_arguments(self.program, args, kwargs, leaves)
        shapes, known = (*sizes, *held), (spec, given, state, surroundings(), options)
        key = (known, self._layouts(leaves))
        member = self._served(key, shapes, args, kwargs)
        if member is not None:
            return member.compiled
        family = self._families.setdefault(key, _Family(options))
        compiled = self._make(family, shapes, args, kwargs)
        self._families[known, self._layouts(leaves)] = family  # the recording may have shown it
        return compiled

    def _served(
        self, key: Hashable, shapes: Shapes, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Member | None:
        """Return a program that is known to serve these shapes: mostly that of the last call."""
        call, last = (key, shapes), self._last
        if last is not None and last[0] == call and holds(last[1].tape, self.program, args, kwargs):
            return last[1]
        family = self._families.get(key)
        for member in () if family is None else family.members:
            if member.serves(shapes) and holds(member.tape, self.program, args, kwargs):
                self._last = call, member
                return member
        return None

    def _layouts(self, leaves: Sequence[Any]) -> Hashable:
        """Return which arguments are contiguous, where the user's code may ask for it."""
        if not self._asks_for_layouts:
            return None
        return tuple(isinstance(x, Tensor) and x.is_contiguous() for x in leaves)

    def gather(
        self, compiled: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Tensor]:
        """Return the tensors that a program runs on, right after it was found for a call."""
        return self._watcher.gather(compiled.recording.tape, args, kwargs)

    def without_norms(self, compiled: Compiled, leaves: Sequence[Tensor]) -> Compiled:
        """Return a program with its norms folded; the same where that was asked for anyway.

        Raises:
            UnsupportedError: A norm takes the statistics of its batch.
        """
        if self.options.fold_norms:
            return compiled
        options = replace(compiled.options, fold_norms=True)
        return build(compiled.recording, options, leaves, self.name, self.gates)

    def for_values(
        self,
        known: Compiled,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        refusal: UnsupportedError,
    ) -> Compiled:
        """Return a program for these arguments that has no gradient.

        It leaves out what matters to gradients alone, so that steps that differ in nothing else
        are steps of one loop: where every third detaches its state, or the last ones have a
        gradient and the others none.

        Args:
            known: The program that has one.
            args: The arguments.
            kwargs: The keyword arguments.
            refusal: What is raised where it would be the same program.

        Raises:
            UnsupportedError: It would be the same program, or steps are to have gradients.
        """
        if self.options.mode == "online" or not _detaches(known):
            raise refusal
        with RECORDING, memory.passing(), torch.no_grad():
            recording = record(self.program, args, kwargs, values_only=True)
            tensors = [x.detach() for x in gather(recording.tape, self.program, args, kwargs)]
            compiled = build(recording, self.options, tensors, self.name, self.gates)
        recording.tape.forget_calls()
        return compiled

    def _make(
        self, family: _Family, shapes: Shapes, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Compiled:
        """Record; return the program that it shows to serve these shapes, or else a new one."""
        call = Call(args, kwargs, self._record)
        with RECORDING, memory.passing():
            recording = record(self.program, args, kwargs)
            if not recording.rolled.loops:
                recording = record_longer(self.program, args, kwargs, recording) or recording
        self._asks_for_layouts |= recording.tape.asks_for_layouts
        members = [] if recording.exact else family.members
        same = [m for m in members if _is_same(m.compiled, recording)]
        for member in same:
            still = holds(member.tape, self.program, args, kwargs)
            if still and member.admits(shapes, recording.tape, call):
                return member.compiled
        elsewhere = [m for m in same if not holds(m.tape, self.program, args, kwargs)]
        if elsewhere:  # the program of other globals
            compiled = elsewhere[0].compiled
        else:
            tensors = gather(recording.tape, self.program, args, kwargs)
            with plain_surroundings():
                compiled = build(recording, family.options, tensors, self.name, self.gates)
        recorded = shapes if recording.exact else _recorded(recording, shapes)
        member = _Member(compiled, recorded, recording, family.fixed)
        if not member.admits(shapes, recording.tape, call):
            member.others.add(shapes)
        family.members.append(member)
        recording.tape.forget_calls()
        return compiled

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        with RECORDING, memory.passing():
            return record(self.program, args, kwargs)


@dataclass(eq=False)
class _Family:
    """The programs for calls that differ in sizes alone, and the sizes that are never free."""

    options: Options
    members: list[_Member] = field(default_factory=list)
    fixed: set[Group] = field(default_factory=set)


def _detaches(compiled: Compiled) -> bool:
    """Tell whether a recorded program cuts gradients, so that another has the same values."""
    rolled = compiled.recording.rolled
    graphs = (rolled.graph, *(loop.body for loop in rolled.loops))
    return any(node.target in (torch.detach, graft) for graph in graphs for node in graph.nodes)


def _is_same(known: Compiled, recording: Recording) -> bool:
    """Tell whether a program does what was recorded."""
    return bool(
        same_outcome(known.recording.tape, recording.tape)
        and same_program(known.recording.rolled, recording.rolled)
    )


class _Member:
    """A program, and the shapes that it is known to serve while ``tape`` holds.

    A size in which its recordings differ is free: it is taken from the tensors, or the program does
    not depend on it, which trials at other sizes have shown (`snncc.compilation.trials`).  Sizes
    that were equal in all recordings have to be equal.  Below `FEW` a size is served only down to
    what was recorded: with fewer steps a loop may be another program, and so may anything with a
    single row.
    """

    def __init__(
        self, compiled: Compiled, shapes: Shapes, recording: Recording, fixed: set[Group]
    ) -> None:
        self.compiled = compiled
        self.tape = recording.tape
        self.seen = [shapes]
        self.others: set[Shapes] = set()
        self.columns = list(self._columns())
        self._trials = Trials(recording, fixed)

    def serves(self, shapes: Shapes) -> bool:
        if shapes in self.others:
            return True
        sizes: dict[Shape, int] = {}
        for column, size in zip(self.columns, _sizes(shapes), strict=True):
            if column.is_fixed:
                if size != column.seen[0]:
                    return False
            elif size != sizes.setdefault(column.seen, size) or 0 < size < column.least:
                return False
        return True

    def admits(self, shapes: Shapes, tape: Tape, call: Call) -> bool:
        """Take up shapes that a recording has shown the program to serve, if more follows from it.

        Where sizes steer the program, nothing follows for other shapes.
        """
        mine = self.tape
        if shapes in self.seen:
            return True
        if mine.is_steered_by_sizes or tape.is_steered_by_sizes or mine.counts != tape.counts:
            self.others.add(shapes)
            return True
        if not self._trials.allow([*self.seen, shapes], call):
            return False
        self.seen.append(shapes)
        self.columns = list(self._columns())
        return True

    def _columns(self) -> Iterator[_Column]:
        sources = self.compiled.recording.tape.sources
        needed = least_sizes(self.compiled.recording.rolled)
        least = {(sources[i].index, dim): size for (i, dim), size in needed.items()}
        places = [
            (leaf, dim) for leaf, shape in enumerate(self.seen[0]) for dim in range(len(shape))
        ]
        for place, seen in zip(places, zip(*map(_sizes, self.seen), strict=True), strict=True):
            is_fixed = min(seen) == max(seen)
            yield _Column(seen, is_fixed, max(min(*seen, FEW), least.get(place, 0)))


class _Column(NamedTuple):
    """One size: what it was in each recording, whether it was always the same, the least served."""

    seen: Shape
    is_fixed: bool
    least: int


def _sizes(shapes: Shapes) -> list[int]:
    return [size for shape in shapes for size in shape]


def _recorded(recording: Recording, shapes: Shapes) -> Shapes:
    """Return the shapes that a recording was made with; they may be longer than what was passed."""
    seen = {
        source.index: tuple(place.meta["shape"])
        for source, place in zip(recording.tape.sources, recording.tape.places, strict=True)
        if source.kind is SourceKind.INPUT
    }
    return tuple(seen.get(index, shape) for index, shape in enumerate(shapes))
