"""Find what the user's code reads besides arguments and state: globals and class attributes.

Python cannot be asked which globals a run has read, but the code that ran can be asked which names
it reads.  A recording holds as long as these names stand for the same values: ``decay = 0.2`` at
the top of a module, ``SurrGradSpike.scale``, ``cfg.tau``, a helper function.

Code is known from the frames of the run and from the Functions that it called; from there the names
that it reads lead to functions, methods of the model's classes, modules and objects.
"""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from snncc.errors import CaptureError
from snncc.frontend.location import is_hidden
from snncc.frontend.state.paths import Variables, globals_of
from snncc.frontend.state.signature import Describer
from snncc.frontend.state.sources import Holder
from snncc.ir.tape import Read

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS = (list, tuple, dict)


@dataclass
class UserCode:
    """The code of the user that a run has executed.

    Attributes:
        code: For each code object the globals that it reads.
        classes: The classes whose attributes it may read.
    """

    code: dict[CodeType, dict[str, Any]] = field(default_factory=dict)
    classes: dict[type, None] = field(default_factory=dict)

    def add(self, code: CodeType, variables: dict[str, Any]) -> bool:
        """Note code that ran; tell whether it is the user's and was not known."""
        if code in self.code or not is_users(code.co_filename):
            return False
        self.code[code] = variables
        return True

    def add_class(self, cls: type) -> None:
        """Note a class with its bases."""
        for kind in cls.__mro__:
            file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
            if kind is not object and is_users(file):
                self.classes[kind] = None

    def add_methods(self, cls: type, names: Iterable[str]) -> None:
        """Note methods of a class that ran."""
        for name in names:
            function = inspect.unwrap(getattr(cls, name, len))
            if isinstance(function, FunctionType):
                self.add(function.__code__, function.__globals__)

    def reads(self, holders: Iterable[Holder]) -> tuple[Read, ...]:
        """Return what the code reads that is not part of the state in these holders."""
        owned: set[tuple[int, str]] = set()
        for holder in holders:
            self.add_class(type(holder.owner))
            if isinstance(holder.entries, Variables):
                owned.update((id(holder.entries.globals), name) for name in holder.entries)
        search = _Search(self, owned)
        while search.extend():
            pass
        return tuple(search.reads())


@functools.cache
def is_users(file: str) -> bool:
    """Tell whether a source file is the user's: not one of an installed library."""
    return not (is_hidden(file) or file.startswith((*_LIBRARIES, "<frozen")))


@dataclass
class _Search:
    """Follows names from the code that ran."""

    found: UserCode
    owned: set[tuple[int, str]]
    attributes: set[str] = field(default_factory=set)
    objects: dict[int, Any] = field(default_factory=dict)

    def extend(self) -> bool:
        """Add the code that known code may call; tell whether there was any."""
        before = len(self.found.code)
        for code, variables in list(self.found.code.items()):
            self.attributes.update(names_in(code))
            for name in globals_of(code):
                self.visit(variables.get(name))
        for cls in list(self.found.classes):
            for name in self.attributes & vars(cls).keys():
                self.visit(vars(cls)[name])
        for value in list(self.objects.values()):
            for name in self.attributes & vars(value).keys():
                self.visit(vars(value)[name])
        return len(self.found.code) > before

    def visit(self, value: Any) -> None:
        """Note what a name leads to, where the user's code may read on from there."""
        value = getattr(value, "__func__", value)  # static methods and class methods
        value = value.fget if isinstance(value, property) else value
        if isinstance(value, FunctionType):
            self.found.add(value.__code__, value.__globals__)
        elif isinstance(value, type):
            self.found.add_class(value)
        elif isinstance(value, ModuleType):
            if is_users(getattr(value, "__file__", None) or "<frozen"):
                self.objects.setdefault(id(value), value)
        elif hasattr(value, "__dict__") and not isinstance(value, Tensor | nn.Module):
            self.objects.setdefault(id(value), value)

    def reads(self) -> Iterator[Read]:
        """Yield the names that were read and what they stand for."""
        for owner, variables, names in self.namespaces():
            for name in sorted(names & variables.keys()):
                value = variables[name]
                is_content = isinstance(value, (*_PLAIN, *_CONTAINERS))
                yield Read(owner, variables, name, value, describe_content if is_content else None)

    def namespaces(self) -> Iterator[tuple[str, Mapping[str, Any], set[str]]]:
        globals_read: dict[int, tuple[dict[str, Any], set[str]]] = {}
        for code, variables in self.found.code.items():
            names = {n for n in globals_of(code) if (id(variables), n) not in self.owned}
            globals_read.setdefault(id(variables), (variables, set()))[1].update(names)
        for variables, names in globals_read.values():
            yield str(variables.get("__name__", "")), variables, names
        for owner in (*self.found.classes, *self.objects.values()):
            name = getattr(owner, "__qualname__", None) or type(owner).__qualname__
            yield name, vars(owner), self.attributes


def may_read(model: Any, holders: list[Holder]) -> tuple[Read, ...]:
    """Return the globals and class attributes that a run of a model may read, and more."""
    code = UserCode()
    function = inspect.unwrap(getattr(model, "__func__", model))
    if isinstance(function, FunctionType):
        code.add(function.__code__, function.__globals__)
    for cls in {type(holder.owner) for holder in holders}:
        code.add_methods(cls, vars(cls))
    return code.reads(holders)


def require_unchanged(reads: Iterable[Read]) -> None:
    """Refuse a run that has changed what is not part of the model.

    Raises:
        CaptureError: A global or an attribute of a class is not what it was.
    """
    for read in reads:
        if not read.holds:
            raise CaptureError(
                f"The model changes '{read.owner}.{read.name}', which is no part of it.",
                code="capture.global-write",
                notes=["What a compiled model runs is a record, which changes the model alone."],
                hints=["Keep it in an attribute of the model."],
            )


def describe_content(value: Any) -> Any:
    """Return what a number, text or container holds, to be compared."""
    return Describer().describe(value)


@functools.cache
def names_in(code: CodeType) -> frozenset[str]:
    """Return the names of globals and attributes in some code, functions inside it included."""
    inner = [names_in(c) for c in code.co_consts if isinstance(c, CodeType)]
    return frozenset(code.co_names).union(*inner)
