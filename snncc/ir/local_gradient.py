"""Operators of one step that are differentiated where they are, by autograd.

A loop that is differentiated by hand leaves the operators that have no rule of their own to
autograd, one step at a time: forward notes what autograd needs (`Noted`), and the reverse step
asks for the product of the cotangents with the Jacobian (`LocalGradient`).  Random draws and
changes of buffers happen once, in forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.fx
from torch import Tensor

from snncc.ir.custom_gradient import run_graph

# What forward leaves for backward: the inputs that have gradients, and the outputs.
Note: TypeAlias = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Noted:
    """Target of a node: ``call(*inputs) -> (*outputs, note)``.

    Attributes:
        graph: The operators: from the inputs to a tuple of outputs.
        wanted: For each input whether its gradient will be asked for.
        differentiable: Positions of the outputs that will have cotangents.
    """

    graph: torch.fx.Graph
    wanted: tuple[bool, ...]
    differentiable: tuple[int, ...]

    @property
    def __name__(self) -> str:
        first = next(n for n in self.graph.nodes if n.op == "call_function")
        return getattr(first.target, "__name__", "operator")

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the operators under autograd."""
        with torch.enable_grad():
            given = [
                x.detach().requires_grad_() if w and isinstance(x, Tensor) else x
                for x, w in zip(inputs, self.wanted, strict=True)
            ]
            outputs = run_graph(self.graph, given)
        leaves = tuple(x for x, w in zip(given, self.wanted, strict=True) if w)
        roots = tuple(outputs[i] for i in self.differentiable)
        shown = (x.detach() if isinstance(x, Tensor) else x for x in outputs)
        return (*shown, (leaves, roots))


@dataclass(frozen=True, eq=False)
class LocalGradient:
    """Target of a node: ``call(note, *cotangents)``, for each leaf of the note its gradient."""

    name: str

    @property
    def __name__(self) -> str:
        return f"{self.name}_gradient"

    def __call__(self, note: Note, *cotangents: Tensor) -> tuple[Tensor, ...]:
        """Ask autograd."""
        leaves, roots = note
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        pairs = [
            (root, given.sum_to_size(root.shape))
            for root, given in zip(roots, cotangents, strict=True)
            if root.requires_grad
        ]
        found: Iterator[Tensor | None] = iter([None] * len(tensors))
        if pairs and tensors:
            ys, gs = zip(*pairs, strict=True)
            # Retained, because the whole may be differentiated twice.
            found = iter(torch.autograd.grad(ys, tensors, gs, True, allow_unused=True))
        return tuple(
            _or_zero(next(found), x) if isinstance(x, Tensor) else torch.zeros(()) for x in leaves
        )


def _or_zero(gradient: Tensor | None, leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if gradient is None else gradient
