"""Pieces of C code, whatever its numbers: addresses, calls, tables and loops.

The writers for floats (`c.code`) and for whole numbers (`quantized.c_code`) each hold a `Parts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from snncc.export.network.loops import Loops, indented, loops_over
from snncc.export.network.nodes import (
    Array,
    Buffer,
    Convolution,
    MatMul,
    Network,
    Pool,
    Reduce,
    dense_strides,
)


class Places(Protocol):
    """Where the buffers of a network lie."""

    def address(self, buffer: Buffer) -> str:
        """Return the expression of a buffer's address."""


@dataclass(frozen=True)
class Reduction:
    """The loops of a reduction.

    Attributes:
        results: How many results it has.
        over: Loops over them.
        through: Inside of these, loops over what one is made of.
        count: How much that is.
        value: The expression of one number that is read.
        target: Where a result is written.
    """

    results: int
    over: Loops
    through: Loops
    count: int
    value: str
    target: str


@dataclass
class Parts:
    """Parts of the code of one library.

    Attributes:
        memory: Where buffers lie.
        prefix: What every name in the library starts with.
        number: The C type of what buffers hold.
        functions: The functions and tables that the step needs.
        used: What it needs of those that every library has.
        taken: The names that no function of an operation may have, without the prefix.
        sums: For each type of sums how many an operation needs besides its buffers.
    """

    memory: Places
    prefix: str
    number: str
    functions: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    sums: dict[str, int] = field(default_factory=dict)

    def base(self, array: Array) -> str:
        """Return the C expression of the address of an array's first element."""
        place = self.memory.address(array.buffer)
        return f"({place} + {array.offset})" if array.offset else f"({place})"

    def call(self, function: str, *arguments: object) -> str:
        """Return a call of a function that every library has."""
        self.used.add(function)
        texts = [self.base(a) if isinstance(a, Array) else str(a) for a in arguments]
        return f"{self.prefix}_{function}({', '.join(texts)})"

    def room(self, kind: str, count: int) -> str:
        """Return where an operation may keep so many sums of a type."""
        self.sums[kind] = max(self.sums.get(kind, 0), count)
        return f"net->sums_{kind}"

    def members(self) -> list[str]:
        """Return the room for sums as members of a structure."""
        return [f"{kind} sums_{kind}[{count}];" for kind, count in self.sums.items()]

    def room_bytes(self) -> int:
        """Return how large the room for sums is."""
        return sum(count * _BYTES[kind] for kind, count in self.sums.items())

    def table(self, numbers: Sequence[int], kind: str = "int") -> str:
        """Return the name of a constant table of integers."""
        name = f"{self.prefix}_table{len(self.functions)}"
        items = ", ".join(map(str, numbers))
        self.functions.append(f"static const {kind} {name}[] = {{{items}}};\n")
        return name

    def geometry(self, layer: Convolution) -> str:
        """Return the table of a convolution."""
        sizes = [*layer.x.shape, *layer.result.shape[1:], *layer.kernel]
        settings = [*layer.stride, *layer.padding, *layer.dilation, layer.groups]
        return self.table([*sizes, *settings])

    def windows(self, layer: Pool, divisors: Sequence[int] = ()) -> str:
        """Return the table of a pooling."""
        rows, columns = layer.windows
        numbers = [layer.x.shape[0] * layer.x.shape[1], *layer.x.shape[2:], len(rows), len(columns)]
        numbers += [n for window in (*rows, *columns) for n in window]
        return self.table([*numbers, *divisors])

    def pointwise(
        self, name: str, comment: str, homes: Sequence[tuple[str, str]], body: Sequence[str]
    ) -> str:
        """Write a function for a pointwise operation and return its call.

        Args:
            name: The operation.
            comment: What it computes.
            homes: For each argument its parameter and what is given for it.
            body: Its statements.
        """
        full = f"{self.prefix}_{self._fresh(name)}"
        parameters = ", ".join(parameter for parameter, _ in homes)
        lines = [f"static void {full}({parameters})", "{", *indented(body), "}"]
        if comment:
            lines = ["/*", *(f" * {t}".rstrip() for t in comment.splitlines()), " */", *lines]
        self.functions.append("\n".join(lines) + "\n")
        return f"{full}({', '.join(argument for _, argument in homes)});"

    def _fresh(self, name: str) -> str:
        """Return a function name that is not taken."""
        numbered = (f"{name}_{i}" for i in itertools.count(2))
        found = next(n for n in itertools.chain([name], numbered) if n not in _OWN | self.taken)
        self.taken.add(found)
        return found

    def moved(
        self, source: Array, result: Array, changed: Callable[[str], str] | None = None
    ) -> list[str]:
        """Return what copies an array, each of its numbers changed."""
        if changed is None and source.is_dense and result.is_dense:
            return [self.copied(self.base(source), result)]
        loops = loops_over(result.shape, [source, result])
        to, origin = self.memory.address(result.buffer), self.memory.address(source.buffer)
        value = f"({origin})[{loops.index(source)}]"
        value = value if changed is None else changed(value)
        return loops.around([f"({to})[{loops.index(result)}] = {value};"])

    def filled(self, number: str, result: Array) -> list[str]:
        """Return what writes one number to a whole array."""
        loops = loops_over(result.shape, [result])
        home = self.memory.address(result.buffer)
        return loops.around([f"({home})[{loops.index(result)}] = {number};"])

    def copied(self, source: str, result: Array) -> str:
        """Return what copies numbers that lie side by side."""
        return f"memcpy({self.base(result)}, {source}, {result.numel} * sizeof({self.number}));"

    def row(self, table: str, result: Array) -> str:
        """Return what copies the row of a table that is for this step."""
        return self.copied(f"{table} + (net->steps - 1) * {result.numel}", result)

    def matmul(self, layer: MatMul) -> tuple[Loops, list[str], str]:
        """Return loops over pairs of matrices, the addresses of a pair and its result, a table."""
        a, b, result = layer.a, layer.b, layer.result
        leads = [
            Array(each.buffer, each.shape[:-2], each.strides[:-2], each.offset)
            for each in (a, b, result)
        ]
        over = loops_over(result.shape[:-2], leads)
        places = [f"{self.memory.address(e.buffer)} + {over.index(e)}" for e in leads]
        sizes = [*a.shape[-2:], b.shape[-1], *a.strides[-2:], *b.strides[-2:]]
        return over, places, self.table(sizes)

    def reduction(self, layer: Reduce) -> Reduction:
        """Return the loops of a reduction."""
        x, axes, result = layer.x, layer.axes, layer.result
        kept = [d for d in range(len(x.shape)) if d not in axes]
        outer = Array(x.buffer, taken(x.shape, kept), taken(x.strides, kept), x.offset)
        inner = Array(x.buffer, taken(x.shape, axes), taken(x.strides, axes), 0)
        home = Array(result.buffer, outer.shape, dense_strides(outer.shape), result.offset)
        over = loops_over(outer.shape, [outer, home])
        through = Loops.of(inner.shape, [inner.strides], "j")
        read, written = self.memory.address(x.buffer), self.memory.address(result.buffer)
        value = f"({read})[{over.index(outer)} + {through.index(inner)}]"
        target = f"({written})[{over.index(home)}]"
        return Reduction(outer.numel, over, through, inner.numel, value, target)


# What the templates of a library name, without the prefix.
_OWN = {
    *("init", "reset", "step", "run", "weights", "parameters", "number"),
    *("check_weights", "checksum", "word"),
}
_BYTES = {"float": 4, "double": 8, "int32_t": 4, "int64_t": 8}


def in_order(network: Network, statements: Sequence[list[str]]) -> list[str]:
    """Return the statements of all operations; those of the first step run in it, and alone."""
    first, rest = statements[: network.first], statements[network.first :]
    lines = list(itertools.chain.from_iterable(rest))
    if first:
        own = itertools.chain.from_iterable(first)
        lines = ["if (net->steps == 1) {", *indented([*own, "return 0;"]), "}", *lines]
    return lines


def taken(values: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
    """Return some of the values."""
    return tuple(values[p] for p in positions)
