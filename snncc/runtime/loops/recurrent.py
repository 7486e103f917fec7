"""Recurrent loops that run compiled steps on tensors, with gradients.

A call is one `torch.autograd.Function` around all steps: forward runs the loop, or the loop that
also keeps what its reverse needs; backward runs the backward graph, in which the reverse loop is
run in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.codegen.cuda.target import CudaTarget
from snncc.codegen.triton.target import TritonTarget
from snncc.ir.adjoint_ops import collected, rows_product
from snncc.ir.graph_function import function_of
from snncc.ir.loop_call import LoopAdjoint, LoopCall
from snncc.ir.once import no_second_derivative
from snncc.ir.step_call import StepCall
from snncc.ir.time_loop import Fill, TimeLoop
from snncc.options import GPU_TARGETS, TargetName
from snncc.runtime.binaries.cache import CACHE, KernelCache
from snncc.runtime.gpu.calls import Machine
from snncc.runtime.gpu.step_kernel import GpuStepKernel
from snncc.runtime.loops.plan import LoopPlan, Machinery, device_of
from snncc.runtime.loops.run import run_loop
from snncc.runtime.loops.sketch import LoopSketch
from snncc.runtime.loops.step_kernel import StepKernel
from snncc.runtime.loops.storage import is_aligned
from snncc.runtime.products.outer import outer_product
from snncc.runtime.tracing import is_traced, refuse_batches

# Plans of one loop that are remembered, as for neurons.
_MOST_PLANS = 256


@dataclass(frozen=True)
class StepTarget:
    """What fused steps are compiled to.

    Attributes:
        name: The language of their kernels; ``"auto"`` is C on the CPU and Triton elsewhere.
        num_threads: Threads of a kernel on the CPU; None means ``torch.get_num_threads()`` at each
            call.
        cache: Where kernels for the CPU are kept.
        machine: What kernels for a GPU are sized for; None is the device of the tensors.
    """

    name: TargetName = "c"
    num_threads: int | None = None
    cache: KernelCache = CACHE
    machine: Machine | None = None

    def machinery(self, operands: Sequence[Any]) -> Machinery:
        """Return what runs the steps of a loop with these operands."""
        device = device_of(operands)
        on_gpu = self.name in GPU_TARGETS or (self.name == "auto" and device.type != "cpu")
        threads = self.num_threads or torch.get_num_threads()
        return Machinery(device, on_gpu, threads, self.cache)

    def kernel(self, step: StepCall, machinery: Machinery) -> StepKernel | GpuStepKernel:
        """Return the kernel of a step."""
        if not machinery.on_gpu:
            return StepKernel(step, self.cache)
        language = CudaTarget() if self.name == "cuda" else TritonTarget()
        return GpuStepKernel(step, language, machinery.device, self.machine)


class CompiledLoop:
    """A loop with compiled steps, and its plans."""

    def __init__(self, loop: TimeLoop, target: StepTarget) -> None:
        self.sketch = LoopSketch(loop)
        self._target = target
        self._steps = [n.target for n in loop.body.nodes if isinstance(n.target, StepCall)]
        self._kernels: dict[torch.device, dict[StepCall, StepKernel | GpuStepKernel]] = {}
        self._plans: dict[object, LoopPlan] = {}

    @property
    def __name__(self) -> str:
        return self.sketch.loop.name

    def __call__(self, *operands: Any) -> list[Any]:
        """Run the loop; a stacked result is a tensor, or a list of what there was at each step."""
        return run_loop(self.plan(operands), operands)

    def plan(self, operands: Sequence[Any]) -> LoopPlan:
        """Return the plan for operands of these sizes, strides and alignments."""
        machinery = self._target.machinery(operands)
        # How torch adds up a product depends on these, and on alignment.
        settings = (torch.get_num_threads(), torch.get_float32_matmul_precision())
        key = (*map(_signature, operands), machinery.device, machinery.threads, settings)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = LoopPlan(self.sketch, self.kernels(machinery), operands, machinery)
            self._plans[key] = plan
        return plan

    def kernels(self, machinery: Machinery) -> dict[StepCall, StepKernel | GpuStepKernel]:
        """Return the kernels of the fused steps on a device."""
        if machinery.device not in self._kernels:
            self._kernels[machinery.device] = {
                step: self._target.kernel(step, machinery) for step in self._steps
            }
        return self._kernels[machinery.device]


class Collected:
    """A compiled loop all of whose results are tensors."""

    def __init__(self, loop: CompiledLoop) -> None:
        self.loop = loop

    @property
    def __name__(self) -> str:
        return self.loop.__name__

    def __call__(self, *operands: Any) -> tuple[Tensor, ...]:
        """Run the loop."""
        return tuple(map(collected, self.loop(*operands)))


def _signature(operand: Any) -> object:
    if isinstance(operand, Tensor):
        return (operand.shape, operand.stride(), operand.dtype, is_aligned(operand))
    return operand if isinstance(operand, Fill) else len(operand)


class RecurrentLoop:
    """A `LoopCall` that runs compiled steps.

    Args:
        call: The loop and its adjoint.
        target: What its steps are compiled to.
    """

    def __init__(self, call: LoopCall, target: StepTarget) -> None:
        self.call = call
        self.forward = Collected(CompiledLoop(call.forward, target))
        adjoint = call.adjoint
        self.gradient = None if adjoint is None else _Gradient(adjoint, target)

    @property
    def __name__(self) -> str:
        return self.call.__name__

    def __call__(self, *operands: Any) -> tuple[Any, ...]:
        """Run the loop."""
        tensors = [x for x in operands if isinstance(x, Tensor)]
        if is_traced(tensors) or torch.is_autocast_enabled(device_of(tensors).type):
            return self.call(*operands)
        if self.gradient is None or not torch.is_grad_enabled():
            with torch.no_grad():
                return self.forward(*operands)
        apply: Any = _LoopFunction.apply
        return tuple(apply(self.gradient, *operands))


class _Gradient:
    """The compiled loop of training, and the backward graph with its loop compiled."""

    def __init__(self, adjoint: LoopAdjoint, target: StepTarget) -> None:
        self.training = CompiledLoop(adjoint.training, target)
        self.differentiable = adjoint.differentiable
        graph = torch.fx.Graph()
        graph.output(graph.graph_copy(adjoint.backward, {}))
        for node in graph.nodes:
            if isinstance(node.target, LoopCall):
                node.target = Collected(CompiledLoop(node.target.forward, target))
            elif node.target is rows_product:
                node.target = _rows_product
        self.backward = function_of(graph)
        places = (node for node in graph.nodes if node.op == "placeholder")
        self.needed = [bool(place.users) for place in places]


def _rows_product(g: Tensor, x: Tensor) -> Tensor:
    return outer_product(g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1]))


class _LoopFunction(torch.autograd.Function):
    """Runs the loop of training, and the backward graph when gradients are asked for."""

    @staticmethod
    def forward(ctx: Any, gradient: _Gradient, *operands: Any) -> Any:
        results = gradient.training(*operands)
        count = len(gradient.differentiable)
        shown = [collected(x) for x in results[:count]]
        given = (*operands, *shown, *results[count:])
        kept = [x if need else None for x, need in zip(given, gradient.needed, strict=False)]
        leaves, ctx.spec = pytree.tree_flatten(kept)
        ctx.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaves[i] for i in ctx.places), *_shared(shown, leaves))
        ctx.gradient, ctx.like = gradient, [(x.shape, x.dtype, x.device) for x in shown]
        ctx.set_materialize_grads(False)
        fixed = (x for x, d in zip(shown, gradient.differentiable, strict=True) if not d)
        ctx.mark_non_differentiable(*fixed)
        return tuple(shown)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        refuse_batches(cotangents)
        leaves = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=False):
            leaves[place] = tensor
        kept = pytree.tree_unflatten(leaves, ctx.spec)
        given = [
            torch.zeros((), dtype=dtype, device=device).expand(shape) if g is None else g
            for g, (shape, dtype, device) in zip(cotangents, ctx.like, strict=True)
        ]

        def run() -> tuple[Any, ...]:
            return ctx.gradient.backward(*kept, *given)  # type: ignore[no-any-return]

        if torch.is_grad_enabled():
            apply: Any = _Once.apply
            return (None, *apply(run, *cotangents, *ctx.saved_tensors))
        return (None, *run())


def _shared(shown: Sequence[Tensor], kept: Sequence[Any]) -> list[Tensor]:
    """Return the results that share memory with what is kept.

    They are saved too, so that a change of them is noticed before it gives a wrong gradient.
    """
    memory = {x.untyped_storage().data_ptr() for x in kept if isinstance(x, Tensor) and x.numel()}
    return [x for x in shown if x.numel() and x.untyped_storage().data_ptr() in memory]


class _Once(torch.autograd.Function):
    """A backward call whose own gradient is refused."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], tuple[Any, ...]], *_values: Any) -> Any:
        return run()

    @staticmethod
    def backward(ctx: Any, *_cotangents: Any) -> Any:
        raise no_second_derivative()
