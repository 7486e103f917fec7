"""Names of values inside a model: ``layers.0.weight``, ``lif.states[0]``, ``lif.memory['v']``.

A name is a path of attributes and items from a root.  For a module the root is the module itself;
for a function its roots are the variables that it reads from outside, by name.
"""

from __future__ import annotations

import ast
import dis
import functools
import re
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from snncc.frontend.stepping import user_code

Step = tuple[str, Any]  # ("attribute", name) or ("item", key)


@functools.cache
def steps_of(name: str) -> tuple[Step, ...]:
    """Return the attributes and items of which a name consists."""
    steps: list[Step] = []
    for match in re.finditer(r"([^.\[\]]+)|\[([^\]]*)\]", name):
        attribute, item = match.groups()
        steps.append(
            ("item", ast.literal_eval(item)) if attribute is None else ("attribute", attribute)
        )
    return tuple(steps)


def follow(value: Any, steps: tuple[Step, ...]) -> Any:
    """Return what a path leads to."""
    for kind, key in steps:
        if kind == "item" or isinstance(value, Variables | Roots):
            value = value[key]
        else:
            value = getattr(value, key)
    return value


def assign(holder: Any, step: Step, value: Any) -> None:
    """Bind an attribute or item; a list grows where the item is right behind its end."""
    kind, key = step
    if kind == "attribute" and not isinstance(holder, Variables | Roots):
        setattr(holder, key, value)
    elif isinstance(holder, list) and key == len(holder):
        holder.append(value)
    else:
        holder[key] = value


def remove(holder: Any, step: Step) -> None:
    """Delete an attribute or item."""
    kind, key = step
    if kind == "attribute" and not isinstance(holder, Variables | Roots):
        delattr(holder, key)
    else:
        del holder[key]


class Variables(MutableMapping[str, Any]):
    """The variables that a function reads from its closure and its module."""

    def __init__(self, function: FunctionType) -> None:
        names = function.__code__.co_freevars
        self._cells = dict(zip(names, function.__closure__ or (), strict=True))
        self.globals = function.__globals__
        self._function, self._code = function, function.__code__
        self._names = globals_of(self._code)

    @property
    def are_known(self) -> bool:
        """Whether the function has the code whose variables these are."""
        return self._function.__code__ is self._code

    def __getitem__(self, name: str) -> Any:
        return self._cells[name].cell_contents if name in self._cells else self.globals[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self._cells:
            self._cells[name].cell_contents = value
        else:
            self.globals[name] = value

    def __delitem__(self, name: str) -> None:
        self.globals.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        filled = (n for n, cell in self._cells.items() if _is_filled(cell))
        return iter([*filled, *(n for n in self._names if n in self.globals)])

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


@functools.cache
def globals_of(code: CodeType) -> tuple[str, ...]:
    """Return the names of the globals that a function, or one inside it, reads or writes."""
    found = [i.argval for i in dis.get_instructions(code) if i.opname in _GLOBAL]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += globals_of(constant)
    return tuple(dict.fromkeys(found))


_GLOBAL = ("LOAD_GLOBAL", "STORE_GLOBAL", "LOAD_NAME")


class Roots(dict[str, Any]):
    """Named values, each the start of paths."""


def root_of(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the object from which the names of a model's values start."""
    model = user_code(model)
    if isinstance(model, nn.Module):
        return model
    roots = Roots()
    _add_variables(roots, model, set())
    if not roots and not isinstance(model, FunctionType | MethodType | functools.partial):
        return model
    return roots


def _add_variables(roots: Roots, function: Any, seen: set[int]) -> None:
    if id(function) in seen:
        return
    seen.add(id(function))
    if isinstance(function, MethodType):
        roots.setdefault("self", function.__self__)
        function = function.__func__
    if isinstance(function, functools.partial):
        roots["partial"] = (function.args, function.keywords)
        _add_variables(roots, function.func, seen)
        return
    if not isinstance(function, FunctionType):
        return
    variables = Variables(function)
    name = function.__qualname__.replace(".", "/").replace("<", "").replace(">", "")
    roots.setdefault(name, variables)
    for value in variables.values():
        if isinstance(value, FunctionType) and _top(value.__module__) == _top(function.__module__):
            _add_variables(roots, value, seen)


def _top(module: str | None) -> str:
    return (module or "").split(".")[0]


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the items of a container, each with the step that leads to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str | int) and "]" not in str(key):
                yield f"[{key!r}]", item
    elif isinstance(value, list | tuple | deque):
        for position, item in enumerate(value):
            yield f"[{position}]", item


def tensors_below(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested containers, with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    else:
        for step, item in parts_of(value):
            yield from tensors_below(item, path + step)
