"""Run a network in floats, operation by operation, to see how large its values become."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from snncc.errors import SnnccError
from snncc.export.network.loops import broadcast_strides
from snncc.export.network.nodes import (
    Array,
    Border,
    Buffer,
    Convolution,
    Copy,
    Home,
    Linear,
    Lookup,
    MatMul,
    Network,
    Place,
    Pointwise,
    Pool,
    Reduce,
    Steps,
    dense_strides,
    positions,
)
from snncc.ir.interpret import evaluate
from snncc.ir.nodes import Const

Refuse = Callable[[int, str], SnnccError]


class FloatRun:
    """A network that takes steps in floats and remembers the largest of its values.

    Attributes:
        network: The network.
        memory: For each buffer its numbers.
        values: For each operation by position what its lets were in the last step.
        largest: For each buffer, and each let of an operation, its largest absolute value.
        whole: For each input whether it was always whole numbers.
        active: For each linear layer by position how many of its inputs were not zero, and of how
            many.
    """

    def __init__(self, network: Network, refuse: Refuse) -> None:
        self.network, self.refuse = network, refuse
        self.dtype = torch.float64 if network.is_double else torch.float32
        self.memory: dict[Buffer, Tensor] = {}
        self.values: dict[int, dict[str, Tensor]] = {}
        self.largest: dict[Buffer | tuple[int, str], float] = {}
        self.whole = dict.fromkeys(network.inputs, True)
        self.active: dict[int, tuple[int, int]] = {}
        self.reset()

    def reset(self) -> None:
        """Go back to the state before the first step."""
        n = self.network
        self.steps = 0
        for buffer in (*n.inputs, *n.outputs, *n.states, *n.weights, *n.work):
            start = buffer.values if buffer.home in (Home.STATE, Home.WEIGHT) else 0.0
            if not isinstance(start, Tensor):
                start = torch.full((buffer.size,), float(start or 0.0))
            self.memory[buffer] = start.detach().reshape(-1).to(self.dtype).clone()
            self.note(buffer, self.memory[buffer], -1)

    def step(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Take a step and return the outputs."""
        self.steps += 1
        for buffer, x in zip(self.network.inputs, inputs, strict=True):
            self.memory[buffer][:] = x.detach().reshape(-1).to(self.dtype)
            self.whole[buffer] &= bool((x == x.round()).all())
            self.note(buffer, x, -1)
        for position in positions(self.network, self.steps):
            self._run(position, self.network.operations[position])
        return [self.memory[buffer].clone() for buffer in self.network.outputs]

    def note(self, key: Buffer | tuple[int, str], values: Tensor, position: int) -> None:
        """Remember how large a value was; where an extreme starts from, infinity, has no size."""
        finite = values[~values.isinf()].abs()
        most = float(finite.max()) if finite.numel() else 0.0
        if math.isnan(most):
            raise self.refuse(position, "a value is not a number")
        self.largest[key] = max(self.largest.get(key, 0.0), most)

    def view(self, array: Array, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return the numbers of an array, broadcast to a shape."""
        shape = array.shape if shape is None else shape
        strides = broadcast_strides(array, shape)
        return torch.as_strided(self.memory[array.buffer], shape, strides, array.offset)

    def _run(self, position: int, operation: object) -> None:
        match operation:
            case Pointwise():
                self._pointwise(position, operation)
                results = [array for array, _ in operation.results]
            case Copy(source, result):
                self.view(_like(result, source.shape)).copy_(self.view(source).clone())
                results = [result]
            case Place(source, result):
                self.view(result).copy_(self.view(source).clone())
                results = [result]
            case Border(value, result):
                self.view(result).fill_(value)
                results = [result]
            case Lookup(table, result):
                rows = self.view(table).reshape(table.shape[0], -1)
                self.view(result).copy_(rows[self.steps - 1].reshape(result.shape))
                self.note(result.buffer, rows, position)
                results = []
            case Linear() | Convolution() | MatMul() | Pool() | Reduce():
                if isinstance(operation, Linear):
                    self._count_active(position, self.view(operation.x))
                self._layer(operation)
                results = [operation.result]
            case _:
                name = type(operation).__name__.lower()
                raise self.refuse(position, f"the operation '{name}' has no form in whole numbers")
        for array in results:
            self.note(array.buffer, self.view(array), position)

    def is_dense(self, position: int) -> bool:
        """Tell whether most inputs of a linear layer were not zero."""
        active, all_of_them = self.active.get(position, (0, 0))
        return 2 * active > all_of_them

    def _count_active(self, position: int, x: Tensor) -> None:
        active, all_of_them = self.active.get(position, (0, 0))
        self.active[position] = active + int(x.count_nonzero()), all_of_them + x.numel()

    def _layer(self, operation: Linear | Convolution | MatMul | Pool | Reduce) -> None:
        if isinstance(operation, MatMul):
            y = self.view(operation.a) @ self.view(operation.b)
            self._write(operation.result, y)
            return
        x = self.view(operation.x)
        match operation:
            case Linear(_, weight, bias, result):
                shift = None if bias is None else self.view(bias)
                y = F.linear(x.reshape(-1, weight.shape[0]), self.view(weight).t(), shift)
            case Convolution(_, weight, bias, result):
                shift = None if bias is None else self.view(bias).reshape(-1)
                y = F.conv2d(
                    x, self._filters(operation), shift, operation.stride, operation.padding,
                    operation.dilation, operation.groups,
                )  # fmt: skip
            case Pool():
                result, y = operation.result, _pooled(x, operation)
            case Reduce(kind, _, axes, result):
                function = {"max": torch.amax, "min": torch.amin}.get(kind)
                dims = list(axes)
                total = x.sum(dims) if dims else x
                most = x if function is None or not dims else function(x, dims)
                y = most if function else total / (self._count(x, axes) if kind == "mean" else 1)
            case _:
                assert_never(operation)
        self._write(result, y)

    def _write(self, array: Array, values: Tensor) -> None:
        end = array.offset + values.numel()
        self.memory[array.buffer][array.offset : end] = values.reshape(-1)

    def _count(self, x: Tensor, axes: tuple[int, ...]) -> int:
        return math.prod(x.shape[a] for a in axes)

    def _filters(self, operation: Convolution) -> Tensor:
        """Return weights as torch orders them, [out, in / groups, kh, kw]."""
        ordered = self.view(operation.weight)
        parts = ordered.chunk(operation.groups, 0)
        return torch.cat([part.permute(3, 0, 1, 2) for part in parts], 0)

    def _pointwise(self, position: int, operation: Pointwise) -> None:
        like = torch.zeros((), dtype=self.dtype)
        values: dict[str, Tensor] = {}
        for name, operand in operation.inputs:
            if isinstance(operand, Array):
                values[name] = self.view(operand, operation.shape).clone()
            elif isinstance(operand, Steps):
                values[name] = torch.tensor(float(self.steps * operand.factor), dtype=self.dtype)
            else:
                values[name] = evaluate(Const(operand.value), {}, like)
        for let in operation.lets:
            values[let.name] = evaluate(let.expr, values, like)
            self.note((position, let.name), values[let.name].to(self.dtype), position)
        for array, name in operation.results:
            self.view(array, operation.shape).copy_(values[name])
        self.values[position] = values


def _like(array: Array, shape: tuple[int, ...]) -> Array:
    """Return a dense array in another shape."""
    return Array(array.buffer, shape, dense_strides(shape), array.offset)


def _pooled(x: Tensor, operation: Pool) -> Tensor:
    rows, columns = operation.windows
    outs = []
    for a, b in rows:
        for c, d in columns:
            window = x[:, :, a:b, c:d].flatten(2)
            outs.append(window.amax(2) if operation.is_max else window.sum(2))
    y = torch.stack(outs, 2)
    return y if operation.is_max else y / torch.tensor(operation.divisors, dtype=x.dtype)
