"""Everything about a call of a recurrent loop that the sizes of its operands decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.errors import LaunchError
from snncc.ir.step_call import StepCall, step_inputs
from snncc.runtime.cache import CACHE, KernelCache
from snncc.runtime.loops.row_loop import find_rows
from snncc.runtime.loops.sketch import OUT, LoopSketch
from snncc.runtime.loops.step_kernel import BoundStep, Operand, StepKernel
from snncc.runtime.loops.storage import in_order, is_aligned

Node = torch.fx.Node


class Supply(Enum):
    """How a fused step gets one of its inputs."""

    FIXED = "fixed"  # a tensor that is the same at all steps
    GIVEN = "given"  # a row of a sequence that the loop was called with
    ROWS = "rows"  # a row that the loop has written
    NUMBER = "number"  # a number of each step
    COPY = "copy"  # a copy into a buffer, at each step


class LoopPlan:
    """A call of a loop with operands of given sizes and strides.

    Args:
        sketch: The loop.
        kernels: For each fused step its kernel.
        operands: Operands of these sizes; a sequence that is no tensor is a list.
        threads: The most threads of a kernel.
        cache: Where kernels are kept.

    Attributes:
        length: T.
        like: For each value of the body a tensor without data of its sizes, strides and type; None
            where it is no tensor.
        aligned: The names of values that start where the memory of a new tensor may.
        bound: For each fused step its kernel, bound to sizes.
        seen: For each fused step what it reads.
        supplies: For each fused step how it gets its inputs.
        rows: How the loop is run by rows; None where it is run step by step.
    """

    def __init__(
        self,
        sketch: LoopSketch,
        kernels: Mapping[StepCall, StepKernel],
        operands: Sequence[Any],
        threads: int,
        cache: KernelCache = CACHE,
    ) -> None:
        self.sketch = sketch
        self.length = sketch.loop.length(tuple(operands))
        values = rehearse(sketch, operands, self.length)
        self.like = {name: _without_data(value) for name, value in values.items()}
        self.aligned = {name for name, value in values.items() if is_aligned(value)}
        self.bound: dict[Node, BoundStep] = {}
        self.seen: dict[Node, dict[str, Operand]] = {}
        self.supplies: dict[Node, dict[str, Supply]] = {}
        for call in sketch.calls:
            if isinstance(call.target, StepCall):
                inputs = step_inputs(call)
                dtype = call.target.dtype
                supplies = {n: self._supply(node, operands, dtype) for n, node in inputs.items()}
                seen = {n: self._operand(node, supplies[n], dtype) for n, node in inputs.items()}
                self.bound[call] = bound = kernels[call.target].bind(seen, threads)
                for name in bound.copied:
                    if supplies[name] is Supply.ROWS:
                        supplies[name] = Supply.COPY
                self.supplies[call] = supplies
                self.seen[call] = seen
        self.rows = find_rows(self, kernels, threads, cache)

    def sizes(self, node: Node) -> tuple[int, ...]:
        """Return the sizes of a value at one step."""
        like = self.like[node.name]
        return () if like is None else tuple(like.shape)

    def dtype(self, node: Node) -> torch.dtype:
        """Return the type of a value."""
        like = self.like[node.name]
        return torch.get_default_dtype() if like is None else like.dtype

    def copies_steps(self, call: Node) -> bool:
        """Tell whether an input of a fused step is copied at each step."""
        return Supply.COPY in self.supplies[call].values()

    def is_array(self, value: Node) -> bool:
        """Tell whether a value is written into rows of an array of ours."""
        producer = self.sketch.producer(value)
        if isinstance(producer.target, StepCall):
            return True
        return producer.target in OUT and len(self.sizes(value)) == 2 and not producer.kwargs

    def _supply(self, node: Node, operands: Sequence[Any], dtype: torch.dtype) -> Supply:
        sketch = self.sketch
        if node in sketch.fixed:
            return Supply.FIXED
        if node in sketch.tables:
            return Supply.NUMBER
        base = sketch.reading(node).base
        if base not in sketch.given and self.is_array(base) and self.dtype(base) == dtype:
            return Supply.ROWS
        if node in sketch.given:
            sequence = operands[sketch.given[node].operand]
            if isinstance(sequence, Tensor) and sequence.dtype == dtype:
                return Supply.GIVEN
        return Supply.COPY

    def _operand(self, node: Node, supply: Supply, dtype: torch.dtype) -> Operand:
        like = self.like[node.name]
        outside = supply in (Supply.FIXED, Supply.GIVEN)
        strides = like.stride() if outside and like is not None and like.dtype == dtype else None
        return Operand.of(self.sizes(node), strides, fixed=supply is Supply.FIXED)


def rehearse(sketch: LoopSketch, operands: Sequence[Any], length: int) -> dict[str, Any]:
    """Run a few steps by the reference, and return every value of the body.

    They are as many as it takes until nothing is left of what the carries start as.  It leaves no
    trace in buffers and in the random generator.

    Raises:
        LaunchError: A value changes its shape from one step to the next.
    """
    loop = sketch.loop
    arguments = tuple(operands)
    if sketch.is_impure():
        # A norm changes its buffers, also where they are slices of one for each step.
        arguments = tuple(x.clone() if isinstance(x, Tensor) else x for x in operands)
    delay = max(sketch.reading(carry).delay for carry in sketch.carries)
    times = list(in_order(length, reverse=loop.reverse))
    carried = loop.initial_values(arguments)
    values: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for k in range(delay + 1):
            before = values
            values = loop.run_step(times[min(k, length - 1)], arguments, carried)
            carried = {c.name: values[c.update] for c in loop.carries}
            for node in sketch.calls:
                _require_equal_shapes(node, before.get(node.name), values[node.name])
    return values


def _without_data(value: Any) -> Tensor | None:
    if not isinstance(value, Tensor):
        return None
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _require_equal_shapes(node: Node, first: Any, second: Any) -> None:
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape != second.shape:
        raise LaunchError(
            f"A value has shape {list(first.shape)} at the first step of the loop and"
            f" {list(second.shape)} at the second.",
            code="launch.sizes",
            location=node.meta.get("where"),
            hints=["Give the state its full shape before the loop."],
        )
