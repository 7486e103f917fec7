"""Maths functions for kernels that Triton's interpreter runs on the CPU.

The interpreter has no libdevice.  Torch stands in for it, as it does in the reference interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "cos": torch.cos,
    "nearbyint": torch.round,
    "pow": torch.pow,
}


class Library:
    """What emitted kernels know as ``libdevice``."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = _FUNCTIONS[name]
        return lambda *blocks: _apply(function, blocks)


def _apply(function: Callable[..., Tensor], blocks: tuple[Any, ...]) -> Any:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    arrays = [torch.from_numpy(block.handle.data.copy()) for block in blocks]
    first = blocks[0]
    handle = TensorHandle(function(*arrays).numpy(), first.dtype.scalar)
    return tl.tensor(handle, first.type)
