"""Give the user what a recorded run gave: what it returned, and what it left in the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import CaptureError
from snncc.frontend.placement import memory_of
from snncc.frontend.state.paths import Step, assign, follow, remove, root_of, steps_of
from snncc.frontend.state.sources import ARGUMENTS, resolve, tensors_of
from snncc.ir.tape import Held, Position, Tape


def apart(tape: Tape, values: list[Tensor]) -> list[Tensor]:
    """Return the tensors of a tape's sources, in place of those that it overwrites their copies.

    Autograd keeps inputs for the backward pass, in which they have to be as they were.

    Raises:
        CaptureError: What is overwritten shares its memory with another source.
    """
    if not tape.writes:
        return values
    is_written = written(tape)
    if not any(is_written):
        return values
    memories = [memory_of(value) for value in values]
    for source, memory, is_target in zip(tape.sources, memories, is_written, strict=True):
        if is_target and memories.count(memory) > 1:
            raise CaptureError(
                f"'{source.name}' is written in place and shares its memory with another tensor.",
                code="capture.alias",
                hints=["Pass or keep a copy ('x = x.clone()')."],
            )
    if not torch.is_grad_enabled():
        return values
    return [value.clone() if w else value for value, w in zip(values, is_written, strict=True)]


def written(tape: Tape) -> list[bool]:
    """Tell of each source of a tape whether the run overwrites it in place."""
    names = {(w.source.kind, w.source.name) for w in tape.writes if w.in_place}
    return [(source.kind, source.name) in names for source in tape.sources]


def returned(
    tape: Tape,
    model: Callable[..., Any],
    outputs: Sequence[Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """Return what the recorded run returned; to be called before `write_back`.

    Args:
        tape: The recorded run.
        model: The model.
        outputs: The outputs of the tape's graph.
        args: The arguments, which may hold objects that are returned.
        kwargs: The keyword arguments.
    """
    names = _Names(model, args, kwargs or {})
    return _assembled(tape.output_leaves, tape.out_spec, outputs, names)


def write_back(
    tape: Tape,
    model: Callable[..., Any],
    outputs: Sequence[Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> None:
    """Leave in the model what the recorded run left in it.

    Args:
        tape: The recorded run.
        model: The model.
        outputs: The outputs of the tape's graph.
        args: The arguments, where the model may have changed them in place.
        kwargs: The keyword arguments.
    """
    if not (tape.writes or tape.bindings or tape.deleted):
        return
    kwargs = kwargs or {}
    written = [w for w in tape.writes if w.in_place]
    targets = tensors_of([w.source for w in written], model, args, kwargs)
    for write, target in zip(written, targets, strict=True):
        is_protected = target.is_leaf and target.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_protected):
            target.copy_(outputs[write.value])
    _bind(tape, outputs, _Names(model, args, kwargs))


def _bind(tape: Tape, outputs: Sequence[Any], names: _Names) -> None:
    """Bind and delete attributes.  Names are those before the run: look up all of them first."""
    values = [_assembled(b.leaves, b.spec, outputs, names) for b in tape.bindings]
    places = [(names[b.name], None) if b.in_place else names.place(b.name) for b in tape.bindings]
    gone = [names.place(name) for name in tape.deleted]
    for (holder, step), value in zip(places, values, strict=True):
        if step is None:
            holder.clear()
            (holder.extend if isinstance(holder, list | deque) else holder.update)(value)
        else:
            assign(holder, step, value)
    for holder, step in gone:
        remove(holder, step)


class _Names:
    """What the names of a tape stand for in one call."""

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._call = model, args, kwargs
        self._root: Any = None

    @property
    def root(self) -> Any:
        if self._root is None:
            self._root = root_of(*self._call)
        return self._root

    def __getitem__(self, name: str) -> Any:
        return resolve(name, self.root, *self._call[1:])

    def place(self, name: str) -> tuple[Any, Step]:
        """Return the holder of a named value, and the step that leads from there to it."""
        steps = steps_of(name)
        if name.startswith(ARGUMENTS):
            return follow(self._call[1:], steps[1:-1]), steps[-1]
        return follow(self.root, steps[:-1]), steps[-1]


def _assembled(
    leaves: Sequence[Any], spec: pytree.TreeSpec, outputs: Sequence[Any], names: _Names
) -> Any:
    """Return a value of a model: mostly a single tensor, which torch takes long to unflatten."""
    if spec.is_leaf():
        return _value(leaves[0], outputs, names)
    return pytree.tree_unflatten([_value(leaf, outputs, names) for leaf in leaves], spec)


def _value(leaf: Any, outputs: Sequence[Any], names: _Names) -> Any:
    if isinstance(leaf, Held):
        return names[leaf.name]
    if not isinstance(leaf, Position):
        return leaf
    return outputs[leaf.index].item() if leaf.as_number else outputs[leaf.index]
