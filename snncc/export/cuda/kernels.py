"""Write the operations of a network as CUDA kernels: one a operation, all sizes constants of it.

A thread computes one element of a result, and adds in the order in which the C library does, so
that both give the same bits.  Pointwise operations are written by the code that writes them for C.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from snncc.codegen.c.expressions import literal
from snncc.codegen.cuda.variables import WORDS
from snncc.export.c.code import Writer
from snncc.export.network.loops import Loops, broadcast_strides
from snncc.export.network.memory import Memory
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
    Normalize,
    Operation,
    Place,
    Pointwise,
    Pool,
    Queue,
    Reduce,
    Softmax,
    Steps,
    dense_strides,
)

THREADS = 128
# Buffers start at a multiple of this many numbers, as those of work do.
_ALIGNMENT = 16


class DeviceMemory:
    """Where the buffers of a network lie on a device: four blocks, and what the caller gives.

    Attributes:
        memory: Where weights and work lie in their blocks.
        states: How many numbers the states are, gaps included.
        places: For each state where it lies in its block.
    """

    def __init__(self, network: Network, memory: Memory) -> None:
        self.memory = memory
        self.places: dict[Buffer, int] = {}
        self.states = 0
        for state in network.states:
            self.places[state] = self.states
            self.states += -(-state.size // _ALIGNMENT) * _ALIGNMENT

    def address(self, buffer: Buffer) -> str:
        """Return the expression of a buffer's address in a kernel."""
        match buffer.home:
            case Home.INPUT | Home.OUTPUT:
                return f"a.{buffer.home.value}_{buffer.name}"
            case Home.STATE:
                return f"a.states + {self.places[buffer]}"
            case Home.WEIGHT:
                return f"a.weights + {self.memory.places[buffer]}"
            case Home.WORK:
                return f"a.work + {self.memory.places[buffer]}"


@dataclass(frozen=True, slots=True)
class DeviceKernel:
    """A kernel of a library.

    Attributes:
        name: Its function.
        threads: How many threads have something to do.
        text: Its text.
    """

    name: str
    threads: int
    text: str

    @property
    def blocks(self) -> int:
        """How many blocks it is launched with."""
        return -(-self.threads // THREADS)


@dataclass
class KernelWriter:
    """Writes the kernels of a network.

    Attributes:
        network: The network.
        memory: Where its buffers lie.
        prefix: What every name in the library starts with.
        kernels: What was written, in order: a first step of its own, and then the step.
        first: How many of them the first step has of its own.
    """

    network: Network
    memory: DeviceMemory
    prefix: str
    kernels: list[DeviceKernel] = field(default_factory=list)
    first: int = 0

    def __post_init__(self) -> None:
        reserved = frozenset({*WORDS.split(), "a", "i"})
        self.c = Writer(self.network, self.memory, self.prefix, reserved)
        self.real = self.c.real

    def write(self) -> None:
        """Write a kernel for each operation that has elements."""
        for position, operation in enumerate(self.network.operations):
            self.operation(operation)
            if position + 1 == self.network.first:
                self.first = len(self.kernels)

    def operation(self, operation: Operation) -> None:
        """Write the kernel of one operation."""
        match operation:
            case Pointwise():
                self.pointwise(operation)
            case Copy(source, result):
                dense = dense_strides(source.shape)
                self.move(source, Array(result.buffer, source.shape, dense, result.offset))
            case Place(source, result):
                self.move(source, result)
            case Border(value, result):
                self.border(value, result)
            case Lookup(table, result):
                at = f"(a.steps - 1) * {result.numel} + i"
                body = [f"({self.c.parts.base(result)})[i] = ({self.c.parts.base(table)})[{at}];"]
                self.kernel("lookup", result.numel, body)
            case Linear() | Convolution() | Pool() | MatMul():
                self.product(operation)
            case Reduce() | Softmax() | Normalize():
                self.reduction(operation)
            case Queue():
                raise AssertionError("a queue of spikes has no kernels")
            case _:
                assert_never(operation)

    def product(self, operation: Linear | Convolution | Pool | MatMul) -> None:
        """Write a kernel whose threads sum over a part of their input each."""
        match operation:
            case Linear():
                self.linear(operation)
            case Convolution():
                self.convolution(operation)
            case Pool():
                self.pool(operation)
            case MatMul():
                self.matmul(operation)
            case _:
                assert_never(operation)

    def reduction(self, operation: Reduce | Softmax | Normalize) -> None:
        """Write a kernel whose threads go through the values of one result, or of one group."""
        match operation:
            case Reduce():
                self.reduce(operation)
            case Softmax():
                self.softmax(operation)
            case Normalize(x, groups, epsilon, result):
                size = x.numel // groups
                self.c.parts.used.add("normalize")
                at = (
                    f"{self.c.parts.base(x)} + i * {size}, {self.c.parts.base(result)} + i * {size}"
                )
                text = literal(epsilon, self.c.float_type)
                self.kernel(
                    "normalize", groups, [f"{self.prefix}_normalize({at}, 1, {size}, {text});"]
                )
            case _:
                assert_never(operation)

    def kernel(self, name: str, threads: int, body: Iterable[str], comment: str = "") -> None:
        """Write a kernel around what thread ``i`` does."""
        if threads == 0:
            return
        full = f"{self.prefix}_kernel{len(self.kernels)}_{name}"
        lines = [
            f'extern "C" __global__ void __launch_bounds__({THREADS}, 1)',
            f"{full}(const struct {self.prefix}_arguments a)",
            "{",
            f"  const int i = (int)(blockIdx.x * {THREADS} + threadIdx.x);",
            f"  if (i >= {threads}) {{",
            "    return;",
            "  }",
            *(f"  {line}" for line in body),
            "}",
        ]
        head = [f" * {line}".rstrip() for line in comment.splitlines()]
        text = "\n".join([*(["/*", *head, " */"] if head else []), *lines])
        self.kernels.append(DeviceKernel(full, threads, text))

    def pointwise(self, operation: Pointwise) -> None:
        """Write the kernel of a pointwise operation: a neuron, or an elementwise operator."""
        arrays = [x for _, x in operation.inputs if isinstance(x, Array)]
        written = {x.buffer for x, _ in operation.results}
        buffers = dict.fromkeys(
            [x.buffer for x in arrays] + [x.buffer for x, _ in operation.results]
        )
        pointers = {buffer: f"p{k}" for k, buffer in enumerate(buffers)}
        loops, body = self.c.pointwise_body(operation, pointers)
        lines = [
            f"{'' if buffer in written else 'const '}{self.real} *{name} ="
            f" {self.memory.address(buffer)};"
            for buffer, name in pointers.items()
        ]
        if any(isinstance(x, Steps) for _, x in operation.inputs):
            lines.append("const unsigned long long steps = a.steps;")
        elements = math.prod(operation.shape)
        self.kernel(
            operation.name, elements, [*lines, *taken_apart(loops), *body], operation.comment
        )

    def move(self, source: Array, result: Array) -> None:
        """Write the kernel that copies element by element."""
        loops = _loops(result.shape, [source, result])
        to, origin = (self.memory.address(x.buffer) for x in (result, source))
        body = [f"({to})[{loops.index(result)}] = ({origin})[{loops.index(source)}];"]
        self.kernel("copy", result.numel, [*taken_apart(loops), *body])

    def border(self, value: float, result: Array) -> None:
        """Write the kernel that gives every element of an array the same number."""
        loops, home = _loops(result.shape, [result]), self.memory.address(result.buffer)
        number = literal(value, self.c.float_type)
        body = [f"({home})[{loops.index(result)}] = {number};"]
        self.kernel("border", result.numel, [*taken_apart(loops), *body])

    def linear(self, operation: Linear) -> None:
        """Write the kernel of a linear layer: threads side by side read weights side by side."""
        inputs, outputs = operation.weight.shape
        rows = operation.x.numel // inputs
        body = [
            f"const int row = i / {outputs}, o = i % {outputs};",
            f"const {self.real} *x = {self.c.parts.base(operation.x)} + row * {inputs};",
            f"const {self.real} *w = {self.c.parts.base(operation.weight)} + o;",
            f"{self.real} sum = {self.bias(operation.bias, 'o')};",
            f"for (int k = 0; k < {inputs}; k++) {{",
            *self.term("x[k]", f"w[k * {outputs}]"),
            "}",
            f"({self.c.parts.base(operation.result)})[i] = sum;",
        ]
        self.kernel("linear", rows * outputs, body)

    def bias(self, bias: Array | None, index: str) -> str:
        """Return what a sum starts from."""
        return "0" if bias is None else f"({self.c.parts.base(bias)})[{index}]"

    def term(self, value: str, weight: str) -> list[str]:
        """Return the lines that read a value and, where it is not zero, its weight."""
        return [
            f"  const {self.real} value = {value};",
            "  if (value != 0) {",
            f"    sum += value * {weight};",
            "  }",
        ]

    def convolution(self, operation: Convolution) -> None:
        """Write the kernel of a convolution: channels, rows and columns of the input in order."""
        _, channels, height, width = operation.x.shape
        _, outs, out_height, out_width = operation.result.shape
        (kh, kw), each = operation.kernel, outs // operation.groups
        shared = channels // operation.groups
        places = out_height * out_width
        (sy, sx), (py, px), (dy, dx) = operation.stride, operation.padding, operation.dilation
        x, w = self.c.parts.base(operation.x), self.c.parts.base(operation.weight)
        body = [
            f"const int ox = i % {out_width}, oy = i / {out_width} % {out_height};",
            f"const int o = i / {places} % {outs}, b = i / {places * outs};",
            f"const int group = o / {each};",
            f"{self.real} sum = {self.bias(operation.bias, 'o')};",
            f"for (int c = group * {shared}; c < (group + 1) * {shared}; c++) {{",
            f"  const {self.real} *x = {x} + (b * {channels} + c) * {height * width};",
            f"  const {self.real} *w = {w} + c * {kh * kw * each} + o % {each};",
            f"  for (int ky = 0; ky < {kh}; ky++) {{",
            f"    const int iy = oy * {sy} - {py} + ky * {dy};",
            f"    for (int kx = 0; kx < {kw}; kx++) {{",
            f"      const int ix = ox * {sx} - {px} + kx * {dx};",
            f"      if (iy < 0 || iy >= {height} || ix < 0 || ix >= {width}) {{",
            "        continue;",
            "      }",
            *(
                f"    {line}"
                for line in self.term(f"x[iy * {width} + ix]", f"w[(ky * {kw} + kx) * {each}]")
            ),
            "    }",
            "  }",
            "}",
            f"({self.c.parts.base(operation.result)})[i] = sum;",
        ]
        self.kernel("convolution", operation.result.numel, body)

    def pool(self, operation: Pool) -> None:
        """Write the kernel of a pooling; its windows are tables."""
        _, _, height, width = operation.x.shape
        rows, columns = operation.windows
        row_table = self.table([n for window in rows for n in window])
        column_table = self.table([n for window in columns for n in window])
        across, base = len(columns), self.c.parts.base(operation.x)
        body = [
            f"const int ox = i % {across}, oy = i / {across} % {len(rows)};",
            f"const {self.real} *x = {base} + i / {across * len(rows)} * {height * width};",
            f"{self.real} total = {'-INFINITY' if operation.is_max else '0'};",
            f"for (int iy = {row_table}[2 * oy]; iy < {row_table}[2 * oy + 1]; iy++) {{",
            f"  for (int ix = {column_table}[2 * ox]; ix < {column_table}[2 * ox + 1]; ix++) {{",
            f"    const {self.real} value = x[iy * {width} + ix];",
            "    total = value > total || value != value ? value : total;"
            if operation.is_max
            else "    total += value;",
            "  }",
            "}",
        ]
        divided = "total"
        if not operation.is_max:
            divided = f"total / ({self.real}){self.table(operation.divisors)}[oy * {across} + ox]"
        body.append(f"({self.c.parts.base(operation.result)})[i] = {divided};")
        self.kernel("pool", operation.result.numel, body)

    def table(self, numbers: Sequence[int]) -> str:
        """Write a constant table of integers and return its name."""
        name = f"{self.prefix}_table{len(self.c.parts.functions)}"
        items = ", ".join(map(str, numbers))
        self.c.parts.functions.append(f"static __device__ const int {name}[] = {{{items}}};\n")
        return name

    def matmul(self, operation: MatMul) -> None:
        """Write the kernel of a product of matrices."""
        a, b, result = operation.a, operation.b, operation.result
        (n, inner), m = a.shape[-2:], b.shape[-1]
        lead = result.shape[:-2]
        over = _loops(lead, [_lead(a), _lead(b)])
        places = [f"({self.memory.address(x.buffer)} + {over.index(_lead(x))})" for x in (a, b)]
        body = [
            *taken_apart(over, f"i / {n * m}"),
            f"const int row = i / {m} % {n}, column = i % {m};",
            f"{self.real} sum = 0;",
            f"for (int k = 0; k < {inner}; k++) {{",
            *self.term(
                f"{places[0]}[row * {a.strides[-2]} + k * {a.strides[-1]}]",
                f"{places[1]}[k * {b.strides[-2]} + column * {b.strides[-1]}]",
            ),
            "}",
            f"({self.c.parts.base(result)})[i] = sum;",
        ]
        self.kernel("matmul", result.numel, body)

    def reduce(self, operation: Reduce) -> None:
        """Write the kernel of a reduction."""
        elements, loops, body = self.c.reduction(operation)
        self.kernel("reduce", elements, [*taken_apart(loops), *body])

    def softmax(self, operation: Softmax) -> None:
        """Write the kernel of a softmax, which a thread computes for one row of values."""
        loops, call = self.c.softmax(operation)
        rows = operation.x.numel // operation.x.shape[operation.axis]
        self.kernel("softmax", rows, [*taken_apart(loops), call])


def taken_apart(loops: Loops, number: str = "i") -> list[str]:
    """Return the lines that take the number of an element apart into the variables of loops."""
    lines, rest = [], 1
    for variable, size in reversed(list(zip(loops.variables, loops.sizes, strict=True))):
        divided = number if rest == 1 else f"{number} / {rest}"
        is_first = variable == loops.variables[0]
        lines.append(f"const int {variable} = {divided}{'' if is_first else f' % {size}'};")
        rest *= size
    return lines


def _loops(shape: tuple[int, ...], arrays: Sequence[Array]) -> Loops:
    return Loops.of(shape, [broadcast_strides(x, shape) for x in arrays])


def _lead(array: Array) -> Array:
    return Array(array.buffer, array.shape[:-2], array.strides[:-2], array.offset)
