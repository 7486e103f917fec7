"""The whole numbers of a library: types, weights as a structure, and starts of states."""

from __future__ import annotations

import numpy

from snncc.export.c.events import Interface
from snncc.export.c.library import Weights, in_rows
from snncc.export.network.nodes import Buffer
from snncc.export.quantized.c_code import Writer
from snncc.export.quantized.nodes import Constant, QuantizedNetwork


class WholeNumbers:
    """The whole numbers of a library; its test allows no difference."""

    tolerance = "0"

    def __init__(self, network: QuantizedNetwork, name: str) -> None:
        self.network = network
        writer = Writer(network, name)
        self.body = writer.step()
        self.memory = writer.memory
        self.functions = writer.parts.functions
        self.fixed = writer.fixed_part()
        self.number = writer.state
        self.dtype = f"<i{network.arithmetic.state_bits // 8}"
        self.weights = _weights(network.constants, name)
        self.interface = Interface()
        self.members, self.extra_bytes = writer.parts.members(), writer.parts.room_bytes()
        self.macros = [
            (f"{buffer.name.upper()}_FRACTION", network.formats[buffer].fraction, _MEANING)
            for buffer in (*network.network.inputs, *network.network.outputs)
        ]

    def literal(self, value: float) -> str:
        """Return a number in C."""
        whole = int(value)
        return f"{whole}" if whole != -(1 << 31) else f"({whole + 1} - 1)"

    def start(self, state: Buffer) -> numpy.ndarray:
        """Return the numbers that a state starts from."""
        return self.network.starts[state]


_MEANING = "a number stands for itself over two to this power"


def _weights(constants: list[Constant], name: str) -> Weights:
    """Return constants as one structure, large numbers first, so that it has no gaps."""
    ordered = sorted(constants, key=lambda c: -c.bits)
    size = sum(c.values.size * c.bits // 8 for c in ordered)
    align = max((c.bits // 8 for c in ordered), default=1)
    gap = -size % align if size else 1
    if gap:
        ordered.append(Constant("padding", numpy.zeros(gap, numpy.int64), 8))
    members = "\n".join(f"  int{c.bits}_t {c.name}[{c.values.size}];" for c in ordered)
    struct = f"struct {name}_parameters"
    declaration = (
        f"/* Weights, biases and constants, as they lie in the file of weights. */\n"
        f"{struct} {{\n{members}\n}};\n\n"
    )
    fields = [f"  {{{in_rows([_literal(v, c.bits) for v in c.values.tolist()])}}}" for c in ordered]
    values = "{\n  " + ",\n  ".join(fields) + "}"
    data = b"".join(c.values.astype(f"<i{c.bits // 8}").tobytes() for c in ordered)
    return Weights(struct, declaration, 1, size + gap, values, data, is_unique=True)


def _literal(value: int, bits: int) -> str:
    if bits == 64:
        return f"{value}LL"
    return f"{value}" if value != -(1 << 31) else f"({value + 1} - 1)"
