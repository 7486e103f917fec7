"""Capture: run the user's model once, for real, and record every torch call into a `Tape` (L0).

Python itself runs: loops, branches, containers and attributes need no analysis.  The model is left
as it was: what the run did to buffers, attributes and random number generators is undone, and is
part of the tape instead.  What cannot be recorded faithfully raises a `CaptureError`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.errors import CaptureError
from snncc.frontend.autograd.checkpoints import checkpoints_ignored
from snncc.frontend.autograd.hooks import refuse_module_hooks
from snncc.frontend.autograd.surrogate import functions_recorded
from snncc.frontend.garbage import rare_collections
from snncc.frontend.libraries import plain_libraries
from snncc.frontend.location import CallSites
from snncc.frontend.placement import require_values
from snncc.frontend.recorder import Recorder
from snncc.frontend.session import Session
from snncc.frontend.state.aftermath import Aftermath
from snncc.frontend.state.modes import asks_for_layouts, reads_of_modes, without_gradients_for_users
from snncc.frontend.state.origin import Outside
from snncc.frontend.state.parameters import parameters_refused
from snncc.frontend.state.reads import UserCode, may_read, require_unchanged
from snncc.frontend.state.sources import PythonGenerators, gather, named_tensors, preserved
from snncc.frontend.stepping import user_code
from snncc.frontend.traced import TracedInt
from snncc.ir.custom_gradient import run_graph
from snncc.ir.tape import Source, SourceKind, Tape

__all__ = ["capture", "gather", "replay"]

_LOCK = threading.RLock()  # torch.autograd.Function is patched while a run is recorded


def capture(
    model: Callable[..., Any] | nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tape:
    """Run a model once and record what it computes.

    Args:
        model: A module or function of tensors.
        args: Its arguments; tensors may be nested in tuples, lists and dicts.
        kwargs: Its keyword arguments.

    Returns:
        The tape of the run.  The model's state is as it was before.

    Raises:
        CaptureError: The run cannot be recorded faithfully.
        UnsupportedError: The run uses a feature of torch that no tape can hold.
    """
    with_gradients = torch.is_grad_enabled()
    with (
        _LOCK,
        rare_collections(),
        torch.enable_grad(),
        preserved(model, args, kwargs) as before,
    ):
        refuse_module_hooks(before.holders)
        outside = Outside(before)
        for source, tensor in named_tensors(before.holders):
            require_values(source.name, tensor)
            outside.add(source, tensor)
        leaves, in_spec = _inputs(model, args, kwargs, outside)
        args, kwargs = pytree.tree_unflatten(leaves, in_spec)
        around = may_read(user_code(model), before.holders)
        sites = CallSites(_run.__code__)
        recorder = Recorder(sites, outside)
        session = Session(sites)
        session.recorder = recorder
        with (
            functions_recorded(session),
            parameters_refused(session),
            plain_libraries(),
            checkpoints_ignored(),
            nullcontext() if with_gradients else without_gradients_for_users(),
        ):
            result = _run(session, model, args, kwargs)
        require_unchanged(around)
        tape = _finish(Aftermath(recorder, outside, before), in_spec, result)
        tape.guards = tuple(outside.guards.values())
        tape.is_steered_by_sizes = recorder.comparisons.are_steering
        tape.counts = tuple(recorder.comparisons.counts())
        code = _code(session)
        reads = code.reads(before.holders)  # finds more code
        modes = reads_of_modes(code.code, with_gradients=with_gradients)
        tape.reads = (*reads, *modes)
        tape.asks_for_layouts = asks_for_layouts(code.code)
        recorder.close()
        return tape


def _inputs(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], outside: Outside
) -> tuple[list[Any], pytree.TreeSpec]:
    """Return the leaves of the arguments, whose tensors become known, and how they are nested."""
    names = _leaf_names(model, args, kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    for index, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if isinstance(leaf, Tensor):
            require_values(name, leaf)
            leaves[index] = _distinct(leaf, outside)
            outside.add(Source(SourceKind.INPUT, name, index), leaves[index])
    return leaves, spec


def _code(session: Session) -> UserCode:
    """Return the code of the user that ran, or that backward may run."""
    code = UserCode()
    for each, variables in session.sites.code.items():
        code.add(each, variables)
    for function in session.functions:
        code.add_class(function)
        code.add_methods(function, _RULES)
    return code


_RULES = ("forward", "backward", "setup_context", "vjp")


def _run(
    session: Session, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the model; call paths start below this frame."""
    generators = PythonGenerators()
    try:
        with session.listening():
            result = model(*args, **kwargs)
    except Exception:
        if session.failure is not None:
            raise session.failure from None
        raise
    if session.failure is not None:  # the user's code went on regardless
        raise session.failure
    if generators.have_moved():
        raise CaptureError(
            "The model draws random numbers of Python or numpy.",
            code="capture.python-random",
            notes=["The numbers drawn while recording would be frozen into the program."],
            hints=["Draw them with torch: 'torch.rand', 'torch.bernoulli', 'torch.randint'."],
        )
    return result


def _distinct(leaf: Tensor, outside: Outside) -> Tensor:
    """Return an argument as an object of its own: another call may pass different tensors."""
    if outside.source_of(leaf) is None:
        return leaf
    return leaf.detach().requires_grad_(leaf.requires_grad)


def _finish(after: Aftermath, in_spec: pytree.TreeSpec, result: Any) -> Tape:
    leaves, out_spec = pytree.tree_flatten(after.opened(result))
    output_leaves = tuple(after.output_leaf(leaf) for leaf in leaves)
    bindings, deleted = tuple(after.bindings()), tuple(after.deleted())
    writes = tuple(after.writes())
    record = after.close()
    return Tape(
        **record._asdict(),
        in_spec=in_spec,
        out_spec=out_spec,
        output_leaves=output_leaves,
        writes=writes,
        bindings=bindings,
        deleted=deleted,
        result=pytree.tree_map_only(TracedInt, int, result),
    )


def _leaf_names(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str]:
    """Return for each leaf of the arguments its name: ``x``, ``state[0]``, ``args[1]``."""
    function = user_code(model)
    function = function.forward if isinstance(function, nn.Module) else function
    try:
        bound = inspect.signature(function).bind_partial(*args, **kwargs)
        positional = [
            name for name in bound.arguments
            if bound.signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
        ]  # fmt: skip
    except (TypeError, ValueError):
        positional = []
    pairs, _ = pytree.tree_flatten_with_path((args, kwargs))
    names = []
    for path, _ in pairs:
        _, key, *rest = path
        position = getattr(key, "idx", None)
        if position is None:
            name = str(getattr(key, "key", key))
        elif position < len(positional) and _is_plain(function, positional[position]):
            name = positional[position]
        else:
            name = f"args[{position}]"
        names.append(name + pytree.keystr(tuple(rest)))
    return names


def _is_plain(function: Callable[..., Any], name: str) -> bool:
    parameter = inspect.signature(function).parameters[name]
    return parameter.kind is not inspect.Parameter.VAR_POSITIONAL


def replay(tape: Tape, values: Sequence[Tensor]) -> tuple[Any, ...]:
    """Run a tape's graph: the reference interpreter of L0.

    Args:
        tape: The tape.
        values: For each source its tensor, as `gather` returns them.

    Returns:
        The outputs of the graph.
    """
    outputs: tuple[Any, ...] = tuple(run_graph(tape.graph, values))
    return outputs
