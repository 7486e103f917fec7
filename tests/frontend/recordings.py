"""Checks that a recorded run means what the user's code means."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.frontend.capture import capture, replay
from snncc.frontend.sources import (
    attribute_signature,
    gather,
    named_tensors,
    preserved,
    walk,
    write_back,
)
from snncc.ir.tape import Tape


def check(
    model: Any,
    *args: Any,
    again: tuple[Any, ...] | None = None,
    gradient_error: float = 0.0,
    **kwargs: Any,
) -> Tape:
    """Capture a model and compare its tape with it, on the same and on other data.

    Outputs, state and random numbers must be equal bit by bit, and gradients too unless
    ``gradient_error`` allows for sums in another order.
    """
    before = _state(model)
    tape = capture(model, args, kwargs)

    assert _same(before, _state(model)), "capture changed the model"
    _compare(tape, model, args, kwargs, gradient_error)
    _compare(tape, model, _other_data(args), _other_data(kwargs), gradient_error)
    if again is not None:
        _compare(tape, model, again, kwargs, gradient_error)
    return tape


def targets(tape: Tape) -> list[str]:
    """Return the names of the operators of a tape, in order."""
    return [
        getattr(n.target, "__name__", str(n.target))
        for n in tape.graph.nodes
        if n.op == "call_function"
    ]


def _other_data(value: Any) -> Any:
    def other(x: Tensor) -> Tensor:
        if not x.dtype.is_floating_point:
            return x
        return (torch.randn_like(x) * 1.7).requires_grad_(x.requires_grad)

    return pytree.tree_map_only(Tensor, other, value)


def _state(model: Any) -> Any:
    named = [(s.name, t.detach().clone()) for s, t in named_tensors(walk(model))]
    return attribute_signature(model), named


def _same(a: Any, b: Any) -> bool:
    return (
        a[0] == b[0]
        and [n for n, _ in a[1]] == [n for n, _ in b[1]]
        and all(_equal(x, y) for (_, x), (_, y) in zip(a[1], b[1], strict=True))
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.detach().nan_to_num(), b.detach().nan_to_num())
    )


def _compare(tape: Tape, model: Any, args: Any, kwargs: Any, gradient_error: float) -> None:
    expected = _observe(model, args, kwargs, lambda a, k: model(*a, **k))

    def run(a: Any, k: Any) -> Any:
        outputs = replay(tape, gather(tape, model, a, k))
        write_back(tape, model, outputs, a, k)
        is_output = [isinstance(x, int) and not isinstance(x, bool) for x in tape.output_leaves]
        leaves = [
            outputs[x] if own else x for x, own in zip(tape.output_leaves, is_output, strict=True)
        ]
        return pytree.tree_unflatten(leaves, tape.out_spec)

    actual = _observe(model, args, kwargs, run)
    for name in expected:
        wanted, found = expected[name], actual[name]
        assert len(wanted) == len(found), name
        for n, (x, y) in enumerate(zip(wanted, found, strict=True)):
            if name == "gradient" and gradient_error:
                torch.testing.assert_close(y, x, rtol=gradient_error, atol=gradient_error)
            elif isinstance(x, Tensor) and isinstance(y, Tensor):
                assert _equal(x, y), (
                    f"{name} {n}: {(x - y).abs().max() if x.shape == y.shape else (x.shape, y.shape)}"
                )
            else:
                assert x == y, (name, n, x, y)


def _observe(model: Any, args: Any, kwargs: Any, run: Any) -> dict[str, list[Any]]:
    """Run and return the outputs, the gradients, the state left behind and the random state."""
    args, kwargs = pytree.tree_map_only(Tensor, _fresh_leaf, (args, kwargs))
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    with preserved(model, args, kwargs):
        torch.manual_seed(7)
        parameters = [t for s, t in named_tensors(walk(model)) if t.requires_grad and t.is_leaf]
        inputs = [
            pytree.tree_map_only(Tensor, torch.Tensor.clone, x) if False else x for x in leaves
        ]
        result = pytree.tree_leaves(run(args, kwargs))
        state = [t.detach().clone() for _, t in named_tensors(walk(model))]
        signature = attribute_signature(model)
        tensors = [x for x in result if isinstance(x, Tensor) and x.requires_grad]
        wanted = [x for x in [*inputs, *parameters] if x.requires_grad and x.is_leaf]
        torch.manual_seed(3)
        seeds = [torch.randn_like(x) for x in tensors]
        gradients: list[Any] = []
        if tensors and wanted:
            found = torch.autograd.grad(tensors, wanted, seeds, allow_unused=True)
            gradients = [
                torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)
            ]
        outputs = [x.detach().clone() if isinstance(x, Tensor) else x for x in result]
        needs = [x.requires_grad for x in result if isinstance(x, Tensor)]
        mutated = [x.detach().clone() for x in leaves]
    return {
        "output": outputs,
        "gradient": gradients,
        "state": state,
        "signature": [signature],
        "input": mutated,
        "needs": needs,
    }


def _fresh_leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.dtype.is_floating_point and x.requires_grad)


class Net(nn.Module):
    """A module from an ``__init__`` and a ``forward`` given as functions."""

    def __init__(self, forward: Any, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, copy.deepcopy(value))
        self._run = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self, *args, **kwargs)
