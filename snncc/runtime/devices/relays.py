"""Targets of nodes that hand states over: a neuron in blocks of its lanes, and single states.

While a rank runs one block of a neuron's lanes, the rank after runs the block before it: with M
blocks, k ranks and T_s for the layer on one of them, a layer takes (M + k - 1) T_s / (k M) and the
k - 1 transfers.

Source: Temporal Fusion (arXiv 2408.00280), section 3.3, of which this is the pipelined form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from snncc.runtime.devices.handover import Call


class RunsNeuron(Protocol):
    """A neuron layer."""

    def run(self, tensors: tuple[Tensor, ...], length: int | None) -> Sequence[Tensor]:
        """Return its outputs and finals."""
        ...


@dataclass(frozen=True)
class Take:
    """The entrance of a state: on the first rank its start, elsewhere from the rank before."""

    state: int

    @property
    def __name__(self) -> str:
        return "take"

    def __call__(self, call: Call, start: Any) -> Any:
        """Return the state before the segment."""
        if call.ranks.is_first:
            return start
        like = call.likes[self.state]
        return call.take(call.receive(like.shape, like), like)


@dataclass(frozen=True)
class Give:
    """The exit of a state: the rank after gets it."""

    @property
    def __name__(self) -> str:
        return "give"

    def __call__(self, call: Call, value: Tensor) -> None:
        """Send the state after the segment."""
        if not call.ranks.is_last:
            call.give(value)


@dataclass(frozen=True)
class RelayedNeuron:
    """A neuron whose states come from the rank before and go to the rank after, block by block.

    Attributes:
        neuron: The neuron; its states are its last LANE inputs.
        steps: How many inputs have a time axis.
        states: The numbers of its states among those of the network.
        outputs: How many of its results have a time axis.
        finals: For each state the position of its end among the results.
        kept: The positions of the results that something else reads.
    """

    neuron: RunsNeuron
    steps: int
    states: tuple[int, ...]
    outputs: int
    finals: tuple[int, ...]
    kept: frozenset[int]

    @property
    def __name__(self) -> str:
        return "relayed_neuron"

    def __call__(self, call: Call, length: int, *arguments: Tensor) -> Sequence[Tensor | None]:
        """Run the neuron, a block of its lanes after another."""
        own = len(arguments) - len(self.states)
        like = call.likes[self.states[0]]
        axis, sizes = cut(like.shape, call.blocks)
        pieces = [
            _pieces(x, axis - like.dim(), sizes, has_time=i < self.steps)
            for i, x in enumerate(arguments if call.ranks.is_first else arguments[:own])
        ]
        receipts = []
        if not call.ranks.is_first:
            shapes = [(len(self.states), *_resized(like.shape, axis, n)) for n in sizes]
            receipts = [call.receive(shape, like) for shape in shapes]
        seen = []
        for block in range(len(sizes)):
            given = [piece[block] for piece in pieces]
            if receipts:
                given += call.take(receipts[block], like).unbind(0)
            results = self.neuron.run(tuple(given), length)
            if not call.ranks.is_last:
                call.give(torch.stack([results[final] for final in self.finals]))
            seen.append(results)
        return [
            self._joined([results[i] for results in seen], axis + (i < self.outputs))
            if i in self.kept
            else None
            for i in range(len(seen[0]))
        ]

    def _joined(self, blocks: list[Tensor], axis: int) -> Tensor:
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, axis)


def cut(lanes: Sequence[int], blocks: int) -> tuple[int, list[int]]:
    """Return the axis along which lanes are cut, and the sizes of the blocks.

    It is the outermost axis that is long enough, else the longest.
    """
    if not lanes:
        return 0, [1]
    enough = [i for i, size in enumerate(lanes) if size >= blocks]
    axis = enough[0] if enough else max(range(len(lanes)), key=lambda i: lanes[i])
    count = max(min(blocks, lanes[axis]), 1)
    small, more = divmod(lanes[axis], count)
    return axis, [small + (i < more) for i in range(count)]


def _resized(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if i == axis else n for i, n in enumerate(shape))


def _pieces(x: Tensor, axis: int, sizes: Sequence[int], *, has_time: bool) -> Sequence[Tensor]:
    """Return the part of an input for each block; what is broadcast is the same for all.

    Args:
        x: The input.
        axis: The axis of the lanes that is cut, from the end.
        sizes: The sizes of the blocks.
        has_time: Whether the first axis is time.
    """
    if len(sizes) == 1 or x.dim() + axis < has_time or x.shape[axis] == 1:
        return [x] * len(sizes)
    return torch.split(x, list(sizes), axis)
