"""All cases: those of the modules in ``idioms`` and ``libraries``, each of which has ``CASES``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from tests.compatibility.case import Case

FOLDERS = ("idioms", "libraries")


def cases_of(folder: str) -> list[Case]:
    """Return the cases of the modules in a folder, module after module."""
    here = Path(__file__).parent / folder
    names = sorted(module.name for module in pkgutil.iter_modules([str(here)]))
    modules = [importlib.import_module(f"tests.compatibility.{folder}.{name}") for name in names]
    return [case for module in modules for case in getattr(module, "CASES", ())]
