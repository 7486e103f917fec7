"""State that a model holds between calls: its tensors by name, and its Python state.

`walk` lists every place of a model that may change: the attributes of its modules and of the
plain objects that they hold, and the variables of functions.  Everything else is built on that
list: naming the tensors that a run reads, keeping and restoring the state around a run
(`preserved`), seeing what a run left behind, and writing it back (`write_back`).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from operator import is_
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.frontend.state.paths import (
    Roots,
    Variables,
    follow,
    parts_of,
    root_of,
    steps_of,
    tensors_below,
)
from snncc.frontend.stepping import user_code
from snncc.ir.tape import Source, SourceKind, Tape

ARGUMENTS = "*args"  # starts the names of what objects among the arguments hold
# Hooks are the user's: what they do is part of a recording.
_HOOKS = {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}
_PLUMBING = frozenset(nn.Module().__dict__) - {"training"} - _HOOKS
_REGISTRIES = {
    "_parameters": SourceKind.PARAMETER,
    "_buffers": SourceKind.BUFFER,
    "_modules": SourceKind.ATTRIBUTE,
}


@dataclass(frozen=True, slots=True, eq=False)
class Holder:
    """A namespace whose entries may change: attributes of an object, variables of a function."""

    path: str
    owner: Any
    entries: MutableMapping[str, Any]
    kind: SourceKind
    hidden: frozenset[str] = frozenset()

    def name(self, key: str) -> str:
        """Return the full name of an entry."""
        return f"{self.path}.{key}" if self.path else key

    def items(self) -> list[tuple[str, Any]]:
        """Return the entries that are the user's."""
        hidden = self.hidden
        return [(key, value) for key, value in self.entries.items() if key not in hidden]


def walk(
    model: Callable[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> list[Holder]:
    """Return every namespace that a call of the model may read or change."""
    root = root_of(model, args, kwargs or {})
    walker = _Walker(_packages(user_code(model)))
    if isinstance(root, Roots):
        for name, value in root.items():
            walker.visit(name, value)
    else:
        walker.visit("", root)
    for step, value in parts_of((args, kwargs or {})):
        walker.visit(ARGUMENTS + step, value)
    walker.run()
    return walker.holders


def walk_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Holder]:
    """Return the namespaces among the arguments of a call."""
    walker = _Walker(_packages(user_code(model)))
    for step, value in parts_of((args, kwargs)):
        walker.visit(ARGUMENTS + step, value)
    walker.run()
    return walker.holders


_SIMPLE = frozenset({int, float, bool, str, type(None), Tensor, nn.Parameter})


@dataclass
class _Walker:
    packages: frozenset[str]
    holders: list[Holder] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    queue: deque[tuple[str, Any]] = field(default_factory=deque)

    def run(self) -> None:
        while self.queue:
            path, owner = self.queue.popleft()
            start = len(self.holders)
            if isinstance(owner, nn.Module):
                for registry, kind in _REGISTRIES.items():
                    entries = owner.__dict__[registry]
                    self.holders.append(Holder(path, owner, entries, kind))
            entries = owner if isinstance(owner, Variables) else owner.__dict__
            hidden = _PLUMBING if isinstance(owner, nn.Module) else frozenset[str]()
            self.holders.append(Holder(path, owner, entries, SourceKind.ATTRIBUTE, hidden))
            for holder in self.holders[start:]:
                for key, value in holder.items():
                    if type(value) not in _SIMPLE:
                        self.visit(holder.name(key), value)

    def visit(self, path: str, value: Any) -> None:
        """Queue a value, or what it contains, if it holds state."""
        if value is None or isinstance(value, Tensor | str | int | float | ModuleType | type):
            return
        if isinstance(value, nn.Module | Variables) or self.is_state(value):
            if id(value) not in self.seen:
                self.seen.add(id(value))
                self.queue.append((path, value))
            return
        for step, item in parts_of(value):
            self.visit(path + step, item)

    def is_state(self, value: Any) -> bool:
        """Tell whether an object of a class that is neither torch's nor Python's holds state.

        A compiled model may be a part of another; what it remembers of calls is no state of theirs.
        """
        if isinstance(value, FunctionType | MethodType | tuple | list | dict):
            return False
        if not hasattr(value, "__dict__"):
            return False
        package = type(value).__module__.split(".")[0]
        if package == "snncc":
            return False
        known = isinstance(value, SimpleNamespace | argparse.Namespace) or is_dataclass(value)
        return known or package in self.packages


def _packages(model: Callable[..., Any]) -> frozenset[str]:
    """Return the top-level packages whose objects are the user's."""
    modules = [type(m) for m in model.modules()] if isinstance(model, nn.Module) else []
    owner = getattr(model, "__self__", None)
    names = {getattr(x, "__module__", None) for x in (model, type(model), type(owner), *modules)}
    packages = {name.split(".")[0] for name in names if isinstance(name, str)}
    return frozenset(packages - {"torch", "builtins"} - set(sys.stdlib_module_names)) | {"__main__"}


def named_tensors(holders: list[Holder]) -> Iterator[tuple[Source, Tensor]]:
    """Yield the tensors that the holders reach, registered parameters and buffers first."""
    for wanted in _REGISTRIES.values():
        for holder in holders:
            if holder.kind is not wanted:
                continue
            for key, value in holder.items():
                for name, tensor in tensors_below(value, holder.name(key)):
                    is_parameter = isinstance(tensor, nn.Parameter)
                    kind = SourceKind.PARAMETER if is_parameter else holder.kind
                    yield Source(kind, name), tensor


@dataclass
class Snapshot:
    """The state of a model at one moment."""

    holders: list[Holder]
    entries: list[dict[str, Any]] = field(default_factory=list)
    contents: list[tuple[Any, Any]] = field(default_factory=list)
    values: list[tuple[Tensor, Tensor, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        seen: set[int] = set()
        for holder in self.holders:
            self.entries.append(dict(holder.items()))
            for _, value in holder.items():
                self._keep(value, seen, copy_tensors=holder.kind is not SourceKind.PARAMETER)

    def _keep(self, value: Any, seen: set[int], *, copy_tensors: bool) -> None:
        if isinstance(value, Tensor):
            if copy_tensors and id(value) not in seen and not isinstance(value, nn.Parameter):
                self.keep_value(value)
            seen.add(id(value))
            return
        if isinstance(value, list | dict | set | deque) and id(value) not in seen:
            seen.add(id(value))
            self.contents.append((value, value.copy()))
        for _, item in parts_of(value):
            self._keep(item, seen, copy_tensors=copy_tensors)

    def keep_value(self, tensor: Tensor) -> None:
        """Keep the value of a tensor, to be restored."""
        self.values.append((tensor, tensor.detach().clone(), tensor.is_leaf))

    def restore(self) -> None:
        """Put everything back."""
        for holder, entries in zip(self.holders, self.entries, strict=True):
            for key in [key for key, _ in holder.items() if key not in entries]:
                del holder.entries[key]
            for key, value in entries.items():
                if holder.entries.get(key, _ABSENT) is not value:
                    holder.entries[key] = value
        for container, copy in self.contents:
            if _is_same(container, copy):
                continue
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(copy)
        for tensor, copy, is_leaf in self.values:
            if is_leaf and not tensor.is_leaf:
                tensor.detach_()
            if tensor.shape != copy.shape:  # an observer of values makes room for them
                tensor.data = copy
            tensor.data.copy_(copy)  # also what torch changes without counting (batch norm)


_ABSENT = object()


def _is_same(container: Any, copy: Any) -> bool:
    """Tell whether a container holds the very objects of a copy, in the same order."""
    if isinstance(container, dict):
        values = _is_same(list(container.values()), list(copy.values()))
        return values and _is_same(list(container), list(copy))
    return len(container) == len(copy) and all(map(is_, container, copy))


class PythonGenerators:
    """The state of the random number generators of Python and numpy."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = numpy.random.get_state()

    def have_moved(self) -> bool:
        """Tell whether numbers were drawn since."""
        now: Any = numpy.random.get_state()
        then: Any = self._numpy
        is_same = now[2:] == then[2:] and bool((now[1] == then[1]).all())
        return random.getstate() != self._python or not is_same

    def restore(self) -> None:
        """Set the generators back."""
        random.setstate(self._python)
        numpy.random.set_state(self._numpy)


@contextmanager
def preserved(
    model: Callable[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Iterator[Snapshot]:
    """Leave the state of a model, and of the random number generators, as it was."""
    snapshot = Snapshot(walk(model, args, kwargs))
    python = PythonGenerators()
    generator = torch.get_rng_state()
    cuda: Any = torch.cuda
    devices = cuda.get_rng_state_all() if cuda.is_initialized() else []
    try:
        yield snapshot
    finally:
        snapshot.restore()
        torch.set_rng_state(generator)
        python.restore()
        if devices:
            cuda.set_rng_state_all(devices)


def resolve(name: str, root: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a name stands for now."""
    steps = steps_of(name)
    if name.startswith(ARGUMENTS):
        return follow((args, kwargs), steps[1:])
    return follow(root, steps)


def gather(
    tape: Tape, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor]:
    """Return the tensors of a tape's sources as they are now, in the order of its placeholders."""
    return tensors_of(tape.sources, model, args, kwargs)


def tensors_of(
    sources: Sequence[Source],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Tensor]:
    """Return the tensors of some sources as they are now."""
    if not sources:
        return []
    leaves = pytree.tree_leaves((args, kwargs))
    root = root_of(model, args, kwargs)
    values: list[Tensor] = []
    for source in sources:
        if source.kind is SourceKind.INPUT:
            assert source.index is not None
            values.append(leaves[source.index])
        elif source.tensor is not None:
            values.append(source.tensor)
        else:
            values.append(resolve(source.name, root, args, kwargs))
    return values


def holds(
    tape: Tape, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Tell whether what steered the recorded run from outside is what it was."""
    for read in tape.reads:  # at each call: a generator would take twice as long
        if not read.holds:
            return False
    if not tape.guards:
        return True
    root = root_of(model, args, kwargs)
    return all(resolve(g.source.name, root, args, kwargs).item() == g.value for g in tape.guards)
