"""Checks that a recorded run means what the user's code means."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.frontend.capture import capture, replay
from snncc.frontend.state.results import returned, write_back
from snncc.frontend.state.signature import Describer
from snncc.frontend.state.sources import (
    gather,
    named_tensors,
    preserved,
    walk,
)
from snncc.ir.tape import Tape


class Net(nn.Module):
    """A module from its forward, given as a function of the module, and its attributes."""

    def __init__(self, forward: Callable[..., Any], **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, copy.deepcopy(value))
        self.run = forward

    def forward(self, x: Tensor, *rest: Any) -> Any:
        return self.run(self, x, *rest)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Return a random input that asks for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_()


def check(
    model: Any,
    *args: Any,
    again: tuple[Any, ...] | None = None,
    gradient_error: float = 0.0,
) -> Tape:
    """Capture a model and compare its tape with it, on the same and on other data.

    Outputs, state, random numbers and what is written into arguments must be equal bit by bit, and
    gradients too unless ``gradient_error`` allows for sums in another order.
    """
    before = _state(model)
    tape = capture(model, args, {})

    assert _same_state(before, _state(model)), "capture changed the model"
    for data in (args, _other_values(args), again):
        if data is not None:
            _compare(tape, model, data, gradient_error)
    return tape


def names(tape: Tape) -> list[str]:
    """Return the names of the operators of a tape, in order."""
    nodes = [n for n in tape.graph.nodes if n.op == "call_function"]
    return [getattr(n.target, "__name__", str(n.target)) for n in nodes]


def node(tape: Tape, name: str) -> torch.fx.Node:
    """Return the node of that name."""
    return next(n for n in tape.graph.nodes if n.name == name)


def outputs_of(tape: Tape, model: Any, *args: Any) -> Any:
    """Return what the tape computes, in the shape of the user's return value."""
    outputs = replay(tape, gather(tape, model, args, {}))
    result = returned(tape, model, outputs, args)
    write_back(tape, model, outputs, args)
    return result


def _other_values(value: Any) -> Any:
    def other(x: Tensor) -> Tensor:
        if not x.dtype.is_floating_point:
            return x
        return (torch.randn_like(x) * 1.7).requires_grad_(x.requires_grad)

    return pytree.tree_map_only(Tensor, other, value)


def attribute_signature(model: Any) -> Any:
    """Return the signature of a model's state, and the shapes of tensors that are no parameters."""
    holders = walk(model)
    describer = Describer(holders)
    return describer.describe_all(holders), tuple(describer.shapes)


def _state(model: Any) -> tuple[Any, list[tuple[str, Tensor]]]:
    tensors = [(s.name, t.detach().clone()) for s, t in named_tensors(walk(model))]
    return attribute_signature(model), tensors


def _same_state(a: Any, b: Any) -> bool:
    pairs = zip(a[1], b[1], strict=True)
    return a[0] == b[0] and all(n == m and _is_equal(x, y) for (n, x), (m, y) in pairs)


def _is_equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return bool(a == b)
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def _compare(tape: Tape, model: Any, args: Any, gradient_error: float) -> None:
    expected = _observe(model, args, lambda *a: model(*a))
    actual = _observe(model, args, lambda *a: outputs_of(tape, model, *a))

    assert expected.keys() == actual.keys()
    for name, values in expected.items():
        assert len(values) == len(actual[name]), name
        for position, (x, y) in enumerate(zip(values, actual[name], strict=True)):
            if name == "gradient" and gradient_error:
                torch.testing.assert_close(y, x, rtol=gradient_error, atol=gradient_error)
            else:
                assert _is_equal(x, y), f"{name} {position}: {x} {y}"


def _observe(model: Any, args: Any, run: Callable[..., Any]) -> dict[str, list[Any]]:
    """Run, and return outputs, gradients, what was left behind and the next random number."""
    args = pytree.tree_map_only(Tensor, _fresh_leaf, args)
    leaves = [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]
    with preserved(model, args):
        torch.manual_seed(7)
        parameters = [t for _, t in named_tensors(walk(model)) if t.requires_grad and t.is_leaf]
        wanted = [x for x in leaves if x.requires_grad] + parameters
        result = pytree.tree_leaves(run(*args))
        drawn = torch.rand(())
        tensors = [x for x in result if isinstance(x, Tensor)]
        return {
            "output": [x.detach().clone() if isinstance(x, Tensor) else x for x in result],
            "gradient": _gradients(tensors, wanted),
            "argument": [x.detach().clone() for x in leaves],
            "state": [t.detach().clone() for _, t in named_tensors(walk(model))],
            "signature": [attribute_signature(model)],
            "random": [drawn],
        }


def _gradients(tensors: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
    """Return the gradients; what has no history, and what only has one of zeros, are alike."""
    generator = torch.Generator().manual_seed(3)
    seeds = [torch.randn(x.shape, generator=generator) for x in tensors]
    pairs = [(x, g.to(x.dtype)) for x, g in zip(tensors, seeds, strict=True) if x.requires_grad]
    wanted = [x for x in wanted if x.is_leaf]
    found: Any = [None] * len(wanted)
    if pairs and wanted:
        outputs, cotangents = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]


def _fresh_leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)
