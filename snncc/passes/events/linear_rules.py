"""Operators that are linear in spikes, and what each of them is without what it adds.

For an operator ``y = f(x)`` with ``f(x) = A x + b`` a rule gives the arguments of ``A x``: biases
and means are left out, what is added is zero.  What stands beside spikes in a product must be the
same at all steps and for all samples, and is when it depends on no input of the model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from snncc.frontend.operators.canonical import cast
from snncc.ir import sequence_ops
from snncc.ir.events.recalled import from_start
from snncc.ir.neuron_call import NeuronCall
from snncc.passes.base import Rejection

Node: TypeAlias = torch.fx.Node
Call: TypeAlias = tuple[Any, tuple[Any, ...], dict[str, Any]]  # target, arguments

_CONVOLUTIONS = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    }
)
# Linear in the first argument; the others are sizes, dims and the like.
_OF_ONE = frozenset(
    {
        *(torch.neg, torch.reshape, torch.flatten, torch.permute, torch.transpose, torch.movedim),
        *(torch.unsqueeze, torch.squeeze, torch.select, torch.narrow, torch.unflatten, torch.flip),
        *(torch.roll, torch.diagonal, torch.sum, torch.mean, torch.Tensor.expand),
        *(torch.Tensor.repeat, torch.Tensor.unfold, operator.getitem, sequence_ops.align, cast),
        torch.clone,
        *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    }
)
_SMOOTH = frozenset({"nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic"})


def without_offset(node: Node, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    """Return the call of an operator's linear part, or why the operator is not linear in spikes.

    Args:
        node: The operator; at least one argument depends on spikes.
        tainted: The nodes that depend on spikes.
        varying: The nodes that depend on inputs of the model, or are drawn.
    """
    target: Any = node.target
    inner = target.operator if isinstance(target, sequence_ops.Folded) else target
    if not _is_of_floats(node):
        return _rejected(node, "what becomes of spikes is rounded to another type")
    for targets, rule in _RULES.items():
        if inner in targets:
            return rule(node, inner, tainted, varying)
    if isinstance(inner, NeuronCall):
        reason = f"what '{inner.__name__}' keeps from step to step is between spikes and a neuron"
        return _rejected(node, f"{reason}, or more than its spikes drives others")
    name = getattr(inner, "__name__", str(inner))
    return _rejected(node, f"'{name}' is not linear in the spikes that it gets")


def _is_of_floats(node: Node) -> bool:
    return node.meta.get("dtype") in (torch.float32, torch.float64, None)


def _rejected(node: Node, reason: str) -> Rejection:
    return Rejection("not-linear", reason, node.meta.get("where"))


def _of_first(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    rest = [*node.args[1:], *node.kwargs.values()]
    if any(n in tainted for n in _nodes(rest)):
        return _rejected(node, f"'{inner.__name__}' multiplies or sizes spikes by spikes")
    return node.target, node.args, dict(node.kwargs)


def _biased(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    """Leave out the third argument."""
    args, kwargs = list(node.args), dict(node.kwargs)
    if len(args) > 2:
        args[2] = None
    kwargs.pop("bias", None)
    return _times_constants(node, args, kwargs, tainted, varying)


def _times_constants(
    node: Node, args: list[Any], kwargs: dict[str, Any], tainted: Set[Node], varying: Set[Node]
) -> Call | Rejection:
    """Return a call with one argument made of spikes, all others constant."""
    every = [*args, *kwargs.values()]
    if sum(any(n in tainted for n in _nodes([a])) for a in every) != 1:
        return _rejected(node, "spikes are multiplied by spikes")
    if any(n in varying for n in _nodes(every)):
        return _rejected(node, "what spikes are multiplied with depends on the input, or is drawn")
    return node.target, tuple(args), kwargs


def _product(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    return _times_constants(node, list(node.args), dict(node.kwargs), tainted, varying)


def _quotient(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    if node.kwargs or any(n in tainted for n in _nodes(node.args[1:])):
        return _rejected(node, "something is divided by spikes, or rounded")
    return _product(node, inner, tainted, varying)


def _sum(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    """Leave out what is added and is no spike."""
    if node.kwargs or len(node.args) != 2:
        return _rejected(node, "what is added to spikes has a factor")
    first, second = (any(n in tainted for n in _nodes([a])) for a in node.args)
    if first and second:
        return node.target, node.args, {}
    spikes, other = node.args if first else reversed(node.args)
    return beside, (spikes, other), {"negated": second and inner is torch.sub}


def beside(x: Tensor, other: Tensor | float, *, negated: bool) -> Tensor:
    """Return what spikes are made of in a sum or difference: as wide as the sum is."""
    x = x.expand_as(x + other)
    return -x if negated else x


def _norm(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    """Leave out the mean and the bias of a batch norm in evaluation mode."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given.get("training", False) or given.get("running_var") is None:
        return _rejected(node, "a norm takes the statistics of its batch")
    rest = (given["running_var"], given.get("weight"), given.get("eps", _at(node.args, 7, 1e-5)))
    call = _times_constants(node, [given["input"], *rest], {}, tainted, varying)
    return call if isinstance(call, Rejection) else (scaled, (given["input"], *rest), {})


def _at(args: tuple[Any, ...], position: int, default: Any) -> Any:
    return args[position] if len(args) > position else default


def scaled(x: Tensor, variance: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Return [T, B, C, *] times what a batch norm in evaluation mode multiplies with."""
    zero = torch.zeros_like(variance)
    y = F.batch_norm(x.flatten(0, 1), zero, variance, weight, None, training=False, eps=eps)
    return y.reshape(x.shape)


def _joined(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    """Concatenate or stack, zeros where there are no spikes."""
    parts: Any = node.args[0]
    flags = tuple(any(n in tainted for n in _nodes([p])) for p in parts)
    return Joined(inner, flags), (tuple(parts), *node.args[1:]), dict(node.kwargs)


@dataclass(frozen=True, slots=True)
class Joined:
    """Concatenates or stacks sequences, zeros in place of those that are not flagged."""

    operator: Callable[..., Tensor]
    flags: tuple[bool, ...]

    @property
    def __name__(self) -> str:
        return f"{self.operator.__name__}_of_spikes"

    def __call__(self, parts: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the sequence."""
        length = next(len(p) for p, flag in zip(parts, self.flags, strict=True) if flag)
        zeros = (p.new_zeros(()).expand(length, *p.shape[1:]) for p in parts)
        made = [p if flag else z for p, z, flag in zip(parts, zeros, self.flags, strict=True)]
        return self.operator(made, *args, **kwargs)


def _padded(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    value = node.kwargs.get("value", _at(node.args, 3, None))
    if value not in (None, 0, 0.0):
        return _rejected(node, "spikes are padded with something else than zeros")
    return _of_first(node, inner, tainted, varying)


def _resized(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    if node.kwargs.get("mode", _at(node.args, 3, "nearest")) not in _SMOOTH:
        return _rejected(node, "spikes are resized in a way that is not linear")
    return _of_first(node, inner, tainted, varying)


def _view(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    """Move time to the front; all steps are there, in order."""
    x, dim, start, stride, _ = node.args
    if (start, stride) != (0, 1):
        return _rejected(node, "spikes are read in another order than they come in")
    return torch.movedim, (x, dim, 0), {}


def _started(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    """Leave out the first step: nothing was recalled in it, and what it gets is no spike's."""
    if any(n in tainted for n in _nodes(node.args[1:])):
        return _rejected(node, "what is recalled starts from spikes")
    return torch.movedim, (node.args[0], 0, 0), {}


def _einsum(node: Node, inner: Any, tainted: Set[Node], varying: Set[Node]) -> Call | Rejection:
    return _times_constants(node, list(node.args), dict(node.kwargs), tainted, varying)


_Rule: TypeAlias = Callable[[Node, Any, Set[Node], Set[Node]], Call | Rejection]
_RULES: Mapping[frozenset[Any], _Rule] = {
    _OF_ONE: _of_first,
    _CONVOLUTIONS | {sequence_ops.linear, F.linear}: _biased,
    frozenset({torch.add, torch.sub}): _sum,
    frozenset({torch.mul, torch.matmul, torch.mm}): _product,
    frozenset({torch.div}): _quotient,
    frozenset({F.batch_norm}): _norm,
    frozenset({torch.cat, torch.stack}): _joined,
    frozenset({F.pad}): _padded,
    frozenset({F.interpolate}): _resized,
    frozenset({torch.einsum}): _einsum,
    frozenset({sequence_ops.time_view}): _view,
    frozenset({from_start}): _started,
}


def _nodes(values: Any) -> list[Node]:
    """Return the nodes in arguments, nested ones too."""
    found: list[Node] = []
    torch.fx.node.map_arg(tuple(values), lambda n: found.append(n))
    return found
