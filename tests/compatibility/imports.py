"""Import a library whose own import warns."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def quietly(name: str) -> Any:
    """Return a module; what its import warns of is not the tests' business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
