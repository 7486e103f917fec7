"""Targets of nodes that hand states over: a neuron in blocks of its lanes, and single states.

While a rank runs one block of a neuron's lanes, the rank after runs the block before it: with M
blocks, k ranks and T_s for the layer on one of them, a layer takes (M + k - 1) T_s / (k M) and the
k - 1 transfers.

Source: Temporal Fusion (arXiv 2408.00280), section 3.3, of which this is the pipelined form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.runtime.neuron import Neuron
from snncc.runtime.processes.blocks import Blocks, run_in_parts, runs_in_parts
from snncc.runtime.processes.handover import Call


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
        states: The numbers of its states among those of the network.
        finals: For each state the position of its end among the results.
        kept: The positions of the results that something else reads.
    """

    neuron: Neuron
    states: tuple[int, ...]
    finals: tuple[int, ...]
    kept: frozenset[int]

    @property
    def __name__(self) -> str:
        return "relayed_neuron"

    def __call__(self, call: Call, length: int, *arguments: Tensor) -> Mapping[int, Tensor]:
        """Run the neuron and return its results by position."""
        neuron = self.neuron
        own = arguments[: len(arguments) - len(self.states)]
        blocks = Blocks.of(call.likes[self.states[0]].shape, call.blocks)
        tensors = arguments if call.ranks.is_first else own
        if not runs_in_parts(neuron, blocks, own):
            return self.copied(call, length, blocks, tensors)
        outputs = len(neuron.program.forward.outputs)
        kept = tuple(sorted(i for i in self.kept if i >= outputs))
        return run_in_parts(call, neuron, blocks, tensors, length, self.finals, kept)

    def copied(
        self, call: Call, length: int, blocks: Blocks, tensors: Sequence[Tensor]
    ) -> dict[int, Tensor]:
        """Run the neuron on blocks that are tensors of their own, and put these together."""
        steps = len(self.neuron.program.forward.step_inputs)
        like = call.likes[self.states[0]]
        pieces = [blocks.pieces(x, has_time=i < steps) for i, x in enumerate(tensors)]
        count = len(blocks.sizes)
        receipts = []
        if not call.ranks.is_first:
            shapes = [(len(self.states), *blocks.shape(i)) for i in range(count)]
            receipts = [call.receive(shape, like) for shape in shapes]
        seen = []
        for block in range(count):
            given = [piece[block] for piece in pieces]
            if receipts:
                given += call.take(receipts[block], like).unbind(0)
            results = self.neuron.run(tuple(given), length)
            if not call.ranks.is_last:
                call.give(torch.stack([results[final] for final in self.finals]))
            seen.append(results)
        return {i: blocks.joined([results[i] for results in seen]) for i in self.kept}
