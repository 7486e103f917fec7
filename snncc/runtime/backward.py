"""The arguments of a backward call, on whatever machine it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snncc.ir.nodes import Rank, Recurrence
from snncc.ir.program import Adjoint
from snncc.runtime.layout import Layout, Sizes


@dataclass(frozen=True)
class BackwardCall:
    """A backward call, besides the forward call that it follows.

    Attributes:
        adjoint: The adjoint of the neuron.
        tensors: Inputs of the forward call.
        cotangents: Those of its outputs and finals, in order; None where there is none.
        needs: For each input whether its gradient is asked for.
    """

    adjoint: Adjoint
    tensors: Sequence[Tensor]
    cotangents: Sequence[Tensor | None]
    needs: Sequence[bool]

    @property
    def gradients(self) -> tuple[tuple[str, ...], ...]:
        """For each input the results of the adjoint whose sum is its gradient."""
        steps = tuple((name,) if name else () for name in self.adjoint.step_gradients)
        return tuple(
            names if needed else ()
            for names, needed in zip(
                (*steps, *self.adjoint.lane_gradients), self.needs, strict=True
            )
        )


def input_ranks(recurrence: Recurrence) -> dict[str, Rank]:
    """Return the rank of each input by name, those with a time axis first."""
    ranks = dict.fromkeys(recurrence.step_inputs, Rank.STEP)
    return ranks | dict.fromkeys(recurrence.lane_inputs, Rank.LANE)


class Cotangents:
    """The cotangents of a backward call; zeros that take no memory stand for those not there.

    Args:
        adjoint: The adjoint of the neuron.
        layout: The sizes of the forward call.
        dtype: The type of its results.
        device: Where they are.
    """

    def __init__(
        self, adjoint: Adjoint, layout: Layout, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.ranks = dict.fromkeys(adjoint.output_cotangents, Rank.STEP)
        self.ranks |= dict.fromkeys(adjoint.final_cotangents, Rank.LANE)
        zero = torch.zeros((), dtype=dtype, device=device)
        sizes = {Rank.STEP: (layout.steps, *layout.lanes), Rank.LANE: layout.lanes}
        self._zeros = [zero.expand(sizes[rank]) for rank in self.ranks.values()]

    def given(self, cotangents: Sequence[Tensor | None]) -> list[Tensor]:
        """Return a tensor for each cotangent, in order."""
        return [
            zero if cotangent is None else cotangent
            for cotangent, zero in zip(cotangents, self._zeros, strict=True)
        ]


def sum_lanes(gradient: Tensor, sizes: Sizes, *, has_time: bool) -> Tensor:
    """Sum a gradient over the dimensions that its input is broadcast in."""
    if tuple(gradient.shape) == sizes:
        return gradient
    if not has_time:
        return gradient.sum_to_size(sizes)
    ones = (1,) * (gradient.dim() - len(sizes))
    return gradient.sum_to_size((sizes[0], *ones, *sizes[1:])).reshape(sizes)
