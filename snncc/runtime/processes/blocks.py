"""A neuron in blocks of its lanes, whose states come from the rank before and go to the rank after.

On the CPU the blocks read and write parts of the tensors of all lanes: cutting copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snncc.runtime import memory
from snncc.runtime.layout import Layout
from snncc.runtime.neuron import Neuron
from snncc.runtime.plans import BackwardPlan, ForwardPlan, input_order
from snncc.runtime.processes.handover import Call
from snncc.runtime.processes.ranks import Ranks


@dataclass(frozen=True)
class Blocks:
    """How the lanes of a neuron are cut.

    Attributes:
        lanes: All lanes.
        axis: The axis of the lanes that is cut.
        sizes: The sizes of the blocks.
    """

    lanes: tuple[int, ...]
    axis: int
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, lanes: Sequence[int], most: int) -> Blocks:
        """Cut lanes along the outermost axis that is long enough, else the longest."""
        if not lanes:
            return cls((), 0, (1,))
        enough = [i for i, size in enumerate(lanes) if size >= most]
        axis = enough[0] if enough else max(range(len(lanes)), key=lambda i: lanes[i])
        count = max(min(most, lanes[axis]), 1)
        small, more = divmod(lanes[axis], count)
        return cls(tuple(lanes), axis, tuple(small + (i < more) for i in range(count)))

    def shape(self, block: int) -> tuple[int, ...]:
        """Return the lanes of a block."""
        sizes = enumerate(self.lanes)
        return tuple(self.sizes[block] if i == self.axis else n for i, n in sizes)

    def cuts(self, x: Tensor, *, has_time: bool) -> bool:
        """Tell whether an input is cut, or is broadcast and the same for all blocks."""
        axis = x.dim() + self.axis - len(self.lanes)
        return len(self.sizes) > 1 and axis >= has_time and x.shape[axis] != 1

    def pieces(self, x: Tensor, *, has_time: bool) -> Sequence[Tensor]:
        """Return the part of an input for each block."""
        if not self.cuts(x, has_time=has_time):
            return [x] * len(self.sizes)
        return torch.split(x, list(self.sizes), self.axis - len(self.lanes))

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        """Return the part of a tensor with all lanes for each block."""
        return [x] if len(self.sizes) == 1 else self.pieces(x, has_time=False)

    def joined(self, blocks: Sequence[Tensor]) -> Tensor:
        """Return a tensor with all lanes from its parts."""
        axis = self.axis - len(self.lanes)
        return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks), axis)

    def fit(self, layout: Layout) -> bool:
        """Tell whether the lanes of each block that lie innermost in memory are neighbours."""
        strides = layout.step_strides[1:]
        for block in range(len(self.sizes)):
            sizes = self.shape(block)
            inner = [dim for dim in layout.lane_order if sizes[dim] != 1]
            if inner and strides[inner[-1]] != 1:
                return False
        return True


@dataclass(eq=False)
class BlockRun:
    """One call of a neuron on the CPU, a block after another.

    Attributes:
        ranks: Who takes part.
        neuron: The neuron; its states are its last LANE inputs.
        blocks: How its lanes are cut.
        layout: The layout of all lanes.
        length: T.
        states: How many states there are.
        finals: For each state the position of its end among the results.
        kept: The positions of the finals that something else reads.
        is_training: Whether there is a backward pass.
    """

    ranks: Ranks
    neuron: Neuron
    blocks: Blocks
    layout: Layout
    length: int
    states: int
    finals: tuple[int, ...]
    kept: tuple[int, ...]
    is_training: bool
    plans: list[ForwardPlan] = field(default_factory=list)
    saved: int = 0

    def given(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Return the inputs of each block, but for states that are still to come."""
        steps = len(self.neuron.program.forward.step_inputs)
        pieces = [self.blocks.pieces(x, has_time=i < steps) for i, x in enumerate(tensors)]
        return list(zip(*pieces, strict=True))

    def forward(
        self, inputs: Sequence[tuple[Tensor, ...]], receipts: Sequence[Any]
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the results that are kept, and for each block its states and saved values."""
        forward, like = self.neuron.program.forward, inputs[0][0]
        count = len(forward.outputs)
        sizes, strides = (self.length, *self.blocks.lanes), self.layout.step_strides
        outputs = [memory.empty_strided(sizes, strides, like.dtype) for _ in range(count)]
        parts = [self.blocks.parts(x) for x in outputs]
        ends: list[list[Tensor]] = []
        rest: list[list[Tensor]] = []
        for block, own in enumerate(inputs):
            states = list(receipts[block]().unbind(0)) if receipts else []
            tensors = (*own, *states)
            plan = self.neuron.plan(
                tensors, self.length, training=self.is_training, among=self.layout
            )
            assert isinstance(plan, ForwardPlan)
            written = plan.run(tensors, [part[block] for part in parts])
            if not self.ranks.is_last:
                last = torch.stack([written[final] for final in self.finals])
                self.ranks.send(last, self.ranks.rank + 1)
            self.plans.append(plan)
            ends.append([written[i] for i in self.kept])
            rest.append([*states, *written[self.neuron.results :]])
        finals = [self.blocks.joined(each) for each in zip(*ends, strict=True)]
        return [*outputs, *finals], rest

    def backward(
        self,
        inputs: Sequence[tuple[Tensor, ...]],
        rest: Sequence[Sequence[Tensor]],
        cotangents: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """Return the gradients of the inputs; those of states go to the rank before."""
        ranks, blocks = self.ranks, self.blocks
        receipts = []
        if not ranks.is_last:
            like = inputs[0][0]
            shapes = [(self.states, *blocks.shape(i)) for i in range(len(inputs))]
            receipts = [ranks.receive(shape, like, ranks.rank + 1) for shape in shapes]
        given = self._cotangents(cotangents)
        wanted = (*needs, *[True] * (0 if ranks.is_first else self.states))
        whole: list[Tensor] = []
        seen: list[list[Tensor | None]] = []
        for block, own in enumerate(inputs):
            received = 0 if ranks.is_first else self.states
            tensors = (*own, *rest[block][:received])
            cots = [None if c is None else c[block] for c in given]
            if receipts:
                self._add(cots, receipts[block]().unbind(0))
            plan = self.neuron.backward_plan(self.plans[block], tensors, cots, wanted)
            assert isinstance(plan, BackwardPlan)
            if not seen:
                sizes, strides = (self.length, *blocks.lanes), self.layout.step_strides
                dtype = tensors[0].dtype
                whole = [memory.empty_strided(sizes, strides, dtype) for _ in range(plan.steps)]
            into = [blocks.parts(x)[block] for x in whole]
            found = plan.run(tensors, cots, rest[block][received:], into)
            if received:
                self._send_back(found[-received:], rest[block][:received])
            seen.append(found[: len(own)])
        each = list(zip(*seen, strict=True))
        return [
            self._gradient(parts, [own[i] for own in inputs], whole) for i, parts in enumerate(each)
        ]

    def _cotangents(self, cotangents: Sequence[Tensor | None]) -> list[Sequence[Tensor] | None]:
        """Return for each result of the neuron its cotangent in blocks, or None."""
        outputs = len(self.neuron.program.forward.outputs)
        places = [*range(outputs), *self.kept]
        found: list[Sequence[Tensor] | None] = [None] * self.neuron.results
        for place, cotangent in zip(places, cotangents, strict=True):
            if cotangent is not None and place not in self.neuron.program.without_gradient:
                found[place] = self.blocks.parts(cotangent)
        return found

    def _add(self, cotangents: list[Tensor | None], received: Sequence[Tensor]) -> None:
        """Add what the rank after sends of the finals."""
        for final, gradient in zip(self.finals, received, strict=True):
            own = cotangents[final]
            if final not in self.neuron.program.without_gradient:
                cotangents[final] = gradient if own is None else own + gradient

    def _send_back(self, gradients: Sequence[Tensor | None], states: Sequence[Tensor]) -> None:
        pairs = zip(gradients, states, strict=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in pairs]
        self.ranks.send(torch.stack(filled), self.ranks.rank - 1)

    def _gradient(
        self,
        parts: Sequence[Tensor | None],
        pieces: Sequence[Tensor],
        whole: Sequence[Tensor],
    ) -> Tensor | None:
        """Return the gradient of an input from those of its pieces."""
        found = [part for part in parts if part is not None]
        if not found:
            return None
        for tensor in whole:
            if found[0].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
                return tensor
        if len(pieces) == 1 or pieces[0] is not pieces[1]:
            return self.blocks.joined(found)
        total = found[0]
        for part in found[1:]:
            total = total + part
        return total


class _InBlocks(torch.autograd.Function):
    """Runs a neuron block by block, forward and backward."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, run: BlockRun, receipts: Any, *tensors: Tensor) -> Any:
        results, rest = run.forward(run.given(tensors), receipts)
        ctx.run, ctx.count, ctx.each = run, len(tensors), [len(r) for r in rest]
        ctx.save_for_backward(*tensors, *(x for r in rest for x in r))
        ctx.set_materialize_grads(False)
        places = [*range(len(run.neuron.program.forward.outputs)), *run.kept]
        fixed = run.neuron.program.without_gradient
        ctx.mark_non_differentiable(
            *(x for x, place in zip(results, places, strict=True) if place in fixed)
        )
        return *results, root.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        values = iter(ctx.saved_tensors)
        tensors = [next(values) for _ in range(ctx.count)]
        rest = [[next(values) for _ in range(count)] for count in ctx.each]
        run: BlockRun = ctx.run
        needs = ctx.needs_input_grad[3:]
        found = run.backward(run.given(tensors), rest, cotangents[:-1], needs)
        return None, None, None, *found


def runs_in_parts(neuron: Neuron, blocks: Blocks, tensors: Sequence[Tensor]) -> bool:
    """Tell whether blocks of a neuron can read and write parts of the tensors of all lanes.

    The answer is the same on all ranks.
    """
    if neuron.target == "torch" or not tensors or neuron.runs_on_gpu(tensors):
        return False
    return blocks.fit(_in_order(1, blocks.lanes))


def _in_order(length: int, lanes: tuple[int, ...]) -> Layout:
    return Layout(length, lanes, tuple(range(len(lanes) + 1)))


def run_in_parts(  # noqa: PLR0913 - the parts of a call
    call: Call,
    neuron: Neuron,
    blocks: Blocks,
    tensors: tuple[Tensor, ...],
    length: int,
    finals: tuple[int, ...],
    kept: tuple[int, ...],
) -> dict[int, Tensor]:
    """Run a neuron on the CPU and return its outputs, and the finals that are kept, by position.

    Args:
        call: The call of the network.
        neuron: The neuron.
        blocks: How its lanes are cut.
        tensors: Its inputs; on all ranks but the first without its states.
        length: T.
        finals: For each state the position of its end among the results.
        kept: The positions of the finals that something else reads.
    """
    neuron.check_steps(tensors, length)
    steps = len(neuron.program.forward.step_inputs)
    layout = Layout(length, blocks.lanes, input_order(tensors[:steps], length, blocks.lanes))
    if not blocks.fit(layout):
        layout = _in_order(length, blocks.lanes)
    fixed = (call.ranks, neuron, blocks, layout, length, len(finals), finals, kept)
    run = BlockRun(*fixed, is_training=call.root is not None)
    receipts = []
    if not call.ranks.is_first:
        shapes = [(len(finals), *blocks.shape(i)) for i in range(len(blocks.sizes))]
        receipts = [call.receive(shape, tensors[0]) for shape in shapes]
    places = [*range(len(neuron.program.forward.outputs)), *kept]
    if call.root is None:
        results, _ = run.forward(run.given(tensors), receipts)
    else:
        apply: Any = _InBlocks.apply
        *results, token = apply(call.root, run, receipts, *tensors)
        call.tokens.append(token)
    return dict(zip(places, results, strict=True))
