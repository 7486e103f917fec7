"""Plans of calls on a GPU: everything about a call that sizes, strides and types decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from snncc.codegen.base import WORD_STEPS, Job, KernelSpec, Role
from snncc.ir.chunks import RECOMPUTED, SOLVED, thread_lanes
from snncc.ir.program import Adjoint
from snncc.runtime.backward import BackwardCall, Cotangents, input_ranks, sum_lanes
from snncc.runtime.gpu.calls import Arrays, Call, Inputs
from snncc.runtime.gpu.gradients import Folds, Owner, Sums, choose_folds
from snncc.runtime.gpu.layout import extents
from snncc.runtime.gpu.results import GpuResources, plan_gpu_results, types_of
from snncc.runtime.gpu.variants import Blocks
from snncc.runtime.plans import Shape

# Elements that a thread asks for before it uses the first, and bytes of one array that it asks for
# between steps that it runs backwards: enough to hide the latency of memory, in few registers.
_AHEAD, _AHEAD_BACKWARDS = 32, 64
# Registers of a thread of which sixteen warps fit into a multiprocessor; doubles take more.
_REGISTERS = 128


class GpuForwardPlan:
    """A forward call with given sizes, strides and types.

    Args:
        resources: The neuron.
        tensors: Inputs of these sizes and strides.
        length: T, where no input tells it.
        training: Whether values are kept for backward.
    """

    def __init__(
        self,
        resources: GpuResources,
        tensors: Sequence[Tensor],
        length: int | None,
        *,
        training: bool,
    ) -> None:
        self.resources = resources
        self.device = tensors[0].device
        self.backward: dict[object, GpuBackwardPlan] = {}
        self.layout, self.results = plan_gpu_results(resources, tensors, length, training=training)
        self.types = types_of(resources, tensors, training=training)
        forward = resources.program.forward
        self.ranks = input_ranks(forward)
        self.names = tuple(self.ranks)
        self._inputs = Inputs(self.layout, dict(zip(self.names, tensors, strict=True)), self.ranks)
        written = {
            Role.OUTPUT: dict(zip(forward.outputs, self.results.outputs, strict=True)),
            Role.FINAL: dict(zip(forward.finals, self.results.finals, strict=True)),
            Role.SAVED: dict(zip(resources.kept, self.results.saved, strict=False)),
        }
        self._counted = resources.program.sweep is not None
        if self._counted:
            layout = self.layout
            counts = Shape(layout.lanes, layout.lane_strides, self.types.working)
            written[Role.COUNT] = {"sweeps": counts}
        self.call = self._bind(Arrays(written))

    def _bind(self, arrays: Arrays) -> Call:
        resources, layout, vector = self.resources, self._inputs.layout, self.types.vector
        job = Job.TRAINING if self.results.saved else Job.INFERENCE
        checkpoints = job is Job.TRAINING and bool(resources.checkpoints)
        spec = KernelSpec(
            job, self.types.float_type, gpu=self._inputs.spec(checkpoints=checkpoints)
        )
        lanes, chunk = math.prod(extents(layout)), self.types.period
        packed = job is Job.TRAINING and not resources.bools.isdisjoint(resources.saved)
        inputs = len(resources.program.forward.step_inputs)
        group = _group(vector, inputs + self._counted, packed=packed)
        group = min(group, chunk) if checkpoints else group
        if self._counted:  # the chunk that is solved stays in registers
            chunk = max(chunk, group)
            vector = min(vector, thread_lanes(chunk * inputs, SOLVED))
        block, warps = resources.machine_for(self.device).blocks(lanes, vector)
        blocks = Blocks(block, warps, group, chunk, (), vector)
        return Call(resources.kernels(spec), self._inputs, arrays, blocks, self.device)

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs, the finals and the values kept for backward."""
        written = self.call.allocate()
        if 0 not in self.layout.lanes:
            self.call.run([*self._inputs.fit(tensors), *written])
        return self.resources.sweeps.take(written, counted=self._counted)

    def differentiate(self, call: BackwardCall) -> GpuBackwardPlan:
        """Return the plan of a backward call that follows this one."""
        return GpuBackwardPlan(self, call)


class GpuBackwardPlan:
    """A backward call with given sizes, strides and types.

    Args:
        forward: The plan of the forward call.
        call: What the backward call is given.

    Attributes:
        sums: What the kernel adds up over lanes.
    """

    def __init__(self, forward: GpuForwardPlan, call: BackwardCall) -> None:
        self._forward, adjoint = forward, call.adjoint
        self._steps = len(adjoint.step_gradients)
        layout, result = forward.layout, forward.types.result
        self._cotangents = Cotangents(adjoint, layout, result, forward.device)
        ranks = forward.ranks | self._cotangents.ranks
        values = (*call.tensors, *self._cotangents.given(call.cotangents))
        self._inputs = Inputs(layout, dict(zip(ranks, values, strict=True)), ranks)
        self._gradients = call.gradients
        self._shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in call.tensors)
        self._expanded = tuple(map(_is_expanded, call.tensors))
        self.call = self._bind(adjoint)

    def _bind(self, adjoint: Adjoint) -> Call:
        forward, layout = self._forward, self._inputs.layout
        resources, types = forward.resources, forward.types
        recomputes = not resources.saved
        chunk = chunk_of(forward.layout.steps, types.period)
        vector = types.vector
        if recomputes:
            vector = min(vector, thread_lanes(chunk * (types.kept + types.summed), RECOMPUTED))
        lanes = math.prod(extents(layout))
        block, warps = resources.machine_for(forward.device).blocks(lanes, vector)
        folds, self.sums = self._fold(adjoint, block)
        reverse, owned = adjoint.recurrence, {n for names in self._gradients for n in names}
        outputs = {n: self._output_shape(n) for n in reverse.outputs if n in owned}
        final = Shape(layout.lanes, layout.lane_strides, types.working)
        finals = {n: final for n in reverse.finals if n in owned and n not in folds.runs}
        self._written = (*outputs, *finals)
        checkpoints = bool(resources.checkpoints)
        short = recomputes and layout.steps < chunk
        gpu = replace(self._inputs.spec(folds, checkpoints=checkpoints), short=short)
        spec = KernelSpec(Job.BACKWARD, types.float_type, wanted=frozenset(owned), gpu=gpu)
        packed = not resources.bools.isdisjoint(resources.saved)
        if recomputes:
            group = min(_AHEAD_BACKWARDS // (vector * types.result.itemsize), chunk)
            registers = None if types.working is torch.float64 else _REGISTERS
        else:
            group, registers = _group(vector, 2, packed=packed), None  # 2: kept, and cotangents
        runs = tuple(sorted(folds.runs.items()))
        blocks = Blocks(block, warps, group, chunk, runs, vector, folds.width, registers)
        arrays = Arrays(
            written={Role.OUTPUT: outputs, Role.FINAL: finals},
            kept=dict(zip(resources.kept, forward.results.saved, strict=False)),
            sums=dict.fromkeys(self.sums.names, types.working),
            across=folds.across,
        )
        return Call(resources.kernels(spec), self._inputs, arrays, blocks, forward.device)

    def _fold(self, adjoint: Adjoint, block: int) -> tuple[Folds, Sums]:
        """Return which lanes the kernel adds up, and the gradients that they give."""
        seen, layout = self._inputs.seen, self._inputs.layout
        owners = {
            name: Owner(seen[owner], self._shapes[index][0])
            for index, (owner, names) in enumerate(
                zip(self._forward.names, self._gradients, strict=True)
            )
            for name in names
            if name in adjoint.recurrence.finals and not self._expanded[index]
        }
        folds = choose_folds({n: owner.seen for n, owner in owners.items()}, layout, block)
        return folds, Sums(folds, owners, layout, block)

    def _output_shape(self, name: str) -> Shape:
        layout, types = self._forward.layout, self._forward.types
        sizes = (layout.steps, *layout.lanes)
        owners = [self._shapes[i] for i, names in enumerate(self._gradients) if name in names]
        # What is summed afterwards stays in the working type until then.
        dtypes = {dtype if own == sizes else types.working for own, dtype in owners}
        dtype = dtypes.pop() if len(dtypes) == 1 else types.working
        return Shape(sizes, layout.step_strides, dtype)

    def run(
        self,
        tensors: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        saved: Sequence[Tensor],
    ) -> list[Tensor | None]:
        """Return the gradient of each input, None where it was not asked for or is zero."""
        if 0 in self._forward.layout.lanes:
            return [self._zeros(index) if n else None for index, n in enumerate(self._gradients)]
        written = self.call.allocate()
        sums = self.sums.allocate(self._forward.types.working, self._forward.device)
        given = self._inputs.fit([*tensors, *self._cotangents.given(cotangents)])
        self.call.run([*given, *written, *self.sums.rows(sums), *saved])
        found = dict(zip(self._written, written, strict=True))
        added = self.sums.add_up(sums)
        return [
            self._gradient(index, found, added) if names else None
            for index, names in enumerate(self._gradients)
        ]

    def _zeros(self, index: int) -> Tensor:
        sizes, dtype = self._shapes[index]
        return torch.zeros(sizes, dtype=dtype, device=self._forward.device)

    def _gradient(
        self, index: int, found: Mapping[str, Tensor], added: Mapping[str, Tensor]
    ) -> Tensor:
        sizes, dtype = self._shapes[index]
        total, *others = (
            added[name]
            if name in added
            else sum_lanes(found[name], sizes, has_time=index < self._steps)
            for name in self._gradients[index]
        )
        for other in others:
            total = total + other
        return total if total.dtype is dtype else total.to(dtype)


def _is_expanded(tensor: Tensor) -> bool:
    """Tell whether elements of a tensor that have gradients of their own share memory."""
    return any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _group(vector: int, arrays: int, *, packed: bool) -> int:
    """Return the steps whose loads are issued together."""
    return WORD_STEPS if packed else min(max(_AHEAD // (vector * arrays), 4), 8)


def chunk_of(steps: int, period: int) -> int:
    """Return the steps of a chunk: fewer than the period where there are fewer steps."""
    chunk = min(4, period)
    while chunk < period and chunk < steps:
        chunk *= 2
    return chunk
