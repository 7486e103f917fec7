"""Library neurons that hide their steps behind one operator, recorded in their reference form.

SpikingJelly 2 runs built-in neurons as one custom operator over all steps (``sj_lif::forward``).
Beside each operator it has the same neuron in plain torch, which is what the operator does on a
CPU, backward too.  While a run is recorded the reference takes the operator's place, so the
recorder sees a loop over time.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_OPERATORS = "spikingjelly._ops"
_NEURONS = (
    "if_", "lif", "plif", "qif", "eif", "izhikevich", "ilif", "stbif", "activation_aware_if",
)  # fmt: skip


@contextmanager
def plain_libraries() -> Iterator[None]:
    """Let libraries run their neurons as plain torch in this context."""
    replaced: list[tuple[ModuleType, object]] = []
    try:
        for name in _NEURONS if _OPERATORS in sys.modules else ():
            # Imported here, because the library imports it at the first call of the neuron.
            package = importlib.import_module(f"{_OPERATORS}.{name}")
            reference = importlib.import_module(f"{_OPERATORS}.{name}.reference")
            replaced.append((package, package.__dict__["_forward"]))
            package.__dict__["_forward"] = reference.__dict__["_forward_impl"]
        yield
    finally:
        for package, operator in replaced:
            package.__dict__["_forward"] = operator
