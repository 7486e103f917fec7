"""Find tensors that lie in the memory of others."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def shares_memory(value: Tensor, arguments: Any) -> bool:
    """Tell whether a result is a view of a tensor among nested arguments, or the tensor itself."""
    own = value.untyped_storage().data_ptr()
    tensors = (x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor))
    return any(x.untyped_storage().data_ptr() == own for x in tensors)
