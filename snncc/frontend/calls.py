"""Dispatch from a torch function to the handler that records it.

A handler runs the user's call for real and records what it means.  Functions fall into kinds, each
a module of `snncc.frontend.operators`: pure operators (`meaning`), in-place operators (`in_place`),
copies and questions (`copies`), factories (`factories`), random numbers (`draws`), indexing
(`indexing`) and recurrent cells (`cells`).  What cannot be recorded is in
`snncc.frontend.departures`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from snncc.frontend import departures
from snncc.frontend.operators import copies, draws, factories, in_place, indexing, varying
from snncc.frontend.operators.cells import ARGUMENTS, CELLS
from snncc.frontend.operators.invocation import Call, Invocation
from snncc.frontend.operators.meaning import KNOWN_TARGETS, Meaning, is_random, meaning_of
from snncc.frontend.operators.outputs import record
from snncc.frontend.operators.rewrites import REWRITES
from snncc.frontend.operators.spellings import spelling_of
from snncc.frontend.recorder import Handler, Recorder

_TABLES = (
    copies.HANDLERS,
    departures.HANDLERS,
    factories.HANDLERS,
    indexing.HANDLERS,
    in_place.HANDLERS,
)


def handle(recorder: Recorder, call: Invocation) -> Any:
    """Run one torch call of the user and record what it means."""
    result = handler_of(call.function)(recorder, call)
    if recorder.varying or call.name in varying.NAMES:
        recorder.varying.follow(call, result, recorder.may_leave)
    return result


@functools.cache
def handler_of(function: Callable[..., Any]) -> Handler:
    """Return the handler of a torch function."""
    name = _name_of(function)
    for table in _TABLES:
        if name in table:
            return table[name]
    if name in CELLS:
        return _cell_handler(CELLS[name])
    if name.startswith(departures.OPTIMIZER_PREFIXES) and name.endswith("_"):
        return departures.refuse_training
    if name.startswith(("get:", "set:", "is_")) and name not in REWRITES:
        return copies.ask
    mutated = _out_of_place(name)
    if mutated is not None:
        return in_place.handler_of(mutated)
    plain = _pure_handler(meaning_of(name, function), is_random(name))
    return draws.HANDLERS[name](plain) if name in draws.HANDLERS else plain


def _name_of(function: Callable[..., Any]) -> str:
    owner = getattr(function, "__self__", None)
    if type(function).__name__ == "method-wrapper" and owner is not None:
        name = {"__get__": "get:", "__set__": "set:"}.get(function.__name__, "")
        return f"{name}{owner.__name__}"
    if function is torch.Tensor.where:
        return "Tensor.where"
    if isinstance(function, OpOverload | OpOverloadPacket):
        return str(function)
    return spelling_of(function)


def _out_of_place(name: str) -> str | None:
    """Return the name of the pure operator of which ``name`` is the in-place form."""
    match = re.fullmatch(r"__i(\w+__)", name)
    if match is not None and name not in ("__invert__", "__int__", "__index__"):
        return "__" + match[1]
    if name.endswith("_") and not name.endswith("__"):
        return name[:-1]
    return None


def _cell_handler(cell: Callable[..., Any]) -> Handler:
    """Return the handler of a cell, which is recorded as the calls that it consists of."""

    def handler(recorder: Recorder, call: Invocation) -> Any:
        def do(part: Callable[..., Any], *args: Any) -> Any:
            return handle(recorder, Invocation(part, args, {}))

        return cell(do, *(call.argument(n, name) for n, name in enumerate(ARGUMENTS)))

    return handler


def _pure_handler(meaning: Meaning, is_drawn: bool) -> Handler:
    def handler(recorder: Recorder, call: Invocation) -> Any:
        options = call.kwargs
        if not options:
            return _run_pure(recorder, call, meaning(call.args, options), is_drawn)
        if options.get("out") is not None:
            return in_place.write_out(recorder, call, meaning)
        if options.get("generator") is not None:
            departures.refuse_generator(recorder)
        if "inplace" in options:
            options = {k: v for k, v in options.items() if k != "inplace"}
            if call.kwargs["inplace"]:
                pure = meaning(call.args, options)
                return in_place.mutate(recorder, call, pure, impure=is_drawn)
        return _run_pure(recorder, call, meaning(call.args, options), is_drawn)

    return handler


def _run_pure(recorder: Recorder, call: Invocation, pure: Call, is_drawn: bool) -> Any:
    impure = is_drawn or departures.has_side_effect(recorder, pure)
    args = recorder.lower(pure.args)
    kwargs = recorder.lower_options(pure.kwargs) if pure.kwargs else {}
    is_known = pure.target in KNOWN_TARGETS
    versions = () if is_known else departures.versions(call.args, call.kwargs)
    before = torch.get_rng_state() if not is_known and not impure else None
    result = call.function(*call.args, **call.kwargs)
    if before is not None and not torch.equal(before, torch.get_rng_state()):
        impure = True  # a layer that has a dropout of its own
    if versions and not impure:
        departures.check_versions(recorder, call, versions)
    return record(recorder, result, Call(pure.target, args, kwargs), pure.args, impure=impure)
