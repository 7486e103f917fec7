"""The meaning of a torch function that computes: its canonical call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType, MethodDescriptorType
from typing import Any

import torch

from snncc.frontend.operators.invocation import Call
from snncc.frontend.operators.rewrites import REWRITES, quotient
from snncc.frontend.operators.spellings import operators

Function = Callable[..., Any]
Meaning = Callable[[tuple[Any, ...], dict[str, Any]], Call]


def meaning_of(name: str, function: Function) -> Meaning:
    """Return what maps the arguments of a function to its canonical call.

    Args:
        name: The function's name among the spellings.
        function: The function itself, recorded as it is where the name is not listed.
    """
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
        call = Call(operator.target, *bound)
        return quotient(call) if operator.target is torch.div else call

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


KNOWN_TARGETS = frozenset(operator.target for operator in operators().values())

_RANDOM_LAYERS = frozenset(
    f"F.{name}"
    for name in (
        "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "rrelu",
        "feature_alpha_dropout", "gumbel_softmax", "fractional_max_pool2d",
    )
)  # fmt: skip


@functools.cache
def is_random(name: str) -> bool:
    """Tell whether a function draws random numbers."""
    if name in _RANDOM_LAYERS:
        return True
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or "attention" in name:
        return False
    overloads: Any = packet
    tags = (getattr(packet, overload).tags for overload in overloads.overloads())
    return any(torch.Tag.nondeterministic_seeded in t for t in tags)
