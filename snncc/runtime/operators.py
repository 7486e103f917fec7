"""The torch operators ``snncc::neuron_forward`` and ``snncc::neuron_backward``.

They make neuron layers visible to everything that traces torch programs: their results have known
shapes and strides without data, and the forward operator has a gradient.  A layer is named by its
key.  `Neuron`, the Python front, uses them under tracing only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snncc.ir.once import no_second_derivative
from snncc.runtime.neuron import Neuron, find_neuron

__all__ = ["Neuron"]

_torch_library: Any = torch.library  # its functions have no types
_LIBRARY = _torch_library.Library("snncc", "DEF")
_LIBRARY.define(
    "neuron_forward(Tensor[] steps, Tensor[] lanes, str key, SymInt length, bool training)"
    " -> Tensor[]"
)
_LIBRARY.define(
    "neuron_backward(Tensor?[] cotangents, Tensor[] steps, Tensor[] lanes, Tensor[] saved, str key,"
    " SymInt length, bool[] needs) -> Tensor[]"
)


def _forward(
    steps: Sequence[Tensor], lanes: Sequence[Tensor], key: str, length: int, training: bool
) -> list[Tensor]:
    """Return the outputs, the finals and, in training, the values that backward needs."""
    tensors = (*steps, *lanes)
    return find_neuron(key).plan(tensors, _length(length), training=training).run(tensors)


def _forward_shapes(
    steps: Sequence[Tensor], lanes: Sequence[Tensor], key: str, length: int, training: bool
) -> list[Tensor]:
    tensors = (*steps, *lanes)
    return find_neuron(key).shapes(tensors, _length(length), training=training)


def _backward(  # noqa: PLR0913 - the schema of the operator
    cotangents: Sequence[Tensor | None],
    steps: Sequence[Tensor],
    lanes: Sequence[Tensor],
    saved: Sequence[Tensor],
    key: str,
    length: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of the inputs that need one, in order; zeros where there is none."""
    tensors, neuron = (*steps, *lanes), find_neuron(key)
    forward = neuron.plan(tensors, _length(length), training=True)
    plan = neuron.backward_plan(forward, tensors, tuple(cotangents), tuple(needs))
    if len(saved) < len(forward.results.saved):
        # The forward call did not know that it would be differentiated.
        saved = forward.run(tensors)[neuron.results :]
    gradients = plan.run(tensors, cotangents, saved)
    return [
        torch.zeros_like(tensor) if gradient is None else gradient.contiguous()
        for tensor, gradient, needed in zip(tensors, gradients, needs, strict=True)
        if needed
    ]


def _backward_shapes(  # noqa: PLR0913 - the schema of the operator
    cotangents: Sequence[Tensor | None],
    steps: Sequence[Tensor],
    lanes: Sequence[Tensor],
    saved: Sequence[Tensor],
    key: str,
    length: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    tensors = zip((*steps, *lanes), needs, strict=True)
    return [tensor.new_empty(tensor.shape) for tensor, needed in tensors if needed]


def _length(length: int) -> int | None:
    return None if length == -1 else length


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    steps, lanes, ctx.key, ctx.length, _ = inputs
    results = find_neuron(ctx.key).results
    ctx.counts = len(steps), len(steps) + len(lanes)
    ctx.needs = [tensor.requires_grad for tensor in (*steps, *lanes)]
    ctx.results = results
    ctx.save_for_backward(*steps, *lanes, *output[results:])


def _differentiate(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Any, ...]:
    steps, inputs = ctx.counts
    values = ctx.saved_tensors
    gradients = iter(
        torch.ops.snncc.neuron_backward(
            list(cotangents[: ctx.results]),
            list(values[:steps]),
            list(values[steps:inputs]),
            list(values[inputs:]),
            ctx.key,
            ctx.length,
            ctx.needs,
        )
    )
    each = [next(gradients) if needed else None for needed in ctx.needs]
    return each[:steps], each[steps:], None, None, None


def _refuse(ctx: Any, *cotangents: Any) -> Any:
    raise no_second_derivative()


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("neuron_forward", _forward, _device)
    _LIBRARY.impl("neuron_backward", _backward, _device)
_torch_library.register_fake("snncc::neuron_forward", _forward_shapes, lib=_LIBRARY)
_torch_library.register_fake("snncc::neuron_backward", _backward_shapes, lib=_LIBRARY)
_torch_library.register_autograd(
    "snncc::neuron_forward", _differentiate, setup_context=_setup_context, lib=_LIBRARY
)
_torch_library.register_autograd("snncc::neuron_backward", _refuse, lib=_LIBRARY)
