"""Neuron programs as plain data, which can be written as JSON, and back.

Reading makes objects of the classes of this IR and of nothing else, from names and numbers that are
checked; it evaluates nothing.  Where something was in the user's source is left out.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from typing import Any

import torch

from snncc.ir import chunked_scan, nodes, program
from snncc.ir.program import NeuronProgram

_MODULES = (nodes, program, chunked_scan)
_CLASSES: dict[str, type[Any]] = {
    name: value
    for module in _MODULES
    for name, value in vars(module).items()
    if isinstance(value, type)
    and value.__module__ in {m.__name__ for m in _MODULES}
    and (dataclasses.is_dataclass(value) or issubclass(value, enum.Enum))
}
_DTYPES = {str(d): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
# Fields for people alone.
_LEFT_OUT = frozenset({"where", "inexact", "stands_for", "written"})
_DEEPEST = 500


def to_plain(value: Any) -> Any:
    """Return a value of the IR as lists, dictionaries, strings and numbers."""
    if isinstance(value, enum.Enum):
        return {"class": type(value).__name__, "name": value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (f.name for f in dataclasses.fields(value) if f.name not in _LEFT_OUT)
        own = {name: to_plain(getattr(value, name)) for name in fields}
        return {"class": type(value).__name__, "fields": own}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def from_plain(data: Any) -> NeuronProgram:
    """Return a neuron program from plain data.

    Raises:
        ValueError: It is none.
    """
    try:
        found = _read(data, 0)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no neuron program: {error!r}") from error
    if not isinstance(found, NeuronProgram):
        raise ValueError("no neuron program")
    return found


def _read(data: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    if data is None or isinstance(data, bool | int | float):
        return data
    if isinstance(data, str):
        # Names become a part of generated code, and of its comments.
        if re.fullmatch(r"[^\W\d][\w.]*", data) is None:
            raise ValueError(f"{data[:40]!r} is no name")
        return data
    if isinstance(data, list):
        return tuple(_read(item, depth + 1) for item in data)
    return _object(data, depth)


def _object(data: Any, depth: int) -> Any:
    """Return what a dictionary stands for."""
    if "set" in data:
        return frozenset(_read(data["set"], depth + 1))
    if "dtype" in data:
        return _DTYPES[data["dtype"]]
    if "float" in data:
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[data["float"]]
    found = _CLASSES[data["class"]]
    if issubclass(found, enum.Enum):
        return found[data["name"]]
    given = {name: _read(value, depth + 1) for name, value in data["fields"].items()}
    if not given.keys() <= {field.name for field in dataclasses.fields(found)} - _LEFT_OUT:
        raise ValueError(f"'{data['class']}' has no such fields")
    return found(**given)
