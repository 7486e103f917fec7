"""Fold a batch norm of the membrane potential into the recurrence (evaluation mode).

Before, with ``r = sqrt(var + eps)``::

    m = decay v + x        n = (m - mean) weight / r + bias        u = alpha m + beta n

After, with ``A = alpha + beta weight / r`` and ``B = beta (bias - mean weight / r)``::

    u = (A decay) v + (A x + B)

Both the decay and the input are scaled, and what is carried on is the normalised potential: the
norm rescales the recurrence, not the threshold, so any sign of A and of the weight is right.  The
coefficients do not depend on the state and are computed outside of the time loop, for each step and
channel.  A norm whose input leads to no carried value is no part of the recurrence and is left
alone.

Precondition: evaluation mode; in training the norm is a mean over the batch at every step.
Numerics: reassociated.
Source: HD-LIF, arXiv 2410.07547, membrane BN; the coefficients as derived there, with eps, affine
parameters and any sign.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F

from snncc.ir.numerics import Numerics
from snncc.ir.time_loop import Fill, TimeLoop
from snncc.passes.base import Rejection
from snncc.passes.hoisting.find_recurrences import pointwise
from snncc.passes.neurons import copy_graph

INTO_STATE = "its membrane norm is folded into decay and input"
INTO_SCALE = "its membrane norm is folded into a scale and a shift"
Coefficient = torch.fx.Node | float


@dataclass(frozen=True, slots=True)
class FoldMembraneNorm:
    """Fold every norm that is part of a state's feedback, in evaluation mode."""

    name = "fold-membrane-norm"
    numerics = Numerics.REASSOCIATED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the graph with its time loops rewritten; the same where there is nothing."""
        if not any(
            isinstance(n.target, TimeLoop) and membrane_norms(n.target) for n in graph.nodes
        ):
            return graph
        result = copy_graph(graph)
        for node in result.nodes:
            if isinstance(node.target, TimeLoop) and membrane_norms(node.target):
                node.target = _fold(node.target)
        return result


def membrane_norms(loop: TimeLoop) -> list[torch.fx.Node]:
    """Return the norms in evaluation mode that elementwise operators feed back to themselves."""
    named = {node.name: node for node in loop.body.nodes}
    carries = {named[c.update]: named[c.name] for c in loop.carries}

    def follow(node: torch.fx.Node) -> list[torch.fx.Node]:
        readers = [user for user in node.users if _is_lanewise(user)]
        return [*readers, carries[node]] if node in carries else readers

    return [
        n
        for n in loop.body.nodes
        if n.target is F.batch_norm and is_evaluation(n) and n in reached(follow(n), follow)
    ]


def _is_lanewise(node: torch.fx.Node) -> bool:
    """Tell whether a node can be part of a neuron; a norm can once it is folded."""
    return node.target is F.batch_norm or pointwise(node) is None


def is_evaluation(node: torch.fx.Node) -> bool:
    """Tell whether a norm takes its running statistics."""
    args: Any = node.args
    training = args[5] if len(args) > 5 else node.kwargs.get("training", False)
    return not training and len(args) > 2 and None not in args[1:3]


def reached(start: list[torch.fx.Node], step: Any) -> set[torch.fx.Node]:
    """Return the nodes to which steps lead from some nodes, these included."""
    found: set[torch.fx.Node] = set()
    pending = list(start)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += step(node)
    return found


def _fold(loop: TimeLoop) -> TimeLoop:
    body = torch.fx.Graph()
    body.output(body.graph_copy(loop.body, {}))
    folded = replace(loop, body=body)
    for norm in membrane_norms(folded):
        _Folder(folded, norm).run()
    kept = _names(folded)
    for node in reversed(body.nodes):
        if node.op == "call_function" and not node.users and node.name not in kept:
            body.erase_node(node)
    return folded


def _names(loop: TimeLoop) -> set[str]:
    """Return the names under which a loop knows values of its body."""
    starts = (c.initial for c in loop.carries)
    likes = {s.like for s in starts if isinstance(s, Fill) and s.like is not None}
    return {c.update for c in loop.carries} | {r.node for r in loop.results} | likes


@dataclass(frozen=True, slots=True)
class _Affine:
    """``factor * m + shift``; a number stands for itself."""

    factor: Coefficient
    shift: Coefficient


class _Folder:
    """Folds one norm: finds what is affine in its input m, and computes that from m's parts."""

    def __init__(self, loop: TimeLoop, norm: torch.fx.Node) -> None:
        self.body = loop.body
        self.norm = norm
        args: Any = norm.args
        self.m: torch.fx.Node = args[0]
        self.kept = _names(loop)
        self.affine: dict[torch.fx.Node, _Affine] = {self.m: _Affine(1.0, 0.0)}
        self.moving = reached([self.m], lambda n: list(n.users))
        self.whole = False  # whether m is read without its norm, too
        self.emitted: list[torch.fx.Node] = []

    def run(self) -> None:
        """Replace every value that is affine in m and used in another way."""
        for node in list(self.body.nodes):
            if node in self.moving and node is not self.m and node.op == "call_function":
                with self.body.inserting_before(node):
                    found = self.of(node)
                if found is not None:
                    self.affine[node] = found
        normalised = reached([self.norm], lambda n: list(n.users))
        plain = [n for n in self.affine if n not in normalised]
        self.whole = any(map(self.is_read, plain))
        for node, value in list(self.affine.items()):
            if node in plain or not self.is_read(node):
                continue
            with self.body.inserting_before(node):
                new = self.applied(value, node)
            node.replace_all_uses_with(new, delete_user_cb=lambda u: u not in self.affine)
            self.take_name(node, new)
        for node in self.emitted:
            node.meta["folded"] = INTO_SCALE if self.whole else INTO_STATE

    def is_read(self, node: torch.fx.Node) -> bool:
        """Tell whether anything but an affine function of m reads a value."""
        return node.name in self.kept or any(u not in self.affine for u in node.users)

    def of(self, node: torch.fx.Node) -> _Affine | None:
        """Return a node as an affine function of m, or None."""
        args: Any = node.args
        if node is self.norm:
            return self.normalised()
        if node.target not in (torch.add, torch.sub, torch.mul, torch.div) or node.kwargs:
            return None
        a, b = (self.part(arg) for arg in args[:2])
        if a is None or b is None:
            return None
        if node.target in (torch.add, torch.sub):
            join = self.sum if node.target is torch.add else self.difference
            return _Affine(join(a.factor, b.factor), join(a.shift, b.shift))
        if node.target is torch.div:
            if b.factor != 0.0:
                return None
            inverse = self.emit(torch.div, 1.0, b.shift)
            return _Affine(self.product(a.factor, inverse), self.product(a.shift, inverse))
        if a.factor != 0.0 and b.factor != 0.0:
            return None
        moving, fixed = (a, b) if b.factor == 0.0 else (b, a)
        factor = fixed.shift
        return _Affine(self.product(moving.factor, factor), self.product(moving.shift, factor))

    def part(self, value: Any) -> _Affine | None:
        """Return an operand as an affine function of m; None for what depends on m otherwise."""
        if isinstance(value, torch.fx.Node):
            if value in self.affine:
                return self.affine[value]
            return None if value in self.moving else _Affine(0.0, value)
        return _Affine(0.0, float(value)) if isinstance(value, int | float) else None

    def normalised(self) -> _Affine:
        """Return the norm as a factor and a shift for each channel."""
        args: Any = (*self.norm.args, *(None,) * 8)
        _, mean, var, weight, bias, _, _, eps, *_ = args
        eps = self.norm.kwargs.get("eps", 1e-5) if eps is None else eps
        deviation = self.emit(torch.sqrt, self.emit(torch.add, var, eps))
        scale = self.emit(torch.div, 1.0 if weight is None else weight, deviation)
        shift = self.difference(0.0 if bias is None else bias, self.product(mean, scale))
        shape = (mean.meta["shape"][0], *(1,) * (len(self.m.meta["shape"]) - 2))
        return _Affine(*(self.emit(torch.reshape, c, shape) for c in (scale, shift)))

    def applied(self, value: _Affine, like: torch.fx.Node) -> torch.fx.Node:
        """Return ``factor * m + shift``, computed from the parts of m where m is a charge."""
        decay, state, drive = self.charge()
        if state is None or self.whole:
            return self.as_node(self.sum(self.product(value.factor, self.m), value.shift), like)
        kept = self.product(self.product(value.factor, decay), state)
        added = self.sum(self.product(value.factor, drive), value.shift)
        return self.as_node(self.sum(kept, added), like)

    def charge(self) -> tuple[Coefficient, torch.fx.Node | None, Coefficient]:
        """Return decay, state and drive of ``m = decay * v + drive``; no state for another m."""
        args: Any = self.m.args
        if self.m.target is torch.add and not self.m.kwargs:
            for product, drive in (args[:2], args[1::-1]):
                if isinstance(product, torch.fx.Node) and product.target is torch.mul:
                    parts: Any = product.args
                    for decay, state in (parts, parts[::-1]):
                        if isinstance(state, torch.fx.Node) and state.op == "placeholder":
                            return decay, state, drive
        return 1.0, None, 0.0

    def sum(self, a: Coefficient, b: Coefficient) -> Coefficient:
        """Return ``a + b``."""
        if a == 0.0 or b == 0.0:
            return b if a == 0.0 else a
        return self.emit(torch.add, a, b)

    def difference(self, a: Coefficient, b: Coefficient) -> Coefficient:
        """Return ``a - b``."""
        if b == 0.0:
            return a
        return self.emit(torch.neg, b) if a == 0.0 else self.emit(torch.sub, a, b)

    def product(self, a: Coefficient, b: Coefficient) -> Coefficient:
        """Return ``a * b``."""
        if a == 0.0 or b == 0.0:
            return 0.0
        if a == 1.0 or b == 1.0:
            return b if a == 1.0 else a
        return self.emit(torch.mul, a, b)

    def emit(self, target: Any, *args: Any) -> Coefficient:
        """Add an operator to the body; on numbers alone, compute it."""
        nodes = [a for a in args if isinstance(a, torch.fx.Node)]
        if not nodes:
            numbers: Any = target(*(torch.tensor(a, dtype=torch.float64) for a in args))
            return float(numbers)
        node = self.body.call_function(target, args)
        shapes = [n.meta["shape"] for n in nodes]
        broadcast: Any = torch.broadcast_shapes
        shape = args[1] if target is torch.reshape else tuple(broadcast(*shapes))
        dtype = self.m.meta["dtype"]
        node.meta.update(self.norm.meta, shape=shape, dtype=dtype)
        self.emitted.append(node)
        return node

    def as_node(self, value: Coefficient, like: torch.fx.Node) -> torch.fx.Node:
        assert isinstance(value, torch.fx.Node), like
        value.meta.update(like.meta)
        return value

    def take_name(self, old: torch.fx.Node, new: torch.fx.Node) -> None:
        """Give a value the name under which the loop knows it."""
        name = old.name
        old._rename(f"{name}_unfolded")
        new._rename(name)
