"""Lists of arguments and results that have one item for each step, as tensors with a time axis.

A model that takes a list of frames, or returns the list of its spikes, has as many inputs and
outputs as steps.  To run it step by step it is rewritten to take and give sequences; here are the
structures on both sides, and the way between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.compilation.pipeline import Compiled
from snncc.errors import LaunchError
from snncc.ir.tape import Position, Source, SourceKind, Tape
from snncc.passes.streams.gather_lists import gather_lists, is_stacked, rows_of

# For each leaf of an item, its leaves in all items.
Columns: TypeAlias = list[list[int]]


class Structure:
    """A structure of arguments or results in which some lists have one item for each step.

    Args:
        spec: The structure, with an item for each step.
        is_timed: Tells of the leaves of a list whether it is such a list.

    Attributes:
        leaves: For each leaf of the structure at one step, its leaves in ``spec``.
        at_step: The structure at one step: an item in the place of each list.
    """

    def __init__(self, spec: pytree.TreeSpec, is_timed: Callable[[Columns], bool]) -> None:
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)

        def is_leaf(node: Any) -> bool:
            columns = _columns(node)
            return columns is not None and is_timed(columns)

        if all(isinstance(leaf, int) for leaf in pytree.tree_leaves(tree)):
            parts, self._whole = pytree.tree_flatten(tree, is_leaf=is_leaf)
            firsts = [part if isinstance(part, int) else part[0] for part in parts]
            _, self.at_step = pytree.tree_flatten(pytree.tree_unflatten(firsts, self._whole))
        else:  # objects of the user, which torch does not look into
            parts, self._whole, self.at_step = list(range(spec.num_leaves)), spec, spec
        self.leaves: Columns = []
        self._items: list[tuple[type, pytree.TreeSpec] | None] = []
        for part in parts:
            if isinstance(part, int):
                self.leaves.append([part])
                self._items.append(None)
            else:
                self.leaves += _columns(part) or []
                self._items.append((type(part), pytree.tree_structure(part[0])))

    @property
    def has_lists(self) -> bool:
        """Whether there is a list with an item for each step."""
        return any(item is not None for item in self._items)

    def join(self, tree: Any) -> Any:
        """Return the structure at one step, its leaves tensors with the time axis in front.

        Raises:
            LaunchError: It is another structure.
        """
        if not self.has_lists:
            return tree
        try:
            parts = self._whole.flatten_up_to(tree)
            leaves = [
                leaf for part in zip(parts, self._items, strict=True) for leaf in _join(*part)
            ]
        except (ValueError, TypeError, RuntimeError) as error:
            raise LaunchError(
                "The arguments of a chunk are not those of the model.",
                code="launch.count",
                notes=[str(error).partition("\n")[0]],
                hints=["Give a list with one item for each step where the model takes one."],
            ) from error
        return pytree.tree_unflatten(leaves, self.at_step)

    def split(self, tree: Any, axes: Sequence[int | None]) -> Any:
        """Return the structure of several steps, from that at one step.

        Args:
            tree: The structure at one step, its leaves tensors with a time axis.
            axes: For each leaf its time axis.
        """
        if not self.has_lists:
            return tree
        leaves = iter(zip(pytree.tree_leaves(tree), axes, strict=True))
        parts = [next(leaves)[0] if i is None else _split(leaves, *i) for i in self._items]
        return pytree.tree_unflatten(parts, self._whole)


def _columns(node: Any) -> Columns | None:
    """Return the leaves of a list with several items of one kind, one column for each leaf."""
    if type(node) not in (list, tuple) or len(node) < 2:
        return None
    leaves, specs = zip(*map(pytree.tree_flatten, node), strict=True)
    if any(spec != specs[0] for spec in specs) or not leaves[0]:
        return None
    return [list(column) for column in zip(*leaves, strict=True)]


def _join(part: Any, item: tuple[type, pytree.TreeSpec] | None) -> list[Any]:
    if item is None:
        return [part]
    if not isinstance(part, list | tuple) or not part:
        raise ValueError(f"it takes a list with an item for each step, not {type(part).__name__}")
    rows = [item[1].flatten_up_to(each) for each in part]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _split(
    leaves: Iterator[tuple[Tensor, int | None]], kind: type, item: pytree.TreeSpec
) -> list[Any] | tuple[Any, ...]:
    columns = [x.unbind(axis) for x, axis in (next(leaves) for _ in range(item.num_leaves))]  # type: ignore[arg-type]
    rows = [pytree.tree_unflatten(row, item) for row in zip(*columns, strict=True)]
    return kind(rows)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TimeLists:
    """The lists of a model that have one item for each step.

    Attributes:
        compiled: The model, with sequences in the place of these lists.
        arguments: The structure of ``(args, kwargs)``.
        results: That of what it returns.
        spread: For each output of the model that is an item of a list: which output is the
            sequence, and the number of its row.
    """

    compiled: Compiled
    arguments: Structure
    results: Structure
    spread: dict[int, tuple[int, int]]


def find_time_lists(compiled: Compiled) -> TimeLists:
    """Return the lists of a model that have one item for each step, and the model without them."""
    tape, graph = compiled.recording.tape, compiled.graph
    places = [n for n in graph.nodes if n.op == "placeholder"]
    given: Any = graph.output_node().args[0]
    inputs = {s.index: i for i, s in enumerate(tape.sources) if s.kind is SourceKind.INPUT}

    def is_input(columns: Columns) -> bool:
        known = all(i in inputs for column in columns for i in column)
        return known and all(is_stacked([places[inputs[i]] for i in c]) for c in columns)

    def is_output(columns: Columns) -> bool:
        found = [[tape.output_leaves[i] for i in column] for column in columns]
        return all(
            all(isinstance(x, Position) and not x.as_number for x in column)
            and rows_of([given[x.index] for x in column]) is not None
            for column in found
        )

    arguments, results = Structure(tape.in_spec, is_input), Structure(tape.out_spec, is_output)
    if not (arguments.has_lists or results.has_lists):
        return TimeLists(compiled, arguments, results, {})
    stacked = [[inputs[i] for i in c] for c in arguments.leaves if len(c) > 1]
    listed = [[tape.output_leaves[i].index for i in c] for c in results.leaves if len(c) > 1]
    changed = _changed(tape, arguments, results, {i for c in stacked for i in c[1:]})
    return TimeLists(
        replace(
            compiled,
            graph=gather_lists(graph, stacked, listed),
            recording=replace(compiled.recording, tape=changed),
        ),
        arguments,
        results,
        {position: (column[0], row) for column in listed for row, position in enumerate(column)},
    )


def _changed(tape: Tape, arguments: Structure, results: Structure, gone: set[int]) -> Tape:
    """Return a record whose arguments and results have sequences in the place of lists."""
    index = {leaf: i for i, column in enumerate(arguments.leaves) for leaf in column}

    def renamed(source: Source) -> Source:
        if source.kind is not SourceKind.INPUT or source.index is None:
            return source
        i = index[source.index]
        is_list = len(arguments.leaves[i]) > 1
        name = source.name.replace("[0]", "", 1) if is_list else source.name
        return replace(source, name=name, index=i)

    def kept(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(value for i, value in enumerate(values) if i not in gone)

    return replace(
        tape,
        sources=tuple(map(renamed, kept(tape.sources))),
        memories=kept(tape.memories),
        in_spec=arguments.at_step,
        out_spec=results.at_step,
        output_leaves=tuple(tape.output_leaves[column[0]] for column in results.leaves),
    )
