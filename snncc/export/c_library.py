"""Write a network as a self-contained C11 library: header, source, weights, build files, a test."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy
from torch import Tensor

from snncc.codegen.base import FloatType
from snncc.codegen.c.expressions import literal
from snncc.export.c_code import Writer
from snncc.export.c_files import CMAKE, MAIN, MAKEFILE
from snncc.export.c_functions import fixed_part
from snncc.export.memory import Memory
from snncc.export.network import Buffer, Network

MAGIC = b"SNNCCW01"


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


def write_library(network: Network, name: str, sequence: Sequence) -> dict[str, bytes]:
    """Return the files of a library.

    Args:
        network: The network.
        name: A C identifier; every name in the library starts with it.
        sequence: What the test of the library runs.
    """
    return _Library(network, name).files(sequence)


class _Library:
    def __init__(self, network: Network, name: str) -> None:
        self.network, self.name = network, name
        self.memory = Memory(network)
        self.writer = Writer(network, self.memory, name)
        self.body = self.writer.step()
        self.real = self.writer.real
        self.macro = name.upper()

    def files(self, sequence: Sequence) -> dict[str, bytes]:
        weights = self.weight_values()
        texts = {
            f"{self.name}.h": self.header(),
            f"{self.name}.c": self.source(),
            f"{self.name}_weights.c": self.weight_array(weights),
            "main.c": self.fill(MAIN, sequence),
            "Makefile": self.fill(MAKEFILE, sequence),
            "CMakeLists.txt": self.fill(CMAKE, sequence),
        }
        files = {file: text.encode() for file, text in texts.items()}
        files[f"{self.name}.weights"] = pack_weights(weights)
        files["test_vector.bin"] = self.test_vector(sequence)
        return files

    def weight_values(self) -> numpy.ndarray:
        """Return all weights in one array, each where its operations look for it."""
        values = numpy.zeros(max(self.memory.weights, 1), self.dtype)
        for buffer in self.network.weights:
            assert isinstance(buffer.values, Tensor)
            place = self.memory.places[buffer]
            values[place : place + buffer.size] = buffer.values.detach().reshape(-1).numpy()
        return values

    @property
    def dtype(self) -> str:
        return "<f8" if self.network.is_double else "<f4"

    def sizes(self) -> list[tuple[str, int, str]]:
        """Return the macros of the header: name, value, comment."""
        found = [("WEIGHTS", max(self.memory.weights, 1), "numbers in the weights")]
        for buffer in (*self.network.inputs, *self.network.outputs):
            shape = " x ".join(map(str, self.network.shapes[buffer.name])) or "one number"
            found.append((buffer.name.upper(), buffer.size, f"numbers of '{buffer.name}': {shape}"))
        if self.network.limit:
            found.append(("STEPS", self.network.limit, "the most steps after a reset"))
        return [(f"{self.macro}_{name}", value, comment) for name, value, comment in found]

    def header(self) -> str:
        macros = "\n".join(f"#define {n} {v} /* {c} */" for n, v, c in self.sizes())
        members = [f"  {self.real} state_{b.name}[{b.size}];" for b in self.network.states]
        if self.memory.work:
            members.append(f"  {self.real} work[{self.memory.work}];")
        if self.memory.sums:
            members.append(f"  {self.real} sums[{self.memory.sums}];")
        if self.memory.indices:
            members.append(f"  int active[{self.memory.indices}];")
        parameters = self.parameters()
        return HEADER.format(
            name=self.name,
            macro=self.macro,
            real=self.real,
            macros=macros,
            members="\n".join(members),
            parameters=parameters,
            run_parameters=self.parameters(),
            outputs=self.describe_outputs(),
            step_error=" or 1 after the last step that it has numbers for"
            if self.network.limit
            else "",
        )

    def parameters(self) -> str:
        given = [f"const {self.real} *{b.name}" for b in self.network.inputs]
        return ", ".join([*given, *(f"{self.real} *{b.name}" for b in self.network.outputs)])

    def describe_outputs(self) -> str:
        lines = []
        for buffer, each in zip(self.network.outputs, self.network.every_step, strict=True):
            what = "of this step" if each else "of all steps since the reset"
            lines.append(f"   {buffer.name}: {buffer.size} numbers, the result {what}.")
        return "\n".join(lines)

    def source(self) -> str:
        name, real = self.name, self.real
        functions = "\n".join(self.writer.functions)
        fixed = fixed_part(self.writer.used, name, real)
        resets = "\n".join(f"  {line}" for b in self.network.states for line in self.reset_lines(b))
        step = "\n".join(f"  {line}" for line in self.body)
        limit = (
            f"  if (net->steps >= {self.macro}_STEPS) {{\n    return 1;\n  }}\n"
            if self.network.limit
            else ""
        )
        return SOURCE.format(
            name=name,
            macro=self.macro,
            real=real,
            magic=", ".join(f"'{chr(b)}'" for b in MAGIC),
            fixed=fixed,
            functions=functions,
            parameters=self.parameters(),
            run_parameters=self.parameters(),
            resets=resets,
            step=step,
            limit=limit,
            weights=f"  const {real} *weights = net->weights;\n" if "weights" in step else "",
            advance=self.advance(),
            arguments=", ".join(b.name for b in (*self.network.inputs, *self.network.outputs)),
        )

    def reset_lines(self, state: Buffer) -> list[str]:
        """Return the statements that give a state its start."""
        place = f"net->state_{state.name}"
        if isinstance(state.values, Tensor):
            values = state.values.reshape(-1)
            if bool((values == values[0]).all()):
                return self.filled(place, state.size, float(values[0]))
            items = ", ".join(literal(float(v), self.writer.float_type) for v in values)
            return [
                f"static const {self.real} start_{state.name}[] = {{{items}}};",
                f"memcpy({place}, start_{state.name}, sizeof start_{state.name});",
            ]
        return self.filled(place, state.size, float(state.values or 0.0))

    def filled(self, place: str, size: int, value: float) -> list[str]:
        if value == 0 and str(value) == "0.0":
            return [f"memset({place}, 0, sizeof {place});"]
        text = literal(value, self.writer.float_type)
        return [f"for (int i = 0; i < {size}; i++) {{", f"  {place}[i] = {text};", "}"]

    def advance(self) -> str:
        """Return the statements that move pointers to the next step."""
        lines = [f"    {b.name} += {self.macro}_{b.name.upper()};" for b in self.network.inputs]
        for buffer, each in zip(self.network.outputs, self.network.every_step, strict=True):
            if each:
                lines.append(f"    {buffer.name} += {self.macro}_{buffer.name.upper()};")
        return "\n".join(lines)

    def weight_array(self, values: numpy.ndarray) -> str:
        float_type = FloatType.FLOAT64 if self.network.is_double else FloatType.FLOAT32
        items = [literal(float(v), float_type) for v in values]
        rows = [", ".join(items[i : i + 8]) for i in range(0, len(items), 8)]
        body = ",\n  ".join(rows)
        return (
            f'#include "{self.name}.h"\n\n'
            f"const {self.real} {self.name}_weights[{self.macro}_WEIGHTS] = {{\n  {body}}};\n"
        )

    def test_vector(self, sequence: Sequence) -> bytes:
        """Return the inputs and expected outputs of a run: sizes first, then the numbers."""
        parts = [numpy.asarray([sequence.steps], "<u4").tobytes()]
        for x, buffer in zip(sequence.inputs, self.network.inputs, strict=True):
            whole = (
                x
                if x.numel() == sequence.steps * buffer.size
                else x.expand(sequence.steps, *x.shape)
            )
            parts.append(whole.contiguous().numpy().astype(self.dtype).tobytes())
        parts += [y.contiguous().numpy().astype(self.dtype).tobytes() for y in sequence.outputs]
        return b"".join(parts)

    def fill(self, template: str, sequence: Sequence) -> str:
        """Return a file of the library from its template."""
        inputs, outputs = self.network.inputs, self.network.outputs
        words = {
            "NAME": self.name,
            "MACRO": self.macro,
            "REAL": self.real,
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


def pack_weights(values: numpy.ndarray) -> bytes:
    """Return the weights as a file: magic, size of a number, count, checksum, numbers."""
    data = values.tobytes()
    head = numpy.asarray([values.itemsize, values.size, zlib.crc32(data) & 0xFFFFFFFF], "<u4")
    return MAGIC + head.tobytes() + bytes(12) + data


HEADER = """\
/* The network '{name}', exported by snncc.
 *
 * A network is one structure, as large as its state; nothing is allocated, nothing is global, and
 * any number of networks can share the weights.
 *
 *   struct {name} net;
 *   {name}_init(&net, {name}_weights);
 *   {name}_step(&net, ...);
 */
#ifndef {macro}_H
#define {macro}_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {{
#endif

{macros}

struct {name} {{
  const {real} *weights;
  unsigned long steps; /* taken since the reset */
{members}
}};

/* The weights, in {name}_weights.c; not needed where they are read from a file. */
extern const {real} {name}_weights[{macro}_WEIGHTS];

/* Check the contents of '{name}.weights', aligned for {real}; return its numbers, or NULL if it is
   damaged or belongs to another network. */
const {real} *{name}_check_weights(const void *data, size_t bytes);

/* Start with these weights, which are not copied, in the state before the first step. */
void {name}_init(struct {name} *net, const {real} *weights);

/* Go back to the state before the first step. */
void {name}_reset(struct {name} *net);

/* Take one step; return 0{step_error}.
{outputs} */
int {name}_step(struct {name} *net, {parameters});

/* Take several steps: inputs, and outputs of each step, lie one step after another. */
int {name}_run(struct {name} *net, size_t count, {run_parameters});

#ifdef __cplusplus
}}
#endif

#endif
"""

SOURCE = """\
/* The network '{name}', exported by snncc.  Each operation is rounded once, in one order. */
#include "{name}.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif
{fixed}
{functions}
static uint32_t {name}_checksum(const unsigned char *data, size_t bytes)
{{
  uint32_t sum = 0xFFFFFFFFu;
  for (size_t i = 0; i < bytes; i++) {{
    sum ^= data[i];
    for (int bit = 0; bit < 8; bit++) {{
      sum = sum & 1u ? sum >> 1 ^ 0xEDB88320u : sum >> 1;
    }}
  }}
  return ~sum;
}}

static uint32_t {name}_word(const unsigned char *data)
{{
  return data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}}

const {real} *{name}_check_weights(const void *data, size_t bytes)
{{
  static const char magic[8] = {{{magic}}};
  const unsigned char *start = data;
  const size_t size = (size_t){macro}_WEIGHTS * sizeof({real});
  if (data == NULL || bytes != size + 32 || memcmp(start, magic, sizeof magic) != 0
      || {name}_word(start + 8) != sizeof({real}) || {name}_word(start + 12) != {macro}_WEIGHTS
      || {name}_word(start + 16) != {name}_checksum(start + 32, size)) {{
    return NULL;
  }}
  return (const {real} *)(const void *)(start + 32);
}}

void {name}_init(struct {name} *net, const {real} *weights)
{{
  net->weights = weights;
  {name}_reset(net);
}}

void {name}_reset(struct {name} *net)
{{
  net->steps = 0;
{resets}
}}

int {name}_step(struct {name} *net, {parameters})
{{
{limit}{weights}  net->steps++;
{step}
  return 0;
}}

int {name}_run(struct {name} *net, size_t count, {run_parameters})
{{
  for (size_t i = 0; i < count; i++) {{
    const int error = {name}_step(net, {arguments});
    if (error) {{
      return error;
    }}
{advance}
  }}
  return 0;
}}
"""
