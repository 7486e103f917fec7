"""Library neurons that hide their step behind one operator, recorded in their reference form.

SpikingJelly 2 runs built-in neurons with built-in surrogates as one custom operator over all steps
(``sj_lif::forward``).  It has the same neurons in plain torch, for surrogates that its operators do
not know; forward values are the same bit by bit, gradients are the same sums in another order.
While a run is recorded no surrogate is known to it, so it runs, and the recorder sees, plain torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SPIKINGJELLY = "spikingjelly.activation_based.functional.neuron"


@contextmanager
def plain_libraries() -> Iterator[None]:
    """Let libraries run their neurons as plain torch in this context."""
    module = sys.modules.get(_SPIKINGJELLY)
    known = getattr(module, "_surrogate_spec", None)
    if module is None or known is None:
        yield
        return
    module.__dict__["_surrogate_spec"] = lambda function: None
    try:
        yield
    finally:
        module.__dict__["_surrogate_spec"] = known
