"""torch.utils.checkpoint, which says what to keep for the backward pass and nothing about values.

What a compiled model keeps is decided by its own plan, so while a run is recorded a checkpoint
simply calls its function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.utils import checkpoint


class _Transparent:
    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _around(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


@contextmanager
def checkpoints_ignored() -> Iterator[None]:
    """Let checkpoints call their functions in this context."""
    with (
        mock.patch.object(checkpoint, "CheckpointFunction", _Transparent),
        mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", _around),
    ):
        yield
