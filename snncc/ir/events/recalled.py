"""Feedback in a sequence graph: what a result of the graph was one time step before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Recalled:
    """Target of a ``call_function`` node: ``recalled(initial)`` is ``initial``, y[0], ..., y[T-2].

    It stands before what makes ``y``, so no order of nodes has it computed.  What runs time step
    by time step gives it its meaning; called by itself it is ``initial`` at all steps, of the
    recorded size.

    Attributes:
        result: Which result of the graph ``y`` is.
        shape: Its size in the recording, [T, B, *].
        dtype: Its type.
    """

    result: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def __name__(self) -> str:
        return f"recalled_{self.result}"

    def __call__(self, initial: Any) -> Tensor:
        """Return the value before the first step, as often as there are steps."""
        return torch.as_tensor(initial, dtype=self.dtype).expand(self.shape)


def from_start(x: Tensor, initial: Tensor | float) -> Tensor:
    """Return a sequence [T, *] with another value at the first step."""
    first = torch.as_tensor(initial, dtype=x.dtype).expand(x.shape[1:])
    return torch.cat([first[None], x[1:]])
