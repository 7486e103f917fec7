"""Tell whether torch runs an operator, records it, or transforms it; refuse what cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from snncc.errors import UnsupportedError

_PLAIN = frozenset({Tensor, torch.nn.Parameter})


def is_traced(tensors: Sequence[Tensor]) -> bool:
    """Tell whether operators are recorded or transformed rather than run."""
    if is_recorded():
        return True
    refuse_transforms(tensors)
    return any(type(tensor) not in _PLAIN or tensor.is_meta for tensor in tensors)


def refuse_transforms(values: Any) -> None:
    """Refuse what would otherwise fail deep inside torch, or give zero derivatives silently.

    Args:
        values: What is computed on: tensors in any containers.
    """
    if torch._C._get_tracing_state() is not None:
        raise UnsupportedError(
            "A compiled model cannot be traced by torch.jit.",
            code="unsupported.jit-trace",
            notes=["Its kernels write into buffers, which a trace would return unwritten."],
            hints=["Export it: snncc.export(fast, folder, format='pt2' or 'onnx' or 'c', ...)."],
        )
    is_transformed = torch._C._functorch.peek_interpreter_stack() is not None
    if not (is_transformed or forward_ad._current_level >= 0) or is_recorded():
        return
    tensors = [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]
    unpack: Any = forward_ad.unpack_dual
    if is_transformed or any(unpack(tensor).tangent is not None for tensor in tensors):
        raise UnsupportedError(
            "A compiled neuron cannot be transformed by torch.func or forward-mode derivatives.",
            code="unsupported.function-transform",
            hints=["Use 'backward()' or 'torch.autograd.grad'; give batches as a dimension."],
        )


def is_recorded() -> bool:
    """Tell whether torch records operators, transforms among them."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def refuse_batches(gradients: Iterable[Tensor | None]) -> None:
    """Refuse several gradients in one backward pass, of which each tensor shows one.

    Raises:
        UnsupportedError: A gradient is a batch of them.
    """
    is_batch: Any = torch._C._functorch.is_legacy_batchedtensor
    for gradient in gradients:
        if gradient is not None and is_batch(gradient):
            raise UnsupportedError(
                "A compiled neuron cannot take several gradients in one backward pass.",
                code="unsupported.function-transform",
                hints=["Leave out 'is_grads_batched' and 'vectorize': take one after the other."],
            )
