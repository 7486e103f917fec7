"""Python's search for garbage cycles, while a program is recorded.

A recording makes hundreds of thousands of objects and keeps all of them.  Python looks for garbage
after every 700 new ones, and with each tenth of its longer searches through everything that the
process holds, which is most of what recording would cost.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# New objects after which Python looks for garbage; cycles in the user's code are still found.
YOUNG = 1_000_000


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for garbage cycles less often in this context."""
    before = gc.get_threshold()
    changed = 0 < before[0] < YOUNG
    if changed:
        gc.set_threshold(YOUNG, *before[1:])
    try:
        yield
    finally:
        if changed and gc.get_threshold()[0] == YOUNG:  # nobody else has set it since
            gc.set_threshold(*before)
