"""In-place operators: run as the user wrote them, recorded as pure operators and writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.frontend import departures
from snncc.frontend.functionalize import Edge
from snncc.frontend.operators import indexing
from snncc.frontend.operators.canonical import cast, full_like
from snncc.frontend.operators.draws import emit_draw
from snncc.frontend.operators.invocation import Call, Invocation, concrete
from snncc.frontend.operators.meaning import Meaning, is_random, meaning_of
from snncc.frontend.operators.rewrites import REWRITES
from snncc.frontend.recorder import Handler, Recorder

_DRAWS = frozenset(
    {"normal", "uniform", "random", "exponential", "bernoulli", "log_normal", "cauchy", "geometric"}
)
_RESHAPES = frozenset({"unsqueeze", "squeeze", "transpose", "t", "swapaxes", "swapdims"})


def handler_of(name: str) -> Handler:
    """Return the handler of the in-place form of a pure operator."""
    function = getattr(torch, name, None) or getattr(torch.Tensor, name, None)
    if name in _DRAWS:
        return _draw
    if name in _RESHAPES:
        return _reshape
    if name == "fill_diagonal":
        return _fill_diagonal
    if function is None and name not in REWRITES:
        return _refuse
    meaning, impure = meaning_of(name, function or _refuse), is_random(name)

    def handler(recorder: Recorder, call: Invocation) -> Any:
        return mutate(recorder, call, meaning(call.args, call.kwargs), impure=impure)

    return handler


def mutate(recorder: Recorder, call: Invocation, pure: Call, *, impure: bool = False) -> Any:
    """Run an in-place operator on its first argument, whose result is that of a pure call."""
    target = call.args[0]
    view = recorder.view(target)
    seen = None if impure else _differing_type(pure, target)
    args, kwargs = recorder.lower(pure.args), recorder.lower_options(pure.kwargs)
    recorder.before_write(view)
    result = call.run()
    like = target if seen is None else seen
    node = recorder.emit(pure.target, args, kwargs, like=like, impure=impure)
    if seen is not None:
        node = recorder.emit(cast, (node, target.dtype), like=target)
    recorder.write(view, node)
    return result


def _differing_type(pure: Call, target: Tensor) -> Tensor | None:
    """Return the pure result where its type is not that of the tensor it is written to."""
    operands = [a for a in pure.args if isinstance(a, Tensor | Call)]
    is_plain = all(isinstance(a, Tensor) and a.dtype == target.dtype for a in operands)
    if is_plain and pure.target not in _TO_BOOL and target.dtype.is_floating_point:
        return None
    with torch.no_grad():
        seen: Tensor = concrete(pure)
    return None if seen.dtype == target.dtype else seen


_TO_BOOL = frozenset(
    {
        torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne, torch.logical_and,
        torch.logical_or, torch.logical_xor, torch.logical_not,
    }
)  # fmt: skip


def write_out(recorder: Recorder, call: Invocation, meaning: Meaning) -> Any:
    """Record a call that writes its result into the tensor given as ``out``."""
    out = call.kwargs["out"]
    pure = meaning(call.args, {k: v for k, v in call.kwargs.items() if k != "out"})
    with torch.no_grad():
        seen = concrete(pure)
    if not isinstance(out, Tensor) or seen.shape != out.shape:
        recorder.refuse_alias("The tensor given as 'out' has another shape than the result.")

    def run(_: Tensor, *args: Any, **kwargs: Any) -> Any:
        return call.function(*args, **kwargs)

    return mutate(recorder, Invocation(run, (out, *call.args), call.kwargs), pure)


def _fill_diagonal(recorder: Recorder, call: Invocation) -> Any:
    """Record ``x.fill_diagonal_(value)`` of a matrix as a choice by a mask of its size."""
    x, value = call.args[0], call.argument(1, "fill_value")
    if x.dim() != 2 or (len(call.args) > 2 or "wrap" in call.kwargs):
        _refuse(recorder, call)
    ones = Call(full_like, (x, 1.0), {"dtype": torch.bool})
    diagonal = Call(torch.tril, (Call(torch.triu, (ones,)),))
    return mutate(recorder, call, Call(torch.where, (diagonal, value, x)))


def _refuse(recorder: Recorder, call: Invocation) -> Any:
    raise UnsupportedError(
        f"The in-place operator '{call.name}' has no pure form.",
        code="unsupported.in-place-operator",
        location=recorder.where,
        hints=["Write it with operators that return a result, or as 'x[...] = values'."],
    )


def _draw(recorder: Recorder, call: Invocation) -> Any:
    """Record ``x.uniform_()`` and the like: random numbers in the memory order of ``x``."""
    if call.kwargs.get("generator") is not None:
        departures.refuse_generator(recorder)
    x, options = call.args[0], (v for k, v in call.kwargs.items() if k != "generator")
    view = recorder.view(x)
    recorder.before_write(view)
    node = emit_draw(recorder, call.name, recorder.read(view), x, *call.args[1:], *options)
    result = call.run()
    recorder.write(view, node)
    return result


def _reshape(recorder: Recorder, call: Invocation) -> Any:
    x = call.args[0]
    pure = meaning_of(call.name[:-1], call.function)(call.args, call.kwargs)
    parent, rest = recorder.view(x), recorder.lower(pure.args[1:])
    if parent.memory.owner is not None:
        recorder.refuse_alias("It changes the shape of a tensor from outside the run.")
    result = call.run()
    recorder.bind(x, recorder.child(parent, Edge(pure.target, rest), x))
    return result


def _copy(recorder: Recorder, call: Invocation) -> Any:
    return indexing.assign(recorder, call.args[0], (), call.argument(1, "src"), call.run)


def _fill(recorder: Recorder, call: Invocation) -> Any:
    x, value = call.args[0], call.argument(1, "value", 0)
    if isinstance(value, Tensor):
        return indexing.assign(recorder, x, (), value, call.run)
    number = float(value) if x.dtype.is_floating_point else value
    return mutate(recorder, call, Call(full_like, (x, number), {"dtype": x.dtype}))


def _detach(recorder: Recorder, call: Invocation) -> Any:
    x = call.args[0]
    parent = recorder.view(x)
    result = call.run()
    recorder.bind(x, recorder.child(parent, Edge(torch.detach), x))
    return result


HANDLERS = {"copy_": _copy, "fill_": _fill, "zero_": _fill, "detach_": _detach}
