"""Write a network as a self-contained C11 library: header, source, weights, build files, a test."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy
from torch import Tensor

from snncc.codegen.c.expressions import literal
from snncc.export.c.code import Writer
from snncc.export.c.events import Interface
from snncc.export.c.files import CMAKE, MAIN, MAKEFILE
from snncc.export.c.functions import fixed_part
from snncc.export.c.templates import CHECK_WEIGHTS, HEADER, SOURCE
from snncc.export.network.memory import Memory
from snncc.export.network.nodes import Buffer, Network, Queue

MAGIC = b"SNNCCW01"
# Where steps are read, the count stays at its largest, which 32 bits reach after 2^32 steps.
COUNT = "net->steps += net->steps + 1 > 0;"


@dataclass(frozen=True)
class Sequence:
    """A run of the model that the library has to reproduce.

    Attributes:
        inputs: For each input its values, [T, *], or one step's where it has no time axis.
        outputs: For each output its values: [T, *], or what is there after the last step.
        steps: T.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    steps: int


def write_library(
    network: Network, name: str, numbers: Numbers, sequence: Sequence
) -> dict[str, bytes]:
    """Return the files of a library.

    Args:
        network: The network.
        name: A C identifier; every name in the library starts with it.
        numbers: Its numbers.
        sequence: What the test of the library runs.
    """
    return Library(network, name, numbers).files(sequence)


class Numbers(Protocol):
    """The numbers of a library, and the step that is written for them.

    Attributes:
        number: The C type of an input, a state and an output.
        dtype: The same in a file.
        tolerance: By which part of the largest output the test may differ.
        memory: Where buffers lie.
        body: The statements of a step.
        functions: The functions that it calls.
        fixed: The functions of every library that it calls.
        weights: The weights.
        members: What a network needs besides its states and its work, for C.
        extra_bytes: How large that is.
        macros: Further macros of the header: name, value, comment.
        interface: What a library has besides states, work and a step.
    """

    number: str
    dtype: str
    tolerance: str
    memory: Memory
    body: list[str]
    functions: list[str]
    fixed: str
    weights: Weights
    members: list[str]
    extra_bytes: int
    macros: list[tuple[str, int, str]]
    interface: Interface

    def literal(self, value: float) -> str:
        """Return a number in C."""

    def start(self, state: Buffer) -> numpy.ndarray:
        """Return the numbers that a state starts from: one, or as many as it has."""


@dataclass(frozen=True)
class Weights:
    """The weights of a library.

    Attributes:
        type: The C type of one of them.
        declaration: Its declaration, if it needs one.
        count: How many there are.
        size: The bytes of one.
        values: The body of the array that holds them, in C.
        data: The same in a file.
        is_unique: Whether the library takes these weights and no others of the same size.
    """

    type: str
    declaration: str
    count: int
    size: int
    values: str
    data: bytes
    is_unique: bool = False

    @property
    def checksum(self) -> int:
        """The checksum of the data."""
        return zlib.crc32(self.data) & 0xFFFFFFFF

    def file(self) -> bytes:
        """Return the weights as a file: magic, size of a number, count, checksum, numbers."""
        head = numpy.asarray([self.size, self.count, self.checksum], "<u4")
        return MAGIC + head.tobytes() + bytes(12) + self.data


class FloatNumbers:
    """The floats, or doubles, of a library."""

    tolerance = "1e-4"

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.memory = Memory(network)
        writer = Writer(network, self.memory, name)
        self.body = writer.step()
        self.functions = writer.parts.functions
        self.number = writer.real
        self.float_type = writer.float_type
        self.dtype = "<f8" if network.is_double else "<f4"
        self.fixed = fixed_part(writer.parts.used, name, self.number)
        self.weights = self._weights()
        self.macros: list[tuple[str, int, str]] = []
        self.interface = writer.interface
        self.members = [*writer.parts.members(), *self.interface.members]
        self.extra_bytes = writer.parts.room_bytes() + self.interface.extra_bytes

    def literal(self, value: float) -> str:
        """Return a number in C."""
        return literal(value, self.float_type)

    def start(self, state: Buffer) -> numpy.ndarray:
        """Return the numbers that a state starts from."""
        if isinstance(state.values, Tensor):
            return numpy.asarray(state.values.detach().reshape(-1).numpy())
        return numpy.asarray([state.values or 0.0])

    def _weights(self) -> Weights:
        """Return all weights in one array, each where its operations look for it."""
        values = numpy.zeros(max(self.memory.weights, 1), self.dtype)
        for buffer in self.network.weights:
            assert isinstance(buffer.values, Tensor)
            place = self.memory.places[buffer]
            values[place : place + buffer.size] = buffer.values.detach().reshape(-1).numpy()
        text = in_rows([self.literal(float(v)) for v in values])
        is_unique = any(isinstance(each, Queue) for each in self.network.operations)
        size, data = values.itemsize, values.tobytes()
        return Weights(self.number, "", values.size, size, text, data, is_unique)


def in_rows(items: list[str]) -> str:
    """Return the items of an array in C, eight a line."""
    rows = [", ".join(items[i : i + 8]) for i in range(0, len(items), 8)]
    return ",\n  ".join(rows)


class Library:
    """The files of a library that are written for its network and its numbers."""

    def __init__(self, network: Network, name: str, numbers: Numbers) -> None:
        self.network, self.name, self.numbers = network, name, numbers
        self.memory, self.real = numbers.memory, numbers.number
        self.weights = numbers.weights
        self.macro = name.upper()

    def files(self, sequence: Sequence) -> dict[str, bytes]:
        """Return all files of a library in C."""
        texts = {
            f"{self.name}.h": self.header(),
            f"{self.name}.c": self.source(),
            f"{self.name}_weights.c": self.weight_array(),
            "main.c": self.fill(MAIN, sequence),
            "Makefile": self.fill(MAKEFILE, sequence),
            "CMakeLists.txt": self.fill(CMAKE, sequence),
        }
        files = {file: text.encode() for file, text in texts.items()}
        files[f"{self.name}.weights"] = self.weights.file()
        files["test_vector.bin"] = self.test_vector(sequence)
        return files

    def sizes(self) -> list[tuple[str, int, str]]:
        """Return the macros of the header: name, value, comment."""
        found = [("WEIGHTS", self.weights.count, f"items of {self.weights.type} in the weights")]
        for buffer in (*self.network.inputs, *self.network.outputs):
            shape = " x ".join(map(str, self.network.shapes[buffer.name])) or "one number"
            found.append((buffer.name.upper(), buffer.size, f"numbers of '{buffer.name}': {shape}"))
        for state in self.network.states:
            comment = f"numbers of the state '{state.name}'"
            found.append((f"STATE_{state.name.upper()}", state.size, comment))
        found += self.numbers.macros
        if self.network.limit:
            found.append(("STEPS", self.network.limit, "the most steps after a reset"))
        return [(f"{self.macro}_{name}", value, comment) for name, value, comment in found]

    def header(self) -> str:
        """Return the header."""
        macros = "\n".join(f"#define {n} {v} /* {c} */" for n, v, c in self.sizes())
        members = [
            f"  {self.real} state_{b.name}[{self.macro}_STATE_{b.name.upper()}];"
            for b in self.network.states
        ]
        if self.memory.work:
            members.append(f"  {self.real} work[{self.memory.work}];")
        members += [f"  {member}" for member in self.numbers.members]
        return HEADER.format(
            name=self.name,
            macro=self.macro,
            real=self.real,
            type=self.weights.type,
            declaration=self.weights.declaration,
            macros=macros,
            members="\n".join(members),
            parameters=self.parameters(),
            run_parameters=self.parameters(),
            outputs=self.describe_outputs(),
            own=self.numbers.interface.declarations,
            step_error=" or 1 after the last step that it has numbers for"
            if self.network.limit
            else "",
        )

    def parameters(self) -> str:
        """Return the parameters of a step: what the caller gives, then what it gets."""
        given = [f"const {self.real} *{b.name}" for b in self.network.inputs]
        return ", ".join([*given, *(f"{self.real} *{b.name}" for b in self.network.outputs)])

    def describe_outputs(self) -> str:
        """Return a line for each output."""
        lines = []
        for buffer, each in zip(self.network.outputs, self.network.every_step, strict=True):
            what = "of this step" if each else "of all steps since the reset"
            lines.append(f"   {buffer.name}: {buffer.size} numbers, the result {what}.")
        return "\n".join(lines)

    def source(self) -> str:
        """Return the source."""
        name, real = self.name, self.real
        lines = [line for b in self.network.states for line in self.reset_lines(b)]
        resets = "\n".join(f"  {line}" for line in (*lines, *self.numbers.interface.resets))
        step = "\n".join(f"  {line}" for line in self.numbers.body)
        limit = (
            f"  if (net->steps >= {self.macro}_STEPS) {{\n    return 1;\n  }}\n"
            if self.network.limit
            else ""
        )
        return SOURCE.format(
            name=name,
            macro=self.macro,
            real=real,
            type=self.weights.type,
            check=self.check_weights().rstrip("\n"),
            fixed=self.numbers.fixed,
            functions="\n".join(self.numbers.functions),
            parameters=self.parameters(),
            run_parameters=self.parameters(),
            resets=resets,
            step=step,
            limit=limit,
            count=f"  {COUNT if 'net->steps' in step else 'net->steps++;'}\n",
            weights=f"  const {self.weights.type} *weights = net->weights;\n"
            if "weights" in step
            else "",
            advance=self.advance(),
            own=self.numbers.interface.definitions,
            arguments=", ".join(b.name for b in (*self.network.inputs, *self.network.outputs)),
        )

    def check_weights(self) -> str:
        """Return the functions that check a file of weights."""
        own = f" || found != {self.weights.checksum:#x}u" if self.weights.is_unique else ""
        return CHECK_WEIGHTS.format(
            name=self.name,
            macro=self.macro,
            type=self.weights.type,
            own=own,
            magic=", ".join(f"'{chr(b)}'" for b in MAGIC),
        )

    def reset_lines(self, state: Buffer) -> list[str]:
        """Return the statements that give a state its start."""
        place = f"net->state_{state.name}"
        values = self.numbers.start(state)
        if not bool((values == values[0]).all()):
            items = ", ".join(self.numbers.literal(v) for v in values.tolist())
            return [
                f"static const {self.real} start_{state.name}[] = {{{items}}};",
                f"memcpy({place}, start_{state.name}, sizeof start_{state.name});",
            ]
        if values[0] == 0 and not numpy.signbit(values[0]):
            return [f"memset({place}, 0, sizeof {place});"]
        text = self.numbers.literal(values.tolist()[0])
        return [f"for (int i = 0; i < {state.size}; i++) {{", f"  {place}[i] = {text};", "}"]

    def advance(self) -> str:
        """Return the statements that move pointers to the next step."""
        lines = [f"    {b.name} += {self.macro}_{b.name.upper()};" for b in self.network.inputs]
        for buffer, each in zip(self.network.outputs, self.network.every_step, strict=True):
            if each:
                lines.append(f"    {buffer.name} += {self.macro}_{buffer.name.upper()};")
        return "\n".join(lines)

    def weight_array(self) -> str:
        """Return the weights as an array to link."""
        head = f"_Alignas(64) const {self.weights.type} {self.name}_weights[{self.macro}_WEIGHTS]"
        return f'#include "{self.name}.h"\n\n{head} = {{\n  {self.weights.values}}};\n'

    def test_vector(self, sequence: Sequence) -> bytes:
        """Return the inputs and expected outputs of a run: sizes first, then the numbers."""
        parts = [numpy.asarray([sequence.steps], "<u4").tobytes()]
        for x, buffer in zip(sequence.inputs, self.network.inputs, strict=True):
            whole = (
                x
                if x.numel() == sequence.steps * buffer.size
                else x.expand(sequence.steps, *x.shape)
            )
            parts.append(whole.contiguous().numpy().astype(self.numbers.dtype).tobytes())
        parts += [
            y.contiguous().numpy().astype(self.numbers.dtype).tobytes() for y in sequence.outputs
        ]
        return b"".join(parts)

    def fill(self, template: str, sequence: Sequence) -> str:
        """Return a file of the library from its template."""
        inputs, outputs = self.network.inputs, self.network.outputs
        words = {
            "NAME": self.name,
            "MACRO": self.macro,
            "REAL": self.real,
            "TYPE": self.weights.type,
            "TOLERANCE": self.numbers.tolerance,
            "STEPS": str(sequence.steps),
            "INPUTS": ", ".join(f"{self.macro}_{b.name.upper()}" for b in inputs),
            "OUTPUTS": ", ".join(f"{self.macro}_{b.name.upper()}" for b in outputs),
            "EVERY": ", ".join(str(int(e)) for e in self.network.every_step),
            "IN_COUNT": str(len(inputs)),
            "OUT_COUNT": str(len(outputs)),
            "ARGUMENTS": ", ".join(
                [
                    *(f"in[{i}]" for i in range(len(inputs))),
                    *(f"out[{i}]" for i in range(len(outputs))),
                ]
            ),
        }
        for word, text in words.items():
            template = template.replace(f"@{word}@", text)
        return template
