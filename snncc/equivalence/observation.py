"""Observe one call of a model: results, the state that it leaves behind, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.frontend.state.objects import opened
from snncc.frontend.state.results import returned
from snncc.frontend.state.sources import named_tensors, preserved, walk
from snncc.ir.tape import SourceKind, Tape

# Positional and keyword arguments of a call.
Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class Cotangents:
    """Random cotangents that are the same for tensors of the same shape and position."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return a cotangent for each output; numbers that are no floats have none."""
        generator = torch.Generator().manual_seed(self.seed)
        return [
            torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
            if y.is_floating_point()
            else torch.zeros_like(y)
            for y in outputs
        ]


def differentiate(
    outputs: list[Tensor], leaves: dict[str, Tensor], seeds: Cotangents
) -> dict[str, Tensor]:
    """Return the gradients of the outputs with respect to named leaves."""
    pairs = [(y, g) for y, g in zip(outputs, seeds(outputs), strict=True) if y.requires_grad]
    named = {name: x for name, x in leaves.items() if x.requires_grad}
    if not pairs or not named:
        return {}
    ys, gs = zip(*pairs, strict=True)
    grads = torch.autograd.grad(ys, list(named.values()), gs, allow_unused=True)
    return {
        name: torch.zeros_like(x) if g is None else g
        for (name, x), g in zip(named.items(), grads, strict=True)
    }


def leaves_of(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors of the arguments and the parameters of a model, by name."""
    inputs, _ = pytree.tree_flatten((args, kwargs))
    leaves = {f"input {i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor)}
    return leaves | (dict(model.named_parameters()) if isinstance(model, nn.Module) else {})


@contextmanager
def unwritten(leaves: dict[str, Tensor]) -> Iterator[None]:
    """Put back what inputs and parameters hold, where a run writes into them."""
    kept = [x for x in leaves.values() if not x.is_inference()]
    before = [(x, x._version, x.detach().clone()) for x in kept]
    try:
        yield
    finally:
        with torch.no_grad():
            for x, version, value in before:
                if x._version != version:
                    x.copy_(value)


def held_by(program: Callable[..., Any], args: Any, kwargs: Any) -> set[int]:
    """Return the ids of the objects that hold a model's state, which is compared as such."""
    return {id(holder.owner) for holder in walk(program, args, kwargs)}


def flat(result: Any, held: set[int]) -> list[Tensor]:
    """Return the tensors and numbers of a result, as tensors."""
    leaves = pytree.tree_leaves(opened(result, held))
    return [torch.as_tensor(x) for x in leaves if isinstance(x, Tensor | int | float)]


@dataclass(frozen=True)
class Seen:
    """What one call shows: results, state that is left behind, gradients of the results."""

    outputs: list[Tensor]
    state: dict[str, Tensor]
    gradients: dict[str, Tensor]


def observe(
    run: Callable[..., Any],
    program: Callable[..., Any],
    arguments: Arguments,
    leaves: dict[str, Tensor],
    seeds: Cotangents,
) -> Seen:
    """Call, and leave the state of the program as it was."""
    args, kwargs = arguments
    with preserved(program, args, kwargs):
        outputs = flat(run(*args, **kwargs), held_by(program, args, kwargs))
        state = {
            source.name: tensor.detach().clone()
            for source, tensor in named_tensors(walk(program, args, kwargs))
            if source.kind is not SourceKind.PARAMETER
        }
        return Seen(outputs, state, differentiate(outputs, leaves, seeds))


def results_of(
    tape: Tape, program: Callable[..., Any], outputs: Sequence[Any], arguments: Arguments
) -> list[Tensor]:
    """Return what a recorded call would show, given the outputs of its graph."""
    args, kwargs = arguments
    return flat(returned(tape, program, outputs, args, kwargs), held_by(program, args, kwargs))
