"""Fold batch norms into the products before them, or into a scale and a shift (evaluation mode).

Before, with ``scale = gamma / sqrt(var + eps)``::

    y = W x + b        n = (y - mean) scale + beta

After, where nothing else reads ``y``::

    n = (scale W) x + (scale (b - mean) + beta)

A norm of anything else becomes ``scale y + shift``, which the neuron behind it computes as it loads
its input.  Channels are those of a convolution, transposed or not and in groups, or the features of
a linear layer; axes may be arranged between product and norm as long as the channels stay whole.
Statistics of one step belong to that step: such a norm becomes a scale and a shift for each step.

The coefficients follow the parameters of the model at each call, so that it may be trained and
loaded as before.  A norm of a state's own potential is left to `fold_membrane_norm`.

Precondition: evaluation mode; in training a norm takes the statistics of the batch, which are not
known before the product.
Numerics: reassociated.
Source: Jacob et al. 2018, section 3.2 (folding of batch norms).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

from snncc.frontend.operators.canonical import size
from snncc.ir import norm_ops
from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import Carry, Fill, TimeLoop
from snncc.passes.base import Rejection
from snncc.passes.neurons import copy_graph

INTO_WEIGHTS = "a norm behind it is folded into its weights"
INTO_INPUT = "a norm in front of it is folded into its input"

_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_CONVOLUTIONS = (
    *(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
    *_TRANSPOSED,
)
_TYPES = (torch.float32, torch.float64)
_GROUPS = 6  # where they are among the arguments of a transposed convolution


@dataclass(frozen=True, slots=True)
class FoldNorms:
    """Fold every batch norm, in the loops and outside of them."""

    name = "fold-norms"
    numerics = Numerics.REASSOCIATED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the graph without batch norms; the same where there are none."""
        loops = [n for n in graph.nodes if isinstance(n.target, TimeLoop)]
        bodies = [graph, *(n.target.body for n in loops)]
        found = [norm for body in bodies for norm in norms_in(body)]
        for norm in found:
            reason = _obstacle(norm)
            if reason is not None:
                return reason
        if not found:
            return graph
        result = copy_graph(graph)
        for node in list(result.nodes):
            if isinstance(node.target, TimeLoop) and norms_in(node.target.body):
                node.target = _fold_loop(node.target)
        fixed = frozenset(n for n in result.nodes if n.op == "placeholder")
        _Folder(result, fixed, frozenset()).run()
        result.lint()
        return result


def norms_in(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """Return the batch norms of a graph."""
    return [n for n in graph.nodes if n.target is F.batch_norm]


def uses_batch(norm: torch.fx.Node) -> bool:
    """Tell whether a norm takes the statistics of its batch, or has no others."""
    _, mean, var, _, _, training, *_ = _arguments(norm)
    return bool(training) or mean is None or var is None


def _obstacle(norm: torch.fx.Node) -> Rejection | None:
    where = norm.meta.get("where")
    if uses_batch(norm):
        return Rejection("train-norm", "it takes the statistics of the batch it is given", where)
    types = {n.meta.get("dtype") for n in (norm, *norm.all_input_nodes)}
    if len(types) > 1 or not types <= {*_TYPES}:
        names = " and ".join(sorted(str(t).removeprefix("torch.") for t in types))
        return Rejection("type", f"its values and parameters are of {names}", where)
    return None


def _arguments(norm: torch.fx.Node) -> tuple[Any, ...]:
    """Return the arguments of a norm; capture gives all of them by position."""
    return norm.args


def _fold_loop(loop: TimeLoop) -> TimeLoop:
    body = torch.fx.Graph()
    body.output(body.graph_copy(loop.body, {}))
    known = {i.name for i in loop.invariants}
    fixed = frozenset(n for n in body.nodes if n.op == "placeholder" and n.name in known)
    kept = {c.update for c in loop.carries} | {r.node for r in loop.results}
    folder = _Folder(body, fixed, frozenset(n for n in body.nodes if n.name in kept))
    folder.run()
    return replace(
        loop,
        body=body,
        carries=tuple(_renamed(c, folder.names) for c in loop.carries),
        results=tuple(replace(r, node=folder.names.get(r.node, r.node)) for r in loop.results),
    )


def _renamed(carry: Carry, names: Mapping[str, str]) -> Carry:
    initial = carry.initial
    if isinstance(initial, Fill) and initial.like is not None:
        initial = replace(initial, like=names.get(initial.like, initial.like))
    return replace(carry, initial=initial, update=names.get(carry.update, carry.update))


@dataclass(eq=False)
class _Product:
    """A product whose results are the channels of a norm; ``groups`` as in `folded_weight`."""

    node: torch.fx.Node
    groups: int | None


class _Folder:
    """Folds the norms of one graph.

    Args:
        graph: The graph, which is changed.
        fixed: Its placeholders that may be parameters: what is the same at all steps.
        kept: The nodes whose value the loop around it reads by name.
    """

    def __init__(
        self,
        graph: torch.fx.Graph,
        fixed: frozenset[torch.fx.Node],
        kept: frozenset[torch.fx.Node],
    ) -> None:
        self.graph, self.fixed, self.kept = graph, fixed, kept
        self.names: dict[str, str] = {}  # of each norm, and of what has its value now

    def run(self) -> None:
        """Fold each norm."""
        for norm in norms_in(self.graph):
            product = self.product(norm)
            with self.graph.inserting_before(norm):
                new = self.scale_and_shift(norm) if product is None else self.fold(norm, product)
            norm.replace_all_uses_with(new)
            self.names[norm.name] = new.name
            self.graph.erase_node(norm)

    def product(self, norm: torch.fx.Node) -> _Product | None:
        """Return the product that a norm can be folded into, past what only arranges axes."""
        value, axis = norm.args[0], 1
        while isinstance(value, torch.fx.Node) and self.is_read_once(value):
            if value.target in _CONVOLUTIONS or value.target is F.linear:
                return self.checked(value, axis, norm)
            before = _axis_before(value, axis)
            if before is None:
                return None
            value, axis = value.args[0], before
        return None

    def is_read_once(self, node: torch.fx.Node) -> bool:
        """Tell whether one other node reads a value; to read its sizes needs no value."""
        readers = [user for user in node.users if user.target is not size]
        return len(readers) == 1 and node not in self.kept and node.op == "call_function"

    def checked(self, node: torch.fx.Node, axis: int, norm: torch.fx.Node) -> _Product | None:
        """Return a product if the channels of a norm are its results and all else is fixed."""
        rank, args = len(node.meta["shape"]), node.args
        is_linear = node.target is F.linear
        weight: Any = args[1] if len(args) > 1 else None
        if node.kwargs or not isinstance(weight, torch.fx.Node):
            return None
        spatial = len(weight.meta.get("shape", ())) - 2
        channels = rank - 1 if is_linear else 1
        if axis != channels or (not is_linear and rank != spatial + 2):
            return None
        parameters = (*args[1:3], *_arguments(norm)[1:5])
        given = [p for p in parameters if isinstance(p, torch.fx.Node)]
        if not all(p in self.fixed and p.meta.get("dtype") is node.meta["dtype"] for p in given):
            return None
        if node.target in _TRANSPOSED:
            groups: Any = args[_GROUPS] if len(args) > _GROUPS else 1
            return _Product(node, groups)
        return _Product(node, None)

    def fold(self, norm: torch.fx.Node, product: _Product) -> torch.fx.Node:
        """Scale the weights of a product; return the input of the norm, which is its result."""
        _, mean, var, gamma, beta, _, _, eps = _arguments(norm)
        node = product.node
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        with self.graph.inserting_before(node):
            shape = weight.meta["shape"]  # type: ignore[union-attr]
            scaled = self.emit(
                norm, shape, norm_ops.folded_weight, weight, var, gamma, eps, product.groups
            )
            shifted = self.emit(
                norm, mean.meta["shape"], norm_ops.folded_bias, bias, mean, var, gamma, beta, eps
            )
        node.args = (node.args[0], scaled, shifted, *node.args[3:])
        node.meta.update(folded=INTO_WEIGHTS, numerics=Numerics.REASSOCIATED)
        result: Any = norm.args[0]
        return result  # type: ignore[no-any-return]

    def scale_and_shift(self, norm: torch.fx.Node) -> torch.fx.Node:
        """Write a norm as a factor and a summand for each channel."""
        x, mean, var, gamma, beta, _, _, eps = _arguments(norm)
        channels = mean.meta["shape"]
        shape = (*channels, *(1,) * (len(x.meta["shape"]) - 2))
        scale = self.emit(norm, channels, norm_ops.norm_scale, var, gamma, eps)
        shift = self.emit(norm, channels, norm_ops.norm_shift, mean, var, gamma, beta, eps)
        if len(shape) > 1:
            scale, shift = (
                self.emit(norm, shape, torch.reshape, value, shape) for value in (scale, shift)
            )
        scaled = self.emit(norm, norm.meta["shape"], torch.mul, x, scale)
        return self.emit(norm, norm.meta["shape"], torch.add, scaled, shift)

    def emit(
        self, norm: torch.fx.Node, shape: Any, target: Callable[..., Any], *args: Any
    ) -> torch.fx.Node:
        """Add an operator that stands for a part of a norm."""
        node = self.graph.call_function(target, args)
        node.meta.update(norm.meta, shape=tuple(shape), folded=INTO_INPUT)
        return node


def _axis_before(node: torch.fx.Node, axis: int) -> int | None:
    """Return where an axis was before an operator that arranges axes, if it is still whole."""
    args: Any = node.args
    source = args[0] if args else None
    if node.kwargs or not isinstance(source, torch.fx.Node) or "shape" not in source.meta:
        return None
    before, after = source.meta["shape"], node.meta.get("shape", ())
    if node.target is torch.permute:
        return int(args[1][axis]) % len(before)
    if node.target is torch.transpose:
        pair = [d % len(before) for d in args[1:3]]
        return pair[1 - pair.index(axis)] if axis in pair else axis
    if node.target in (torch.flatten, torch.unflatten, torch.reshape):
        behind = after[axis:]  # the channels and what is behind them
        old = len(before) - len(behind)
        return old if old >= 0 and before[old:] == behind else None
    return None
