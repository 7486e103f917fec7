"""The sources of a tape: tensors that a run reads and does not compute."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from snncc.errors import CaptureError, Location
from snncc.frontend.draft import carries_gradient
from snncc.frontend.functionalize import View
from snncc.frontend.recorder import Recorder
from snncc.frontend.state.sources import Snapshot
from snncc.ir.record import DEPENDENT, DIFFERENTIABLE, GUARDED, Node
from snncc.ir.tape import Guard, Source, SourceKind


class Outside:
    """The world around a run of the model.

    Args:
        before: The state of the model before the run; tensors that are written to are added to it.
    """

    def __init__(self, before: Snapshot) -> None:
        self._before = before
        self._known: dict[int, tuple[Source, Tensor]] = {}
        self._data: dict[tuple[object, ...], Node] = {}
        self._kept: set[int] = {id(tensor) for tensor, *_ in before.values}
        self._suspects: dict[Node, Location | None] = {}
        self.sources: dict[Node, Source] = {}
        self.views: dict[Node, View] = {}
        self.guards: dict[Node, Guard] = {}

    def add(self, source: Source, tensor: Tensor) -> None:
        """Make a tensor known by name; its first name counts."""
        self._known.setdefault(id(tensor), (source, tensor))

    def source_of(self, tensor: Tensor) -> Source | None:
        """Return the source of a tensor that was known before the run."""
        entry = self._known.get(id(tensor))
        return None if entry is None else entry[0]

    def view(self, recorder: Recorder, tensor: Tensor) -> View:
        """Return the view of a tensor that the recorder has not seen before."""
        source = self.source_of(tensor)
        is_suspect = source is None and _may_be_unrecorded(recorder, tensor)
        if source is None:
            name = f"constant{sum(s.kind is SourceKind.CONSTANT for s in self.sources.values())}"
            source = Source(SourceKind.CONSTANT, name, tensor=tensor)
            self.add(source, tensor)
        memory = recorder.memory_at(tensor)
        if memory is not None and memory.generation > 0:
            recorder.refuse_alias("A tensor from outside the run shares the memory.")
        facts = DEPENDENT if is_suspect else _facts(source, tensor)
        node = recorder.placeholder(_identifier(source.name), tensor, facts)
        self.sources[node] = source
        if is_suspect:
            self._suspects[node] = recorder.where
        if memory is not None:
            memory.is_shared = True
            view = View(memory, tuple(tensor.shape), tensor.dtype, node, generation=0)
        else:
            view = recorder.own(tensor, node)
            view.memory.owner = tensor
            view.memory.has_fixed_sizes = source.kind in _FIXED
        self.views[node] = view
        return view

    def constant(self, recorder: Recorder, tensor: Tensor) -> Node:
        """Return the node of a tensor that was made of Python data; equal data share one."""
        copy = tensor.detach().clone()
        key = (copy.dtype, copy.device, copy.shape, repr(copy.tolist()))
        if key not in self._data:
            name = f"data{len(self._data)}"
            node = recorder.placeholder(name, copy, 0)
            self.sources[node] = Source(SourceKind.CONSTANT, name, tensor=copy)
            self._data[key] = node
        return self._data[key]

    def before_write(self, recorder: Recorder, view: View) -> None:
        """Keep the value of a tensor from outside that is about to change."""
        owner = view.memory.owner
        if owner is not None and id(owner) not in self._kept:
            self._kept.add(id(owner))
            self._before.keep_value(owner)

    def guard(self, place: Node) -> None:
        """Note that the recording holds for the present value of a placeholder alone."""
        if place not in self.guards:
            source = self.sources[place]
            owner = self.views[place].memory.owner
            assert owner is not None
            kept = next((c for t, c, _ in self._before.values if t is owner), owner)
            self.guards[place] = Guard(source, kept.item())

    def require_recorded(self, places: Iterable[Node]) -> None:
        """Refuse placeholders that stand for something computed without being recorded.

        Asked at the end of the run, about the placeholders that its graph needs: a model may look
        at tensors that an earlier network left behind, and make nothing of their values.
        """
        for place in places:
            if place in self._suspects:
                raise CaptureError(
                    "A tensor was computed where it cannot be recorded.",
                    code="capture.unrecorded-tensor",
                    location=self._suspects[place],
                    notes=["It has a history of operators, and none of them was recorded."],
                    hints=["Compute it in the model, by functions of torch, in the same thread."],
                )


def _may_be_unrecorded(recorder: Recorder, tensor: Tensor) -> bool:
    """Tell whether a tensor may have been made during the run by something not recorded."""
    memory = recorder.memory_at(tensor)
    inside = memory is not None and memory.owner is None
    return inside or not tensor.is_leaf


_FIXED = (SourceKind.PARAMETER, SourceKind.CONSTANT)


_HELD = (SourceKind.BUFFER, SourceKind.ATTRIBUTE)


def _facts(source: Source, tensor: Tensor) -> int:
    facts = DEPENDENT
    if not tensor.requires_grad:
        if source.kind is SourceKind.CONSTANT:
            facts = 0
        elif source.kind in _HELD and tensor.dim() == 0:
            facts = GUARDED
    if tensor.requires_grad:
        facts |= DIFFERENTIABLE
    if source.kind is SourceKind.INPUT and carries_gradient(tensor.dtype):
        facts |= DIFFERENTIABLE
    return facts


def _identifier(name: str) -> str:
    name = re.sub(r"\W+", "_", name).strip("_") or "value"
    name = "self_value" if name == "self" else name  # the first parameter of what fx writes
    return f"layer{name}" if name[0].isdigit() else name  # the parts of nn.Sequential are numbered
