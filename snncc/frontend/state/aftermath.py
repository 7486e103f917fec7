"""Results and left-behind state of a run, as outputs of its graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import CaptureError
from snncc.frontend.draft import needed_for
from snncc.frontend.functionalize import Memory
from snncc.frontend.recorder import Recorder
from snncc.frontend.session import quiet
from snncc.frontend.state.objects import opened, tensors_inside
from snncc.frontend.state.origin import Outside
from snncc.frontend.state.paths import tensors_below
from snncc.frontend.state.sources import Snapshot
from snncc.frontend.traced import TracedFloat, TracedInt, TracedItem, refuse_leaked
from snncc.ir.record import Node
from snncc.ir.tape import Binding, Held, Placement, Position, Source, SourceKind, Write

_ABSENT = object()
_NAMED = (SourceKind.BUFFER, SourceKind.ATTRIBUTE)


class Record(NamedTuple):
    """A finished recording: what `Tape` says of it under the same names."""

    places: tuple[Node, ...]
    calls: tuple[Node, ...]
    vain: frozenset[Node]
    outputs: tuple[Any, ...]
    sources: tuple[Source, ...]
    placements: tuple[Placement | None, ...]
    memories: tuple[int | None, ...]


class Aftermath:
    """Collects the outputs of a graph after the run.

    Args:
        recorder: The recorder of the run.
        outside: The sources of the run.
        before: The state of the model before it.
    """

    def __init__(self, recorder: Recorder, outside: Outside, before: Snapshot) -> None:
        self._recorder = recorder
        self._outside = outside
        self._before = before
        self._copies = {id(container): copy for container, copy in before.contents}
        self._outputs: list[Any] = []
        self._placements: list[Placement | None] = []
        self._memories: dict[Memory, int] = {}
        self._rebound: list[Write] = []
        self._held = {id(h.owner): Held(h.path) for h in reversed(before.holders)}
        recorder.start_call()

    def _add(self, output: Any, placement: Placement | None = None) -> int:
        self._outputs.append(output)
        self._placements.append(placement)
        return len(self._outputs) - 1

    def _add_tensor(self, tensor: Tensor, *, is_kept: bool) -> int:
        with quiet():
            node, memory = self._recorder.node(tensor), self._recorder.view(tensor).memory
            number = self._memories.setdefault(memory, len(self._memories))
            is_view, is_contiguous = tensor._is_view(), tensor.is_contiguous()
            return self._add(node, Placement(number, is_view, is_contiguous, is_kept))

    def opened(self, value: Any) -> Any:
        """Return a value with the objects that the run has made, and that hold tensors, opened."""
        return opened(value, self._held)

    def output_leaf(self, leaf: Any) -> Any:
        """Return the position of a leaf of the return value, or the leaf where it is a constant."""
        if isinstance(leaf, Tensor):
            source = self._outside.source_of(leaf)
            if source is not None and source.kind in _NAMED and self._is_written(leaf):
                return Held(source.name)
            return Position(self._add_tensor(leaf, is_kept=False))
        if isinstance(leaf, TracedFloat | TracedItem):
            refuse_leaked(leaf, "is returned")
        if isinstance(leaf, int) and not isinstance(leaf, bool):
            return Position(self._add(self._recorder.lower(leaf)))
        return self._object(leaf, "returns")

    def _is_written(self, tensor: Tensor) -> bool:
        view = self._recorder.find(tensor)
        return view is not None and view.memory.generation > 0

    def _object(self, leaf: Any, verb: str) -> Any:
        """Return an object as it is, or by name where it was there before the run.

        One that the run has made and that holds its values in a way that is not known is refused.
        """
        if id(leaf) in self._held:
            return self._held[id(leaf)]
        values = any(self._recorder.find(t) is not None for t in tensors_inside(leaf))
        if values or isinstance(leaf, Iterator):
            raise CaptureError(
                f"The model {verb} tensors inside an object of class '{type(leaf).__name__}'.",
                code="capture.output",
                notes=["Tuples, lists, dicts, dataclasses and plain objects can hold tensors."],
                hints=["Register the class with 'torch.utils._pytree.register_pytree_node'."],
            )
        return leaf

    def bindings(self) -> Iterator[Binding]:
        """Yield the attributes that are bound to something else than before the run."""
        for holder, entries in zip(self._before.holders, self._before.entries, strict=True):
            for key, value in holder.items():
                before = entries.get(key, _ABSENT)
                if not self._is_unchanged(value, before):
                    yield self._binding(holder.name(key), holder.kind, value, before)

    def deleted(self) -> Iterator[str]:
        """Yield the names of the attributes that are gone."""
        for holder, entries in zip(self._before.holders, self._before.entries, strict=True):
            yield from (holder.name(key) for key in entries if key not in holder.entries)

    def _binding(self, name: str, kind: SourceKind, value: Any, before: Any) -> Binding:
        leaves, spec = pytree.tree_flatten(self.opened(value))
        names = dict(_named_leaves(value, name))
        old = {id(t) for _, t in tensors_below(self._original(before), name)}
        found = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                position = self._add_tensor(leaf, is_kept=True)
                found.append(Position(position))
                if id(leaf) not in old and id(leaf) in names:
                    source = Source(kind, names[id(leaf)])
                    self._rebound.append(Write(source, position, in_place=False))
            else:
                found.append(self._plain_leaf(leaf))
        return Binding(name, spec, tuple(found), value is before)

    def _plain_leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, TracedInt):
            return Position(self._add(self._recorder.lower(leaf)))
        if isinstance(leaf, TracedFloat | TracedItem):
            if leaf.node is None:
                refuse_leaked(leaf, "is kept for the next call")
            return Position(self._add(leaf.node), as_number=True)
        return self._object(leaf, "keeps")

    def _original(self, value: Any) -> Any:
        return self._copies.get(id(value), value)

    def _is_unchanged(self, now: Any, before: Any) -> bool:
        if isinstance(now, list | dict | set | tuple | deque) and type(now) is type(before):
            return self._has_same_items(now, self._original(before))
        if now is before:
            return True
        plain = isinstance(now, bool | int | float | str) and type(now) is type(before)
        return plain and not isinstance(now, TracedInt) and bool(now == before)

    def _has_same_items(self, now: Any, before: Any) -> bool:
        if len(now) != len(before):
            return False
        if isinstance(now, set):
            return bool(now == before)
        if isinstance(now, dict):
            return list(now) == list(before) and all(
                self._is_unchanged(now[k], before[k]) for k in now
            )
        return all(self._is_unchanged(a, b) for a, b in zip(now, before, strict=True))

    def writes(self) -> Iterator[Write]:
        """Yield what was written into tensors from outside, and what attributes were bound to."""
        for placeholder, view in self._outside.views.items():
            if view.memory.generation > 0 and view.parent is None:
                with quiet():
                    value = self._recorder.read(view)
                if value is not placeholder:
                    source = self._outside.sources[placeholder]
                    yield Write(source, self._add(value), in_place=True)
        yield from self._rebound

    def close(self) -> Record:
        """Finish the record: drop what nobody reads, unless its statement has been of use.

        What one iteration of a loop computes in vain is needed in another: a state that the last
        step alone leaves behind.
        """
        draft, sources = self._recorder.draft, self._outside.sources
        impure = [n for n in draft.calls if n.meta["impure"]]
        needed = needed_for([*self._outputs, *impure])
        places = tuple([n for n in draft.places if n in needed])
        self._outside.require_recorded(places)
        useful = {id(n.meta["path"]) for n in needed if n.target is not None}
        kept = set(needed)
        for node in draft.calls:
            if id(node.meta["path"]) in useful and kept.issuperset(node.operands):
                kept.add(node)
        memories = {n: self._memories.get(view.memory) for n, view in self._outside.views.items()}
        return Record(
            places=places,
            calls=tuple([n for n in draft.calls if n in kept]),
            vain=frozenset(kept - needed),
            outputs=tuple(self._outputs),
            sources=tuple([sources[n] for n in places]),
            placements=tuple(self._placements),
            memories=tuple([memories.get(n) for n in places]),
        )


def _named_leaves(value: Any, name: str) -> Iterator[tuple[int, str]]:
    for path, tensor in tensors_below(value, name):
        yield id(tensor), path
