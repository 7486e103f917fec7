"""Lay out results in memory as those of the serial code, whatever the program made of them.

A program may return views of its inputs, or several views of one buffer, where the user's code
returned tensors of their own: ``torch.stack`` of all slices of x is x itself.  Whoever then changes
one of them in place must not change another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from snncc.errors import UnsupportedError
from snncc.ir.tape import Placement, Tape


def placed(tape: Tape, values: Sequence[Tensor], outputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return the outputs of a program in memory as the recorded run left them.

    Args:
        tape: The recorded run.
        values: The tensors of its sources.
        outputs: The outputs of its graph.
    """
    owners = {
        memory_of(value): number
        for value, number in zip(values, tape.memories, strict=True)
        if number is not None
    }
    return tuple([
        output if placement is None else _place(output, placement, owners)
        for output, placement in zip(outputs, tape.placements, strict=True)
    ])  # fmt: skip


def _place(output: Tensor, placement: Placement, owners: dict[int, int]) -> Tensor:
    if placement.is_contiguous and not output.is_contiguous():
        output = output.contiguous()
    # A part of a buffer of all steps would keep it alive, and cannot be detached in place.
    is_part = placement.is_kept and not placement.is_view and output._is_view()
    if is_part or owners.setdefault(memory_of(output), placement.memory) != placement.memory:
        output = output.clone()
        owners[memory_of(output)] = placement.memory
    return output


def memory_of(tensor: Tensor) -> int:
    """Return a number that tensors share if they lie in one memory."""
    try:
        address: int = tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse: a recording refuses it
        return id(tensor)
    return address


def require_values(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that stands for values that are nowhere.

    Raises:
        UnsupportedError: It is a meta tensor, or one that torch traces with.
    """
    if tensor.is_meta or isinstance(tensor, FakeTensor | FunctionalTensor):
        raise UnsupportedError(
            f"A model cannot be recorded with '{name}', a tensor without values.",
            code="unsupported.tensor-kind",
            notes=[
                "Tensors on 'meta' are of this kind, and those of 'torch.export' while it traces."
            ],
            hints=["Call the compiled model once with plain tensors of these sizes before."],
        )
