"""Neuron layers that run compiled programs on tensors, with gradients.

In eager mode a call is a `torch.autograd.Function` around the launch of a kernel, which takes a
tenth of the time that autograd of a registered operator takes.  Under tracing - torch.compile,
torch.export, make_fx - it is the operator of `snncc.runtime.operators`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from snncc.codegen.base import KernelSource, KernelSpec
from snncc.codegen.c.target import CTarget
from snncc.codegen.cuda.target import CudaTarget
from snncc.codegen.lower import lower, saved_values
from snncc.codegen.target import Target
from snncc.codegen.triton.target import TritonTarget
from snncc.errors import LaunchError, UnsupportedError
from snncc.ir import interpret
from snncc.ir.nodes import FixedPoint
from snncc.ir.once import once
from snncc.ir.printer import print_recurrence
from snncc.ir.program import NeuronProgram
from snncc.ir.walk import bool_lets
from snncc.options import GPU_TARGETS
from snncc.runtime.backward import BackwardCall
from snncc.runtime.binaries.cache import CACHE, KernelCache
from snncc.runtime.gpu.engine import GpuEngine
from snncc.runtime.gpu.plans import GpuBackwardPlan, GpuForwardPlan
from snncc.runtime.launch import (
    LoadedKernel,
    are_noted,
    broadcast_lanes,
    check_arguments,
    with_lanes,
)
from snncc.runtime.layout import Layout, Sizes
from snncc.runtime.plans import BackwardPlan, ForwardPlan, Resources, plan_results
from snncc.runtime.tracing import is_traced, refuse_batches

NeuronTarget: TypeAlias = Literal["auto", "c", "triton", "cuda", "torch"]

# Plans of one layer that are remembered; a layer sees few sizes, but T may vary with the data.
_MOST_PLANS = 256

# Layers stay known for the life of the process: a traced program may name them at any time.
_NEURONS: dict[str, Neuron] = {}


class Neuron:
    """A neuron layer that runs a compiled program on tensors.

    Args:
        program: The neuron.
        target: ``"c"``, ``"triton"``, ``"cuda"``, or ``"torch"`` for the reference interpreter;
            ``"auto"`` is C on the CPU and Triton elsewhere.
        num_threads: Threads of a kernel; None means ``torch.get_num_threads()`` at each call.
        scratch_bytes: Scratch of one thread of a kernel that goes through time in chunks, which
            decides how long these are; None leaves it to the machine.
        cache: Where kernels are kept.
    """

    def __init__(
        self,
        program: NeuronProgram,
        *,
        target: NeuronTarget = "c",
        num_threads: int | None = None,
        scratch_bytes: int | None = None,
        cache: KernelCache = CACHE,
    ) -> None:
        self.program = program
        self.target = target
        self.num_threads = num_threads
        self._cache = cache
        self._sources: dict[KernelSpec, KernelSource] = {}
        self._kernels: dict[KernelSpec, LoadedKernel] = {}
        self._plans: dict[object, ForwardPlan | GpuForwardPlan] = {}
        self._gpu = GpuEngine(program, self.source)
        self._resources = Resources(
            program=program,
            kernels=self._kernel,
            saved=saved_values(program),
            bools=bool_lets(program.forward.lets),
            scratch_bytes=scratch_bytes,
        )
        self._steps = len(program.forward.step_inputs)
        self._names = (*program.forward.step_inputs, *program.forward.lane_inputs)
        self.results = len(program.forward.outputs) + len(program.forward.finals)
        self.key = key_of(program, target, num_threads, scratch_bytes)
        _NEURONS.setdefault(self.key, self)

    def __call__(
        self,
        steps: Sequence[Tensor],
        lanes: Sequence[Tensor],
        *,
        length: int | None = None,
        lane_shape: Sequence[int] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the layer over time.

        Args:
            steps: For each STEP input a tensor [T, ...] whose further dimensions broadcast, from
                the right, to the lanes.
            lanes: For each LANE input a tensor that broadcasts to the lanes.
            length: T, needed where no STEP input tells it.
            lane_shape: Lanes that the inputs are broadcast to, where they alone do not tell.

        Returns:
            The outputs [T, *lanes] and the finals [*lanes], in the order of the program.

        Raises:
            LaunchError: The tensors do not fit the program or one another.
        """
        tensors = self._check_count(steps, lanes)
        if lane_shape is not None and tensors:
            tensors = _widen(tensors, self._steps, tuple(lane_shape))
        results = self.run(tensors, length)
        outputs = len(self.program.forward.outputs)
        return list(results[:outputs]), list(results[outputs:])

    def run(self, tensors: tuple[Tensor, ...], length: int | None) -> Sequence[Tensor]:
        """Return the outputs and the finals for all inputs, those with a time axis first."""
        self.check_steps(tensors, length)
        if self.target == "torch":
            return self._interpret(tensors, length)
        if is_traced(tensors) and not are_noted():
            return self._traced(tensors, length)
        return self._eager(tensors, length)

    @property
    def sweeps(self) -> int:
        """How many sweeps the last call took; none in fused time or in the interpreter."""
        form = self.program.forward.form
        if self.target == "torch" or not isinstance(form, FixedPoint):
            return 0
        return form.sweeps or max(self._resources.sweeps.most(), self._gpu.sweeps.most())

    def source(self, spec: KernelSpec) -> KernelSource:
        """Return the source of a kernel of this layer."""
        source = self._sources.get(spec)
        if source is None:
            source = self._sources[spec] = self._language(spec).emit(lower(self.program, spec))
        return source

    def _language(self, spec: KernelSpec) -> Target:
        if spec.gpu is None:
            return CTarget()
        return CudaTarget() if self.target == "cuda" else TritonTarget()

    def specs(self) -> tuple[KernelSpec, ...]:
        """Return what kernels the calls so far have asked for, in order."""
        return (*self._kernels, *self._gpu.specs())

    def plan(
        self,
        tensors: Sequence[Tensor],
        length: int | None,
        *,
        training: bool,
        among: Layout | None = None,
    ) -> ForwardPlan | GpuForwardPlan:
        """Return the plan of a forward call on tensors, those with a time axis first.

        ``among`` is the layout of all lanes, where the tensors are a block of them on the CPU.
        """
        threads = self.num_threads or torch.get_num_threads()
        signature = [(t.shape, t.stride(), t.dtype, t.device, t.is_neg()) for t in tensors]
        key = (*signature, length, training, threads, among)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._new_plan(tensors, length, training=training, threads=threads, among=among)
            self._plans[key] = plan
            if training and isinstance(plan, ForwardPlan) and self.program.adjoint is not None:
                self._prepare_backward(plan, tensors)
        return plan

    def _new_plan(
        self, tensors: Sequence[Tensor], length: int | None, **choices: Any
    ) -> ForwardPlan | GpuForwardPlan:
        if self.runs_on_gpu(tensors):
            return self._gpu.plan(tensors, length, training=choices["training"])
        check_arguments(self._names, tensors, self._steps)
        return ForwardPlan(self._resources, tensors, length, **choices)

    def runs_on_gpu(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether a call on these inputs runs on a GPU."""
        if self.target != "auto" or not tensors:
            return self.target in GPU_TARGETS
        return tensors[0].device.type not in ("cpu", "meta")

    def _prepare_backward(self, plan: ForwardPlan, tensors: Sequence[Tensor]) -> None:
        """Build the kernel that the backward call will probably need while the forward call runs.

        A result is expected to have a gradient of its own layout; a final has one where there is
        nothing else.  Whatever turns out otherwise is planned and built when it is asked for.
        """
        needs = [tensor.requires_grad for tensor in tensors]
        outputs = len(self.program.forward.outputs)
        cotangents = [
            shape.like_nothing() if position < outputs or not outputs else None
            for position, shape in enumerate(plan.written[: self.results])
        ]
        for position in self.program.without_gradient:
            cotangents[position] = None
        if any(needs):
            expected = self.backward_plan(plan, tensors, cotangents, needs)
            assert isinstance(expected, BackwardPlan)
            if expected.spec not in self._kernels:
                self._cache.prepare(self.source(expected.spec))

    def backward_plan(
        self,
        plan: ForwardPlan | GpuForwardPlan,
        tensors: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> BackwardPlan | GpuBackwardPlan:
        """Return the plan of a backward call.

        Raises:
            UnsupportedError: The program has no adjoint.
        """
        adjoint = self.program.adjoint
        if adjoint is None:
            raise UnsupportedError(
                f"The neuron '{self.program.forward.name}' was compiled without gradients.",
                code="unsupported.no-gradient",
                location=self.program.forward.where,
                hints=["Call it under 'torch.no_grad()'."],
            )
        seen = [None if c is None else (c.shape, c.stride()) for c in cotangents]
        key = (*seen, *needs)
        known: dict[object, Any] = plan.backward
        found: BackwardPlan | GpuBackwardPlan | None = known.get(key)
        if found is None:
            found = plan.differentiate(BackwardCall(adjoint, tensors, cotangents, needs))
            known[key] = found
        return found

    def shapes(
        self, tensors: Sequence[Tensor], length: int | None, *, training: bool
    ) -> list[Tensor]:
        """Return tensors without data of the sizes, strides and dtypes of a forward call."""
        if self.runs_on_gpu(tensors):
            results = self._gpu.results(tensors, length, training=training)
        else:
            check_arguments(self._names, tensors, self._steps)
            _, results = plan_results(
                self._resources, tensors, length, training=training, symbolic=True
            )
        like = tensors[0]
        return [
            like.new_empty_strided(shape.sizes, shape.strides, dtype=shape.dtype)
            for shape in (*results.outputs, *results.finals, *results.saved)
        ]

    def _check_count(self, steps: Sequence[Tensor], lanes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given, forward = (len(steps), len(lanes)), self.program.forward
        wanted = (self._steps, len(forward.lane_inputs))
        if given != wanted:
            raise LaunchError(
                f"The neuron '{forward.name}' got {given[0]} step inputs and {given[1]} lane"
                f" inputs; it takes {wanted[0]} and {wanted[1]}.",
                code="launch.count",
                notes=[f"Its inputs are {', '.join(self._names)}."],
            )
        return (*steps, *lanes)

    def check_steps(self, tensors: Sequence[Tensor], length: int | None) -> None:
        """Check that the neuron holds what it counts exactly, for so many steps."""
        most = self.program.most_steps
        if most is None:
            return
        steps = tensors[0].shape[0] if self._steps else length or 0
        if steps > most:
            raise LaunchError(
                f"The neuron counts in floats, exactly for {most} steps; the input has {steps}.",
                code="launch.steps",
                location=self.program.forward.where,
                hints=["Pass the sequence in parts, and reset what is counted in between."],
            )

    def _eager(self, tensors: tuple[Tensor, ...], length: int | None) -> Sequence[Tensor]:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            plan = self.plan(tensors, length, training=True)
            results: tuple[Tensor, ...] = _NeuronFunction.apply(  # type: ignore[no-untyped-call]
                self, plan, *tensors
            )
            return results
        return self.plan(tensors, length, training=False).run(tensors)

    def _traced(self, tensors: tuple[Tensor, ...], length: int | None) -> list[Tensor]:
        steps, lanes = list(tensors[: self._steps]), list(tensors[self._steps :])
        training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        results: list[Tensor] = torch.ops.snncc.neuron_forward(
            steps, lanes, self.key, -1 if length is None else length, training
        )
        for position in self.program.without_gradient:
            results[position] = results[position].detach()
        return results[: self.results]

    def _interpret(self, tensors: tuple[Tensor, ...], length: int | None) -> list[Tensor]:
        forward = self.program.forward
        longest = max((int(step.shape[0]) for step in tensors[: self._steps]), default=0)
        values = {
            name: x.expand(longest, *x.shape[1:]) if index < self._steps else x
            for index, (name, x) in enumerate(zip(self._names, tensors, strict=True))
        }
        return interpret.run_in_order(forward, values, length)

    def _kernel(self, spec: KernelSpec) -> LoadedKernel:
        kernel = self._kernels.get(spec)
        if kernel is None:
            source = self.source(spec)
            kernel = LoadedKernel(self._cache.load(source), source.signature)
            self._kernels[spec] = kernel
        return kernel


def key_of(program: NeuronProgram, *options: object) -> str:
    """Return a name that equal programs with equal options share."""
    parts = [print_recurrence(program.forward)]
    if program.adjoint is not None:
        parts += [
            print_recurrence(program.adjoint.recurrence),
            repr(program.adjoint.lane_gradients),
        ]
    exact = program.without_gradient, program.most_steps
    parts += [repr(program.storage), repr(exact), *map(repr, options)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _widen(tensors: tuple[Tensor, ...], steps: int, lanes: Sizes) -> tuple[Tensor, ...]:
    """Expand the first tensor so that all lanes are there."""
    first, *rest = tensors
    own = tuple(first.shape[1:] if steps else first.shape)
    sizes = broadcast_lanes(own, lanes)
    if sizes is None:
        raise LaunchError(
            f"Lanes {list(lanes)} were asked for; an input has {list(own)}.", code="launch.sizes"
        )
    if steps:
        return (with_lanes(first, len(sizes)).expand(first.shape[0], *sizes), *rest)
    return (first.expand(sizes), *rest)


class _NeuronFunction(torch.autograd.Function):
    """Runs the forward kernel, and the backward kernel when gradients are asked for."""

    @staticmethod
    def forward(
        ctx: Any, neuron: Neuron, plan: ForwardPlan | GpuForwardPlan, *tensors: Tensor
    ) -> Any:
        results = plan.run(tensors)
        ctx.neuron, ctx.plan, ctx.count = neuron, plan, len(tensors)
        ctx.set_materialize_grads(False)
        shown = neuron.results
        ctx.save_for_backward(*tensors, *results[shown:])
        ctx.mark_non_differentiable(*(results[i] for i in neuron.program.without_gradient))
        return tuple(results[:shown])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        refuse_batches(cotangents)
        values = ctx.saved_tensors
        tensors, saved = values[: ctx.count], values[ctx.count :]
        plan = ctx.neuron.backward_plan(ctx.plan, tensors, cotangents, ctx.needs_input_grad[2:])
        given, kept = len(cotangents), len(cotangents) + len(saved)

        def run(*all_of_them: Tensor) -> list[Tensor | None]:
            found: list[Tensor | None] = plan.run(
                all_of_them[kept:], all_of_them[:given], all_of_them[given:kept]
            )
            return found

        return (None, None, *once(run, (*cotangents, *saved, *tensors)))


def find_neuron(key: str) -> Neuron:
    """Return the layer that an operator call names.

    Raises:
        LaunchError: There is none in this process.
    """
    if key not in _NEURONS:
        raise LaunchError(
            f"There is no neuron '{key}' in this process.",
            code="launch.unknown-neuron",
            hints=["Compile the model in the process that runs it, or export it."],
        )
    return _NEURONS[key]
