"""The torch operators ``snncc::events_forward`` and ``snncc::events_backward``.

Their results have sizes that follow from those of the inputs, and forward has a gradient, so that
whatever traces torch programs sees event networks.  A network is named by its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snncc.ir.events.network import EventNetwork, EventTensors
from snncc.ir.events.run import EventOutputs
from snncc.ir.once import no_second_derivative
from snncc.runtime.events.kernel import EventKernel, find_kernel
from snncc.runtime.events.layout import EventLayout, layout_of

_torch_library: Any = torch.library  # its functions have no types
_LIBRARY = _torch_library.Library("snncc", "FRAGMENT")
_LIBRARY.define("events_forward(Tensor[] tensors, str key, int seed, bool training) -> Tensor[]")
_LIBRARY.define(
    "events_backward(Tensor?[] cotangents, Tensor[] tensors, Tensor[] saved, str key, int seed,"
    " bool[] needs) -> Tensor[]"
)


def run_kernel(kernel: EventKernel, tensors: EventTensors, seed: int) -> EventOutputs:
    """Run a network by its kernels, with gradients.

    Args:
        kernel: The network.
        tensors: What it runs on.
        seed: Of the random numbers.
    """
    network, flat = kernel.network, list(kernel.network.flatten(tensors))
    training = torch.is_grad_enabled() and any(x.requires_grad for x in flat)
    outputs = torch.ops.snncc.events_forward(flat, kernel.key, seed, training)
    layout = layout_of(network, tensors.standing, training=training)
    results = tuple(outputs[place] for place in layout.places())
    return EventOutputs(results, layout.unflatten(outputs).counts)


def run_on(kernel: EventKernel, tensors: EventTensors, seed: int, before: int) -> EventOutputs:
    """Run some steps of a network by its kernels, without gradients.

    Args:
        kernel: The network.
        tensors: What it runs on.
        seed: Of the random numbers.
        before: How many time steps were taken before.
    """
    network = kernel.network
    kept = kernel.forward(network.flatten(tensors), seed, training=False, before=before)
    outputs = kept.flatten()
    places = layout_of(network, tensors.standing, training=False).places()
    return EventOutputs(tuple(outputs[place] for place in places), kept.counts)


def _layout(network: EventNetwork, tensors: Sequence[Tensor], *, training: bool) -> EventLayout:
    return layout_of(network, tensors[: len(network.groups)], training=training)


def _forward(tensors: Sequence[Tensor], key: str, seed: int, training: bool) -> list[Tensor]:
    return find_kernel(key).forward(tensors, seed, training=training).flatten()


def _forward_shapes(tensors: Sequence[Tensor], key: str, seed: int, training: bool) -> list[Tensor]:
    layout, like = _layout(find_kernel(key).network, tensors, training=training), tensors[0]
    return layout.make(like.dtype, lambda s, dtype: like.new_empty(s, dtype=dtype)).flatten()


def _backward(  # noqa: PLR0913 - the schema of the operator
    cotangents: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor],
    key: str,
    seed: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of the tensors that need one, in order."""
    gradients = find_kernel(key).backward(cotangents, tensors, saved, seed, needs)
    return [
        torch.zeros_like(tensor) if gradient is None else gradient.contiguous()
        for tensor, gradient, needed in zip(tensors, gradients, needs, strict=True)
        if needed
    ]


def _backward_shapes(  # noqa: PLR0913 - the schema of the operator
    cotangents: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor],
    key: str,
    seed: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    pairs = zip(tensors, needs, strict=True)
    return [tensor.new_empty(tensor.shape) for tensor, needed in pairs if needed]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, ctx.key, ctx.seed, ctx.training = inputs
    network = find_kernel(ctx.key).network
    ctx.places = _layout(network, tensors, training=ctx.training).places()
    ctx.count = len(tensors)
    ctx.needs = [tensor.requires_grad for tensor in tensors]
    ctx.save_for_backward(*tensors, *(output if ctx.training else ()))


def _differentiate(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Any, ...]:
    values = ctx.saved_tensors
    tensors, saved = list(values[: ctx.count]), list(values[ctx.count :])
    if not ctx.training:
        # The forward call did not know that it would be differentiated.
        saved = torch.ops.snncc.events_forward(tensors, ctx.key, ctx.seed, True)
    given = [cotangents[place] for place in ctx.places]
    gradients = iter(
        torch.ops.snncc.events_backward(given, tensors, saved, ctx.key, ctx.seed, ctx.needs)
    )
    return [next(gradients) if n else None for n in ctx.needs], None, None, None


def _refuse(ctx: Any, *cotangents: Any) -> Any:
    raise no_second_derivative()


_LIBRARY.impl("events_forward", _forward, "CPU")
_LIBRARY.impl("events_backward", _backward, "CPU")
_torch_library.register_fake("snncc::events_forward", _forward_shapes, lib=_LIBRARY)
_torch_library.register_fake("snncc::events_backward", _backward_shapes, lib=_LIBRARY)
_torch_library.register_autograd(
    "snncc::events_forward", _differentiate, setup_context=_setup_context, lib=_LIBRARY
)
_torch_library.register_autograd("snncc::events_backward", _refuse, lib=_LIBRARY)
