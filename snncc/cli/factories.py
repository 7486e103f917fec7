"""Find the factory that a command names: ``package.module:factory`` or ``path/to/file.py:factory``.

Calling the factory returns ``(model, inputs)``, the inputs a tensor or a tuple of tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor

from snncc.errors import OptionError

EXAMPLE = "Write 'package.module:factory' or 'path/to/file.py:factory'."


def load(factory: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the model and the inputs that a factory makes.

    Raises:
        OptionError: It is not the name of a factory, cannot be found, or returns something else.
    """
    place, _, name = factory.rpartition(":")
    if not place or not name.isidentifier():
        raise _refused(factory, "does not name a factory")
    module = _from_file(factory, place) if place.endswith(".py") else _from_name(factory, place)
    make = getattr(module, name, None)
    if not callable(make):
        known = [n for n, v in vars(module).items() if _is_own_function(v, module)]
        hint = f"It has {', '.join(repr(n) for n in known[:8])}." if known else EXAMPLE
        raise _refused(factory, f"is not there: '{place}' has no function '{name}'", hint=hint)
    made = make()
    is_pair = isinstance(made, tuple) and len(made) == 2
    if not (is_pair and callable(made[0]) and isinstance(made[1], (Tensor, tuple, list))):
        hint = "Let it end in 'return model, x' or 'return model, (x, state)'."
        raise _refused(factory, "did not return '(model, inputs)'", hint=hint)
    model, inputs = made
    return model, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _is_own_function(value: Any, module: ModuleType) -> bool:
    return isinstance(value, FunctionType) and value.__module__ == module.__name__


def _from_file(factory: str, place: str) -> ModuleType:
    """Return the module of a file, imported as Python would run it."""
    path = Path(place).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise _refused(factory, f"is not there: there is no file '{place}'")
    sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # classes that it defines look for it there
    spec.loader.exec_module(module)
    return module


def _from_name(factory: str, place: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # A module that the user's own module does not find is the user's error.
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise
        raise _refused(factory, f"is not there: there is no module '{error.name}'") from error


def _refused(factory: str, what: str, hint: str = EXAMPLE) -> OptionError:
    return OptionError(f"The factory '{factory}' {what}.", code="option.factory", hints=[hint])
