"""Random numbers of the sizes of another tensor, recorded apart from what is made of them.

Drawing depends on the sizes and the memory order of a tensor, not on its values, and has to keep
its place among all draws; the rest is arithmetic that may be moved and fused::

    dropout(x, p)    x * (draw(bernoulli, 1 - p) / (1 - p))
    rand_like(x)     draw(uniform)
    bernoulli(p)     1 where draw(uniform) < p, else 0

Each is what torch computes on a CPU, to the bit.  A probability outside of 0..1 gives NaN where
torch raises an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from snncc.frontend import departures
from snncc.frontend.operators.canonical import draw
from snncc.frontend.operators.invocation import Invocation
from snncc.frontend.recorder import Handler, Recorder
from snncc.ir.record import DEPENDENT, Node


def memory_order(tensor: Tensor) -> tuple[int, ...]:
    """Return the dims of a tensor in the order in which they lie in memory, the outermost first."""
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim)))


def emit_draw(recorder: Recorder, method: str, like: Node, drawn: Tensor, *args: Any) -> Node:
    """Record random numbers of the sizes of ``like``, in the memory order of ``drawn``."""
    options = {"dtype": drawn.dtype, "device": drawn.device}
    operands = method, like, memory_order(drawn), *recorder.lower(args)
    node = recorder.emit(draw, operands, options, like=drawn, impure=True)
    node.facts = DEPENDENT
    return node


def _refuse_generator(recorder: Recorder, call: Invocation) -> None:
    if call.kwargs.get("generator") is not None:
        departures.refuse_generator(recorder)


def _dropout(plain: Handler) -> Handler:
    """Return the handler of dropout; where all or nothing is kept it draws no numbers."""

    def handler(recorder: Recorder, call: Invocation) -> Any:
        x, p = call.argument(0, "input"), call.argument(1, "p", 0.5)
        default = "alpha" not in call.name
        is_training = call.argument(2, "training", call.kwargs.get("train", default))
        is_partial = type(p) is float and 0.0 < p < 1.0
        is_known = x.is_floating_point() and x.dim() in _RANKS.get(call.name, (x.dim(),))
        if not is_training or not is_partial or not is_known:
            return plain(recorder, call)
        view, in_place = recorder.view(x), call.argument(3, "inplace", False)
        if in_place:
            recorder.before_write(view)
        node = _drop(recorder, recorder.read(view), x, p, call.name)
        result = call.run()
        if in_place:
            recorder.write(view, node)
        else:
            recorder.fresh(result, node)
        return result

    return handler


def _drop(recorder: Recorder, node: Node, x: Tensor, p: float, name: str) -> Node:
    """Record the product of ``x`` and noise: 1 / (1 - p) with probability 1 - p, else 0.

    Alpha dropout keeps mean and variance of values that a SELU makes.
    """
    like, shape = torch.empty_like(x), node
    if name in _RANKS:  # by channel: [B, C, 1, ...]
        for dim in range(2, x.dim()):
            like = torch.empty(like.narrow(dim, 0, 1).shape, dtype=x.dtype, device=x.device)
            shape = recorder.emit(torch.narrow, (shape, dim, 0, 1), like=like)
    kept = emit_draw(recorder, "bernoulli_", shape, like, 1 - p)
    if "alpha" not in name:
        noise = recorder.emit(torch.div, (kept, 1 - p), like=like)
        return recorder.emit(torch.mul, (node, noise), like=x)
    scale = 1.0 / math.sqrt((_ALPHA * _ALPHA * p + 1) * (1 - p))
    lost = recorder.emit(torch.add, (kept, -1.0), like=like)
    lost = recorder.emit(torch.mul, (lost, _ALPHA * scale), like=like)
    shift = recorder.emit(torch.add, (lost, _ALPHA * scale * p), like=like)
    noise = recorder.emit(torch.mul, (kept, scale), like=like)
    product = recorder.emit(torch.mul, (node, noise), like=x)
    return recorder.emit(torch.add, (product, shift), like=x)


def _like(method: str) -> Callable[[Handler], Handler]:
    """Return what makes the handler of ``rand_like(x)`` and the like."""

    def handler(recorder: Recorder, call: Invocation) -> Any:
        _refuse_generator(recorder, call)
        node = recorder.node(call.argument(0, "input"))
        ends = _ends(call) if method == "random_" else ()
        result = call.run()
        recorder.fresh(result, emit_draw(recorder, method, node, result, *ends))
        return result

    return lambda _: handler


def _ends(call: Invocation) -> tuple[Any, ...]:
    """Return where the integers of ``randint_like(x, [low,] high)`` begin and end."""
    given = (*call.args[1:], *(call.kwargs[k] for k in ("low", "high") if k in call.kwargs))
    return given if len(given) == 2 else (0, *given)


def _bernoulli(plain: Handler) -> Handler:
    """Return the handler of ``bernoulli(p)``, or ``bernoulli(x, p)`` with a number p."""

    def handler(recorder: Recorder, call: Invocation) -> Any:
        _refuse_generator(recorder, call)
        x, p = call.argument(0, "input"), call.argument(1, "p")
        if p is None and (x.device.type != "cpu" or x.dtype.itemsize < 4 or "out" in call.kwargs):
            return plain(recorder, call)
        node = recorder.node(x)
        result = call.run()
        if p is not None:
            recorder.fresh(result, emit_draw(recorder, "bernoulli_", node, result, p))
        else:
            recorder.fresh(result, _emit_bernoulli(recorder, node, x))
        return result

    return handler


def _emit_bernoulli(recorder: Recorder, p: Node, like: Tensor) -> Node:
    """Record 1 with probability p, else 0; its gradient is zero."""
    condition = torch.empty_like(like, dtype=torch.bool)

    def emit(target: Any, *args: Any, like: Tensor = like) -> Node:
        return recorder.emit(target, args, like=like)

    # Numbers are drawn in the order of the elements, wherever they lie.
    uniform = emit_draw(recorder, "uniform_", p, torch.empty(like.shape, dtype=like.dtype))
    fires = emit(torch.clamp, emit(torch.sign, emit(torch.sub, p, uniform)), 0, None)
    inside = [emit(compare, p, end, like=condition) for compare, end in _PROBABILITIES]
    return emit(torch.where, emit(torch.logical_and, *inside, like=condition), fires, math.nan)


_PROBABILITIES = ((torch.ge, 0.0), (torch.le, 1.0))
_ALPHA = 1.7580993408473766
# The ranks at which dropout of whole channels takes the first two dims for batch and channels.
_RANKS = {
    "dropout1d": (3,),
    "dropout2d": (3, 4),
    "dropout3d": (5,),
    "feature_dropout": (3, 4, 5),
    "feature_alpha_dropout": (3, 4, 5),
}
_DROPOUTS = ("dropout", "alpha_dropout", *_RANKS)

HANDLERS: Mapping[str, Callable[[Handler], Handler]] = {
    **{prefix + name: _dropout for prefix in ("", "F.") for name in _DROPOUTS},
    "rand_like": _like("uniform_"),
    "randn_like": _like("normal_"),
    "randint_like": _like("random_"),
    "bernoulli": _bernoulli,
}
