"""States from rank to rank inside of a call, and their gradients back.

Each hand-over is an autograd function: what it sends forward it gets a gradient for, from the rank
after, and what it receives forward it sends the gradient of, to the rank before.  `enter` stands at
the beginning of the graph of a call and `leave` at its end; every hand-over is tied to both by a
token without content, so that each backward pass, whatever it starts from and asks for, runs the
hand-overs of all ranks in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snncc.ir.once import no_second_derivative
from snncc.runtime.processes.ranks import Ranks, Receipt


@dataclass
class Call:
    """One call of a network whose time is split.

    Attributes:
        ranks: Who takes part.
        likes: For each state a tensor without memory, of its shape, dtype and device.
        blocks: Into how many blocks the lanes of a neuron are cut at most.
        root: The token of `enter`, where there are gradients.
        tokens: Those of the hand-overs so far, for `leave`.
    """

    ranks: Ranks
    likes: Sequence[Tensor]
    blocks: int
    root: Tensor | None = None
    tokens: list[Tensor] = field(default_factory=list)

    def take(self, receipt: Receipt, like: Tensor) -> Tensor:
        """Return what is being received from the rank before."""
        if self.root is None or not like.is_floating_point():
            return receipt()
        value, token = _apply(_Take, self.root, self.ranks, receipt)
        self.tokens.append(token)
        return value  # type: ignore[no-any-return]

    def give(self, value: Tensor) -> None:
        """Send a value to the rank after."""
        if self.root is None or not value.is_floating_point():
            self.ranks.send(value, self.ranks.rank + 1)
        else:
            self.tokens.append(_apply(_Give, self.root, self.ranks, value))

    def receive(self, shape: Sequence[int], like: Tensor) -> Receipt:
        """Begin to receive from the rank before."""
        return self.ranks.receive(shape, like, self.ranks.rank - 1)


def enter(
    ranks: Ranks, leaves: Sequence[Tensor], shared: Sequence[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Begin the graph of a call.

    Args:
        ranks: Who takes part.
        leaves: All tensors that require gradients.
        shared: For each of them whether it is the same on every rank, and its gradient wanted
            whole on every rank.

    Returns:
        The token for hand-overs, and what stands for the shared tensors.
    """
    root, *whole = _apply(_Enter, ranks, tuple(shared), *leaves)
    return root, whole


def leave(
    call: Call, outputs: Sequence[Tensor], counted: Sequence[bool], needs: Sequence[bool]
) -> Sequence[Tensor]:
    """End the graph of a call.

    Args:
        call: The call.
        outputs: What it returns.
        counted: For each output whether its gradient counts on this rank: one that is the same on
            every rank counts once, on the last.
        needs: Whether it has one at all.
    """
    fixed = call.ranks, tuple(counted), tuple(needs)
    results: Sequence[Tensor] = _apply(_Leave, *fixed, *outputs, *call.tokens)
    return results


def _apply(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)


class _Take(torch.autograd.Function):
    """Receives a value from the rank before; backward sends its gradient there."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, ranks: Ranks, receipt: Receipt) -> Any:
        value = receipt()
        ctx.ranks, ctx.like = ranks, value.new_empty(()).expand(value.shape)
        ctx.set_materialize_grads(False)
        return value, root.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _token: Any) -> Any:
        sent = torch.zeros_like(ctx.like) if gradient is None else gradient
        ctx.ranks.send(sent, ctx.ranks.rank - 1)
        return None, None, None


class _Give(torch.autograd.Function):
    """Sends a value to the rank after; backward receives its gradient from there."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, ranks: Ranks, value: Tensor) -> Any:
        ranks.send(value, ranks.rank + 1)
        ctx.ranks, ctx.like = ranks, value.new_empty(()).expand(value.shape)
        return root.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _token: Any) -> Any:
        gradient = ctx.ranks.receive(ctx.like.shape, ctx.like, ctx.ranks.rank + 1)
        return None, None, gradient()


class _Enter(torch.autograd.Function):
    """Passes on tensors that are shared; backward adds up their gradients over the ranks.

    All leaves are arguments, so that a pass for any of them comes by every hand-over.
    """

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, shared: tuple[bool, ...], *leaves: Tensor) -> Any:
        ctx.ranks, ctx.shared = ranks, shared
        whole = [leaf for leaf, is_shared in zip(leaves, shared, strict=True) if is_shared]
        ctx.likes = [leaf.new_empty(()).expand(leaf.shape) for leaf in whole]
        ctx.set_materialize_grads(False)
        return leaves[0].new_zeros(()), *(leaf.detach() for leaf in whole)

    @staticmethod
    def backward(ctx: Any, _token: Any, *gradients: Tensor | None) -> Any:
        totals = iter([
            ctx.ranks.total(torch.zeros_like(like) if gradient is None else gradient)
            for gradient, like in zip(gradients, ctx.likes, strict=True)
        ])  # fmt: skip
        return None, None, *(next(totals) if is_shared else None for is_shared in ctx.shared)


class _Leave(torch.autograd.Function):
    """Passes on outputs, and leads every backward pass to all hand-overs."""

    @staticmethod
    def forward(
        ctx: Any, ranks: Ranks, counted: tuple[bool, ...], needs: tuple[bool, ...], *values: Tensor
    ) -> Any:
        ctx.ranks, ctx.counted = ranks, counted
        ctx.tokens = [token.detach() for token in values[len(counted) :]]
        ctx.set_materialize_grads(False)
        results = tuple(output.detach() for output in values[: len(counted)])
        ctx.mark_non_differentiable(*(x for x, n in zip(results, needs, strict=True) if not n))
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled():  # 'create_graph=True'; what travels has no graph
            raise no_second_derivative()
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(ctx.ranks.flush)
        own = (g if counts else None for g, counts in zip(gradients, ctx.counted, strict=True))
        return None, None, None, *own, *ctx.tokens
