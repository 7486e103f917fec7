"""Recurrent loops that run compiled steps on tensors, with gradients.

A call is one `torch.autograd.Function` around all steps: forward runs the loop, or the loop that
also keeps what its reverse needs; backward runs the backward graph, in which the reverse loop is
run in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.ir.adjoint_ops import collected, rows_product
from snncc.ir.loop_call import LoopAdjoint, LoopCall
from snncc.ir.step_call import StepCall
from snncc.ir.time_loop import TimeLoop
from snncc.runtime.cache import CACHE, KernelCache
from snncc.runtime.loops.plan import LoopPlan
from snncc.runtime.loops.run import run_loop
from snncc.runtime.loops.sketch import LoopSketch
from snncc.runtime.loops.step_kernel import StepKernel
from snncc.runtime.loops.storage import is_aligned
from snncc.runtime.products.outer import outer_product
from snncc.runtime.tracing import is_traced, no_second_derivative

# Plans of one loop that are remembered, as for neurons.
_MOST_PLANS = 256


class CompiledLoop:
    """A loop with compiled steps, and its plans."""

    def __init__(
        self, loop: TimeLoop, num_threads: int | None = None, cache: KernelCache = CACHE
    ) -> None:
        self.sketch = LoopSketch(loop)
        self._num_threads, self._cache = num_threads, cache
        steps = [n.target for n in loop.body.nodes if isinstance(n.target, StepCall)]
        self._kernels = {step: StepKernel(step, cache) for step in steps}
        self._plans: dict[object, LoopPlan] = {}

    @property
    def __name__(self) -> str:
        return self.sketch.loop.name

    def __call__(self, *operands: Any) -> list[Any]:
        """Run the loop; a stacked result is a tensor, or a list of what there was at each step."""
        return run_loop(self.plan(operands), operands)

    def plan(self, operands: Sequence[Any]) -> LoopPlan:
        """Return the plan for operands of these sizes, strides and alignments."""
        threads = self._num_threads or torch.get_num_threads()
        # How torch adds up a product depends on these, and on alignment.
        settings = (torch.get_num_threads(), torch.get_float32_matmul_precision())
        key = (*map(_signature, operands), threads, settings)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = LoopPlan(self.sketch, self._kernels, operands, threads, self._cache)
            self._plans[key] = plan
        return plan


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
    return len(operand)


class RecurrentLoop:
    """A `LoopCall` that runs compiled steps.

    Args:
        call: The loop and its adjoint.
        num_threads: Threads of a kernel; None means ``torch.get_num_threads()`` at each call.
        cache: Where kernels are kept.
    """

    def __init__(
        self, call: LoopCall, *, num_threads: int | None = None, cache: KernelCache = CACHE
    ) -> None:
        self.call = call
        self.forward = Collected(CompiledLoop(call.forward, num_threads, cache))
        adjoint = call.adjoint
        self.gradient = None if adjoint is None else _Gradient(adjoint, num_threads, cache)

    @property
    def __name__(self) -> str:
        return self.call.__name__

    def __call__(self, *operands: Any) -> tuple[Any, ...]:
        """Run the loop."""
        tensors = [x for x in operands if isinstance(x, Tensor)]
        if is_traced(tensors) or torch.is_autocast_enabled("cpu"):
            return self.call(*operands)
        if self.gradient is None or not torch.is_grad_enabled():
            with torch.no_grad():
                return self.forward(*operands)
        apply: Any = _LoopFunction.apply
        return tuple(apply(self.gradient, *operands))


class _Gradient:
    """The compiled loop of training, and the backward graph with its loop compiled."""

    def __init__(self, adjoint: LoopAdjoint, num_threads: int | None, cache: KernelCache) -> None:
        self.training = CompiledLoop(adjoint.training, num_threads, cache)
        self.differentiable = adjoint.differentiable
        graph = torch.fx.Graph()
        graph.output(graph.graph_copy(adjoint.backward, {}))
        for node in graph.nodes:
            if isinstance(node.target, LoopCall):
                node.target = Collected(CompiledLoop(node.target.forward, num_threads, cache))
            elif node.target is rows_product:
                node.target = _rows_product
        self.backward = torch.fx.GraphModule(torch.nn.Module(), graph).forward
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
        ctx.gradient, ctx.like = gradient, [(x.shape, x.dtype) for x in shown]
        ctx.set_materialize_grads(False)
        fixed = (x for x, d in zip(shown, gradient.differentiable, strict=True) if not d)
        ctx.mark_non_differentiable(*fixed)
        return tuple(shown)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        leaves = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=False):
            leaves[place] = tensor
        kept = pytree.tree_unflatten(leaves, ctx.spec)
        given = [
            torch.zeros((), dtype=dtype).expand(shape) if g is None else g
            for g, (shape, dtype) in zip(cotangents, ctx.like, strict=True)
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
