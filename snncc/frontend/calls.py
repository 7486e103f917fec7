"""What the recorder does with each torch function: the dispatch from function to handler.

A handler runs the user's call for real and records what it means.  Functions fall into kinds: pure
operators (`snncc.frontend.spellings`, `snncc.frontend.rewrites`, or as they are), in-place
operators, copies and casts, factories (`snncc.frontend.factories`), indexing
(`snncc.frontend.indexing`), questions about a tensor, and what cannot be recorded
(`snncc.frontend.departures`).
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import FunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.frontend import departures, factories, indexing
from snncc.frontend.canonical import cast, draw, full_like, numel, size
from snncc.frontend.functionalize import Edge
from snncc.frontend.outputs import record
from snncc.frontend.recorder import Call, Recorder, concrete
from snncc.frontend.rewrites import REWRITES
from snncc.frontend.spellings import operators, spelling_of
from snncc.frontend.traced import TracedInt

Function = Callable[..., Any]
Handler = Callable[[Recorder, Function, tuple[Any, ...], dict[str, Any]], Any]
Meaning = Callable[[tuple[Any, ...], dict[str, Any]], Call]


def handle(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run one torch call of the user and record what it means."""
    recorder.start_call()
    return handler_of(function)(recorder, function, args, kwargs)


@functools.cache
def handler_of(function: Function) -> Handler:
    """Return the handler of a torch function."""
    name = _name_of(function)
    for table in (_HANDLERS, departures.HANDLERS, factories.HANDLERS, indexing.HANDLERS):
        if name in table:
            return table[name]
    if name.startswith(departures.OPTIMIZER_PREFIXES):
        return departures.refuse_training
    if name.startswith(("get:", "set:", "is_")) and name not in REWRITES:
        return _ask
    mutated = _out_of_place(name)
    if mutated is not None:
        return _in_place_handler(mutated)
    return _pure_handler(_meaning_of(name, function), _is_random(name))


def _name_of(function: Function) -> str:
    owner = getattr(function, "__self__", None)
    if type(function).__name__ == "method-wrapper" and owner is not None:
        return {"__get__": "get:", "__set__": "set:"}.get(function.__name__, "") + owner.__name__
    if function is torch.Tensor.where:
        return "Tensor.where"
    return spelling_of(function)


def _out_of_place(name: str) -> str | None:
    """Return the name of the pure operator of which ``name`` is the in-place form."""
    match = re.fullmatch(r"__i(\w+__)", name)
    if match is not None and name not in ("__invert__", "__int__", "__index__"):
        return "__" + match[1]
    if name.endswith("_") and not name.endswith("__"):
        return name[:-1]
    return None


def _meaning_of(name: str, function: Function) -> Meaning:
    rewrite, operator = REWRITES.get(name), operators().get(name)

    def meaning(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        if "input" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"), *args)
        if rewrite is not None:
            return rewrite(*args, **kwargs)
        bound = None if operator is None else operator.bind(args, kwargs)
        if operator is None or bound is None:
            return _as_written(name, function, args, kwargs)
        return Call(operator.target, *bound)

    return meaning


def _as_written(
    name: str, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """Return the call of an operator that is not in the table."""
    if isinstance(function, FunctionType) and (signature := _signature(function)) is not None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return Call(function, bound.args, bound.kwargs)
    if isinstance(function, MethodDescriptorType):
        function = getattr(torch, name, function)
    return Call(function, args, kwargs)


@functools.cache
def _signature(function: FunctionType) -> inspect.Signature | None:
    signature = inspect.signature(function)
    kinds = {p.kind for p in signature.parameters.values()}
    free = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return None if kinds & free else signature


_RANDOM_LAYERS = frozenset(
    f"F.{name}"
    for name in (
        "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "rrelu",
        "feature_alpha_dropout", "gumbel_softmax", "fractional_max_pool2d",
    )
)  # fmt: skip


@functools.cache
def _is_random(name: str) -> bool:
    if name in _RANDOM_LAYERS:
        return True
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or "attention" in name:
        return False
    tags = (getattr(packet, overload).tags for overload in packet.overloads())
    return any(torch.Tag.nondeterministic_seeded in t for t in tags)


def _pure_handler(meaning: Meaning, is_random: bool) -> Handler:
    def handler(
        recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if "out" in kwargs and kwargs["out"] is not None:
            return _into_out(recorder, function, meaning, args, kwargs)
        if kwargs.get("generator") is not None:
            departures.refuse_generator(recorder)
        if "inplace" in kwargs:
            kwargs = dict(kwargs)
            if kwargs.pop("inplace"):
                call = meaning(args, kwargs)
                kwargs["inplace"] = True
                return mutate(recorder, function, args, kwargs, call, impure=is_random)
        return _run_pure(recorder, function, args, kwargs, meaning(args, kwargs), is_random)

    return handler


def _run_pure(
    recorder: Recorder,
    function: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    call: Call,
    is_random: bool,
) -> Any:
    lowered = recorder.lower(call.args), {k: recorder.lower(v) for k, v in call.kwargs.items()}
    known = call.target in _KNOWN_TARGETS
    versions = () if known else departures.versions(args, kwargs)
    impure = is_random or departures.has_side_effect(recorder, call)
    result = function(*args, **kwargs)
    if versions and not impure:
        departures.check_versions(recorder, function, versions)
    return record(recorder, result, Call(call.target, *lowered), call.args, impure=impure)


_KNOWN_TARGETS = frozenset(operator.target for operator in operators().values())


def _in_place_handler(name: str) -> Handler:
    function = getattr(torch, name, None) or getattr(torch.Tensor, name, None)
    if name in _DRAWS or (function is None and name not in REWRITES):
        return _draw_in_place
    if name in _RESHAPES:
        return _reshape_in_place
    meaning = _meaning_of(name, function or _draw_in_place)

    def handler(
        recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        call = meaning(args, kwargs)
        return mutate(recorder, function, args, kwargs, call, impure=_is_random(name))

    return handler


def mutate(
    recorder: Recorder,
    function: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    call: Call,
    *,
    impure: bool = False,
) -> Any:
    """Run an in-place operator whose result is that of the pure ``call``."""
    target = args[0]
    view = recorder.view(target)
    seen = None if impure else _differing_dtype(call, target)
    arguments = recorder.lower(call.args)
    options = {k: recorder.lower(v) for k, v in call.kwargs.items()}
    recorder.before_write(view)
    result = function(*args, **kwargs)
    like = target if seen is None else seen
    node = recorder.emit(call.target, arguments, options, like=like, impure=impure)
    if seen is not None:
        node = recorder.emit(cast, (node, target.dtype), like=target)
    recorder.write(view, node)
    return result


def _differing_dtype(call: Call, target: Tensor) -> Tensor | None:
    """Return the pure result where its type is not that of the tensor it is written to."""
    tensors = [a for a in call.args if isinstance(a, Tensor | Call)]
    plain = all(isinstance(a, Tensor) and a.dtype == target.dtype for a in tensors)
    if plain and call.target not in _COMPARISONS and target.dtype.is_floating_point:
        return None
    with torch.no_grad():
        seen: Tensor = concrete(call)
    return None if seen.dtype == target.dtype else seen


_COMPARISONS = frozenset(
    {
        torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne, torch.logical_and,
        torch.logical_or, torch.logical_xor, torch.logical_not,
    }
)  # fmt: skip


def _into_out(
    recorder: Recorder,
    function: Function,
    meaning: Meaning,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    out = kwargs["out"]
    call = meaning(args, {k: v for k, v in kwargs.items() if k != "out"})
    with torch.no_grad():
        seen = concrete(call)
    if not isinstance(out, Tensor) or seen.shape != out.shape:
        recorder.refuse_alias("The tensor given as 'out' has another shape than the result.")
    return mutate(
        recorder, lambda _, *a, **k: function(*a, **k), (out, *args), kwargs, call
    )  # fmt: skip


_DRAWS = frozenset(
    {"normal", "uniform", "random", "exponential", "bernoulli", "log_normal", "cauchy", "geometric"}
)
_RESHAPES = frozenset({"unsqueeze", "squeeze", "transpose", "t", "swapaxes", "swapdims"})


def _draw_in_place(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    method = str(function.__name__)
    if method[:-1] not in _DRAWS:
        raise UnsupportedError(
            f"The in-place operator '{method}' has no pure form.",
            code="unsupported.in-place-operator",
            location=recorder.where,
        )
    if kwargs.pop("generator", None) is not None:
        departures.refuse_generator(recorder)
    values = (*args[1:], *kwargs.values())
    return mutate(recorder, function, args, kwargs, Call(draw, (method, args[0], *values)),
                  impure=True)  # fmt: skip


def _reshape_in_place(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    x = args[0]
    call = _meaning_of(str(function.__name__)[:-1], function)(args, kwargs)
    parent, rest = recorder.view(x), recorder.lower(call.args[1:])
    if parent.memory.owner is not None:
        recorder.refuse_alias("It changes the shape of a tensor from outside the run.")
    result = function(*args, **kwargs)
    recorder.bind(x, recorder.child(parent, Edge(call.target, rest), x))
    return result


def _ask(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Answer a question whose answer is the same for all values of the tensor."""
    return function(*args, **kwargs)


def _copy(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Record a copy or a conversion: a new tensor object for the same value."""
    x = args[0]
    node = recorder.node(x)
    result = function(*args, **kwargs)
    if not isinstance(result, Tensor) or result is x:
        return result
    if result.dtype != x.dtype:
        node = recorder.emit(cast, (node, result.dtype), like=result)
    if result.device != x.device:
        node = recorder.emit(torch.Tensor.to, (node, result.device), like=result)
    memory = recorder.memory_at(result)
    if memory is not None and memory is recorder.view(x).memory:
        recorder.bind(result, recorder.child(recorder.view(x), Edge(None), result))
    else:
        recorder.fresh(result, node)
    return result


def _detach(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    parent = recorder.view(args[0])
    result = function(*args, **kwargs)
    recorder.bind(result, recorder.child(parent, Edge(torch.detach), result))
    return result


def _detach_in_place(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    parent = recorder.view(args[0])
    result = function(*args, **kwargs)
    recorder.bind(args[0], recorder.child(parent, Edge(torch.detach), args[0]))
    return result


def _copy_in_place(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    target, source = args[0], args[1] if len(args) > 1 else kwargs["src"]
    return indexing.assign(recorder, target, (), source, lambda: function(*args, **kwargs))


def _fill(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    value = args[1] if len(args) > 1 else kwargs.get("value", 0)
    if isinstance(value, Tensor):
        run = functools.partial(function, *args, **kwargs)
        return indexing.assign(recorder, args[0], (), value, run)
    call = Call(full_like, (args[0], value), {"dtype": args[0].dtype})
    return mutate(recorder, function, args, kwargs, call)


def _shape(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Return a size or all sizes, as integers that remember their tensor."""
    result = function(*args, **kwargs)
    view = recorder.view(args[0])
    if view.memory.has_fixed_sizes:
        return result
    if isinstance(result, int):
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        return TracedInt.of(result, recorder, (size, view, int(dim) % len(view.shape)))
    sizes = [TracedInt.of(n, recorder, (size, view, d)) for d, n in enumerate(result)]
    return torch.Size(sizes)


def _count(
    recorder: Recorder, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    result = function(*args, **kwargs)
    return TracedInt.of(result, recorder, (numel, recorder.view(args[0])))


_COPIES = """clone contiguous to type type_as float double half bfloat16 int long bool short char byte
cpu cuda positive __pos__ __deepcopy__ pin_memory""".split()
_QUESTIONS = """dim ndimension stride storage_offset element_size get_device has_names
requires_grad_ retain_grad __repr__ __format__ __str__ __hash__ __len__ _set_grad_enabled
set_grad_enabled _is_view size_in_bytes nelement_size result_type promote_types can_cast
get_default_dtype share_memory_ finfo iinfo _has_compatible_shallow_copy_type sym_size""".split()

_HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(_COPIES, _copy),
    **dict.fromkeys(_QUESTIONS, _ask),
    "get:shape": _shape,
    "size": _shape,
    "numel": _count,
    "nelement": _count,
    "detach": _detach,
    "get:data": _detach,
    "detach_": _detach_in_place,
    "copy_": _copy_in_place,
    "fill_": _fill,
    "zero_": _fill,
}
