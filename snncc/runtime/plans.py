"""Plans of calls: everything about a forward or backward call that sizes and strides decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from snncc.codegen.base import BLOCK, Argument, FloatType, Job, KernelSpec, Role
from snncc.ir.nodes import Rank, Recurrence, Var
from snncc.ir.program import NeuronProgram
from snncc.runtime import memory
from snncc.runtime.backward import BackwardCall, Cotangents, input_ranks, sum_lanes
from snncc.runtime.launch import Binding, LoadedKernel, as_array, broadcast_sizes
from snncc.runtime.layout import (
    Layout,
    Placed,
    Sizes,
    choose_groups,
    dense_strides,
    memory_order,
    place,
    place_whole,
)
from snncc.runtime.schedule import make_schedule

# Builds or finds the kernel of a specification.
Kernels: TypeAlias = Callable[[KernelSpec], LoadedKernel]


class SweepCounts:
    """How many sweeps the lanes of the last call took, in kernels that solve for their spikes."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def take(self, written: list[Tensor], *, counted: bool) -> list[Tensor]:
        """Return what a kernel wrote without the counts, which come last."""
        if counted:
            self.last = written.pop()
        return written

    def most(self) -> int:
        """Return the most sweeps of a lane; on a GPU this waits for the kernel."""
        return 0 if self.last is None or not self.last.numel() else int(self.last.max())


@dataclass(frozen=True, slots=True)
class Resources:
    """What plans are made with.

    Attributes:
        program: The neuron.
        kernels: Where its kernels come from.
        saved: Names of the forward values that training keeps in memory.
        bools: Names of the forward values that are bools.
        scratch_bytes: Scratch of one thread of a kernel with chunks; None leaves it to the machine.
        sweeps: What counts these sweeps.
    """

    program: NeuronProgram
    kernels: Kernels
    saved: tuple[str, ...]
    bools: frozenset[str]
    scratch_bytes: int | None
    sweeps: SweepCounts = field(default_factory=SweepCounts)


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor that a kernel writes."""

    sizes: Sizes
    strides: Sizes
    dtype: torch.dtype

    def allocate(self) -> Tensor:
        """Return a tensor of this shape with arbitrary content."""
        return memory.empty_strided(self.sizes, self.strides, self.dtype)

    def like_nothing(self) -> Tensor:
        """Return a tensor of this shape without memory."""
        return torch.empty_strided(self.sizes, self.strides, dtype=self.dtype, device="meta")


@dataclass(frozen=True, slots=True)
class Results:
    """What a forward call returns: its outputs, its finals, and values kept for backward."""

    outputs: tuple[Shape, ...]
    finals: tuple[Shape, ...]
    saved: tuple[Shape, ...]


def plan_results(  # noqa: PLR0913 - what decides about a call
    resources: Resources,
    tensors: Sequence[Tensor],
    length: int | None,
    *,
    training: bool,
    symbolic: bool = False,
    among: Layout | None = None,
) -> tuple[Layout, Results]:
    """Return the layout of a forward call and the shapes of its results.

    Args:
        resources: The neuron.
        tensors: Its inputs, those with a time axis first.
        length: T, where no input tells it.
        training: Whether values are kept for backward.
        symbolic: Whether sizes may be symbols, of which as little as possible should be asked;
            the groups of the layout are then chosen only if the results depend on them.
        among: The layout of all lanes, where the call is for a block of them.
    """
    forward = resources.program.forward
    names = (*forward.step_inputs, *forward.lane_inputs)
    steps, lanes = broadcast_sizes(names, tensors, len(forward.step_inputs), length)
    if among is None:
        order = input_order(tensors[: len(forward.step_inputs)], steps, lanes)
    else:
        order = among.order
    layout = Layout(steps, lanes, order, among=among)
    saved = resources.saved if training else ()
    if saved or not symbolic:
        arrays = [
            as_array(tensor, layout, has_time=index < len(forward.step_inputs))
            for index, tensor in enumerate(tensors)
        ]
        layout = choose_groups(layout, arrays)
    dtype = tensors[0].dtype
    output = Shape((steps, *lanes), layout.step_strides, dtype)
    final = Shape(lanes, layout.lane_strides, dtype)
    kept = (_saved_shape(layout, dtype, packed=name in resources.bools) for name in saved)
    count = len(forward.outputs), len(forward.finals)
    return layout, Results((output,) * count[0], (final,) * count[1], tuple(kept))


def input_order(steps: Sequence[Tensor], length: int, lanes: Sizes) -> Sizes:
    """Return the memory order of the first input that has all lanes."""
    sizes = (length, *lanes)
    for step in steps:
        if tuple(step.shape) == sizes:
            return memory_order(sizes, step.stride())
    return tuple(range(len(sizes)))


def _saved_shape(layout: Layout, dtype: torch.dtype, *, packed: bool) -> Shape:
    rows0, rows1, lanes = layout.extents
    if packed:
        lanes, dtype = -(-lanes // BLOCK), torch.int32
    sizes = (layout.steps, rows0, rows1, lanes)
    return Shape(sizes, dense_strides(sizes, range(4)), dtype)


class ForwardPlan:
    """A forward call with given sizes and strides.

    Args:
        resources: The neuron.
        tensors: Inputs of these sizes and strides.
        length: T, where no input tells it.
        training: Whether values are kept for backward.
        threads: The most threads.
        among: The layout of all lanes, where the call is for a block of them.
    """

    def __init__(  # noqa: PLR0913 - what decides about a call
        self,
        resources: Resources,
        tensors: Sequence[Tensor],
        length: int | None,
        *,
        training: bool,
        threads: int,
        among: Layout | None = None,
    ) -> None:
        self.resources = resources
        self.threads = threads
        self.backward: dict[object, BackwardPlan] = {}
        self.layout, self.results = plan_results(
            resources, tensors, length, training=training, among=among
        )
        forward = resources.program.forward
        self.ranks = input_ranks(forward)
        self.names = tuple(self.ranks)
        values = dict(zip(self.names, tensors, strict=True))
        placed = place_inputs(self.layout, values, self.ranks)
        if self.layout.steps == 1:
            placed |= _whole_starts(self.layout, forward, values, placed)
        job = Job.TRAINING if self.results.saved else Job.INFERENCE
        spec = KernelSpec(job, float_type(tensors[0]), uniform_names(placed))
        self.written = (*self.results.outputs, *self.results.finals, *self.results.saved)
        self._counted = resources.program.sweep is not None
        if self._counted:
            layout = self.layout
            self.written += (Shape(layout.lanes, layout.lane_strides, tensors[0].dtype),)
        self._binding, inputs = bind(resources, spec, self.layout, placed, threads)
        self._inputs = [self.names.index(name) for name in inputs]

    def bound(self, tensors: Sequence[Tensor], written: Sequence[Tensor]) -> Callable[[], object]:
        """Return a call that reads and writes these very tensors."""
        if 0 in self.layout.lanes:
            return lambda: None
        return self._binding.bound([*[tensors[i] for i in self._inputs], *written])

    def run(self, tensors: Sequence[Tensor], outputs: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the outputs, the finals and the values kept for backward.

        Args:
            tensors: The inputs.
            outputs: Tensors for the first results, where they are parts of others.
        """
        written = [*outputs, *(shape.allocate() for shape in self.written[len(outputs) :])]
        if 0 not in self.layout.lanes:
            self._binding.run([*[tensors[i] for i in self._inputs], *written])
        return self.resources.sweeps.take(written, counted=self._counted)

    def differentiate(self, call: BackwardCall) -> BackwardPlan:
        """Return the plan of a backward call that follows this one."""
        return BackwardPlan(self, call)


class BackwardPlan:
    """A backward call with given sizes and strides.

    Args:
        forward: The plan of the forward call.
        call: What the backward call is given.
    """

    def __init__(self, forward: ForwardPlan, call: BackwardCall) -> None:
        self._forward = forward
        adjoint, tensors, layout = call.adjoint, call.tensors, forward.layout
        self._steps = len(adjoint.step_gradients)
        self._shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        gradients = call.gradients
        wanted = {name for names in gradients for name in names}
        self._cotangents = Cotangents(adjoint, layout, tensors[0].dtype, tensors[0].device)
        placed_ranks = forward.ranks | self._cotangents.ranks
        given = (*tensors, *self._cotangents.given(call.cotangents))
        values = dict(zip(placed_ranks, given, strict=True))
        if not forward.results.saved:
            arrays = [
                as_array(value, layout, has_time=placed_ranks[name] is Rank.STEP)
                for name, value in values.items()
            ]
            layout = choose_groups(layout, arrays)
        self._layout = layout
        self._placed = place_inputs(layout, values, placed_ranks)
        uniform = uniform_names(self._placed)
        self.spec = KernelSpec(Job.BACKWARD, float_type(tensors[0]), uniform, frozenset(wanted))
        reverse = adjoint.recurrence
        outputs = tuple(name for name in reverse.outputs if name in wanted)
        finals = tuple(name for name in reverse.finals if name in wanted)
        dtype = tensors[0].dtype
        step = Shape((layout.steps, *layout.lanes), layout.step_strides, dtype)
        lane = Shape(layout.lanes, layout.lane_strides, dtype)
        self._is_empty = 0 in layout.lanes
        self._written = [step] * len(outputs) + [lane] * len(finals)
        self._given = (*values, *forward.resources.saved)
        self._binding: tuple[Binding, list[int]] | None = None
        results = (*outputs, *finals)
        self._results = [[results.index(name) for name in names] for names in gradients]
        self.steps = len(outputs)  # how many of them have a time axis

    def _bound(self) -> tuple[Binding, list[int]]:
        """Return the binding, and where it finds its inputs: tensors, cotangents, saved values.

        A plan is often made long before its kernel is there, see `Neuron`.
        """
        if self._binding is None:
            resources, threads = self._forward.resources, self._forward.threads
            binding, inputs = bind(resources, self.spec, self._layout, self._placed, threads)
            self._binding = binding, [self._given.index(name) for name in inputs]
        return self._binding

    def run(
        self,
        tensors: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        saved: Sequence[Tensor],
        steps: Sequence[Tensor] = (),
    ) -> list[Tensor | None]:
        """Return the gradient of each input, None where it was not asked for or is zero.

        Args:
            tensors: The inputs of the forward call.
            cotangents: Those of its results.
            saved: What it kept.
            steps: Tensors for what has a time axis, where these are parts of others.
        """
        written = [*steps, *(shape.allocate() for shape in self._written[len(steps) :])]
        if not self._is_empty:
            given = [*tensors, *self._cotangents.given(cotangents), *saved]
            binding, inputs = self._bound()
            binding.run([*[given[i] for i in inputs], *written])
        return [
            _reduced([written[i] for i in places], sizes, has_time=index < self._steps)
            for index, (places, sizes) in enumerate(zip(self._results, self._shapes, strict=True))
        ]


def _reduced(parts: Sequence[Tensor], sizes: Sizes, *, has_time: bool) -> Tensor | None:
    """Add up the parts of a gradient and sum it over the dimensions its input is broadcast in."""
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return sum_lanes(total, sizes, has_time=has_time)


def float_type(tensor: Tensor) -> FloatType:
    """Return the working type of kernels for a tensor."""
    return FloatType.FLOAT64 if tensor.dtype is torch.float64 else FloatType.FLOAT32


def uniform_names(placed: Mapping[str, Placed]) -> frozenset[str]:
    """Return the names of the inputs whose innermost lane dimension has stride 0."""
    return frozenset(name for name, array in placed.items() if array.uniform)


def _whole_starts(
    layout: Layout, forward: Recurrence, values: Mapping[str, Tensor], placed: Mapping[str, Placed]
) -> dict[str, Placed]:
    """Return starts of states that are one number, as the steps that may follow see theirs.

    So the first step of a stream, from ``0.0``, needs no kernel of its own.
    """
    starts = {state.initial.name for state in forward.states if isinstance(state.initial, Var)}
    return {
        name: place_whole(layout, as_array(values[name], layout, has_time=False))
        for name in values
        if name in starts and placed[name].uniform
    }


def place_inputs(
    layout: Layout, values: Mapping[str, Tensor], ranks: Mapping[str, Rank]
) -> dict[str, Placed]:
    """Say for each input how a kernel sees it."""
    arrays = [
        as_array(value, layout, has_time=ranks[name] is Rank.STEP) for name, value in values.items()
    ]
    return dict(zip(values, place(layout, arrays), strict=True))


def bind(
    resources: Resources,
    spec: KernelSpec,
    layout: Layout,
    placed: Mapping[str, Placed],
    threads: int,
) -> tuple[Binding, tuple[str, ...]]:
    """Bind the kernel of a specification to sizes and strides.

    Returns:
        The binding, and the IR names of the arrays that it reads before those that it writes.
    """
    kernel = resources.kernels(spec)
    arguments = kernel.signature.arguments
    schedule = make_schedule(kernel.signature, layout, threads, resources.scratch_bytes)
    seen = [_see(argument, layout, placed) for argument in arguments]
    inputs = tuple(argument.value for argument in arguments if not argument.written)
    return Binding(kernel, layout, schedule, seen), inputs


def _see(argument: Argument, layout: Layout, placed: Mapping[str, Placed]) -> Placed:
    if argument.role is Role.INPUT:
        return placed[argument.value]
    if argument.role is Role.SAVED:
        _, rows0, rows1, lanes = _saved_shape(layout, torch.float32, packed=argument.packed).sizes
        strides = dense_strides((1, rows0, rows1, lanes), range(4))[:3]
        return Placed(None, strides, False)
    strides = layout.place_step() if argument.rank is Rank.STEP else layout.place_lane()
    return Placed(None, strides, False)
