"""Write a network as a library for GPUs of NVIDIA: kernels, binaries, and C that launches them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snncc.codegen.cuda.target import FLAGS
from snncc.errors import OptionError
from snncc.export.c.files import MAIN
from snncc.export.c.functions import fixed_part
from snncc.export.c.library import COUNT, FloatNumbers, Library, in_rows
from snncc.export.c.library import Sequence as Run
from snncc.export.cuda.kernels import THREADS, DeviceMemory, KernelWriter
from snncc.export.cuda.templates import HEADER, KERNELS, MAKEFILE, SOURCE
from snncc.export.network.nodes import Buffer, Home, Network
from snncc.runtime.gpu.cuda_build import find_cuda_compiler

# CUDA_ERROR_NO_BINARY_FOR_GPU
NO_BINARY = 209
_RTC = """
#ifdef __CUDACC_RTC__
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif
"""


def check_arches(arches: Sequence[str]) -> None:
    """Check that binaries can be made for some GPUs.

    Raises:
        OptionError: One has no such name, or there is none.
    """
    wrong = [arch for arch in arches if re.fullmatch(r"sm_\d{2,3}", arch) is None]
    if wrong or not arches:
        raise OptionError(
            f"There is no architecture '{wrong[0]}'." if wrong else "No architecture is named.",
            code="option.arch",
            hints=["Name one or more of NVIDIA's: arch=('sm_80', 'sm_90')."],
        )


def write_cuda_library(
    network: Network, name: str, sequence: Run, arches: Sequence[str]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files of a library, and what the manifest says of its kernels.

    Args:
        network: The network.
        name: A C identifier; every name in the library starts with it.
        sequence: What the test of the library runs.
        arches: The GPUs that binaries are made for.

    Raises:
        TargetError: There is no CUDA compiler.
        BuildError: It failed.
    """
    library = _CudaLibrary(network, name)
    return library.files(sequence, arches), {
        "arch": list(arches),
        "kernels": {kernel.name: kernel.threads for kernel in library.kernels},
    }


class _CudaLibrary:
    def __init__(self, network: Network, name: str) -> None:
        self.network, self.name = network, name
        self.numbers = FloatNumbers(network, name)
        self.host = Library(network, name, self.numbers)
        self.real, self.macro = self.numbers.number, name.upper()
        self.memory = DeviceMemory(network, self.numbers.memory)
        writer = KernelWriter(network, self.memory, name)
        writer.write()
        self.kernels, self.first, self.c = writer.kernels, writer.first, writer.c

    def files(self, sequence: Run, arches: Sequence[str]) -> dict[str, bytes]:
        kernels = self.kernel_text()
        images = {arch: _compiled(kernels, arch) for arch in arches}
        texts = {
            f"{self.name}.cu": kernels,
            f"{self.name}.h": self.header(len(arches)),
            f"{self.name}.c": self.source(),
            f"{self.name}_images.c": self.image_arrays(images),
            f"{self.name}_weights.c": self.host.weight_array(),
            "main.c": self.main(sequence),
            "Makefile": self.makefile(arches),
        }
        files = {file: text.encode() for file, text in texts.items()}
        files |= {f"{self.name}.{arch}.cubin": image for arch, image in images.items()}
        files[f"{self.name}.weights"] = self.numbers.weights.file()
        files["test_vector.bin"] = self.host.test_vector(sequence)
        return files

    @property
    def given(self) -> list[Buffer]:
        """Inputs, then outputs."""
        return [*self.network.inputs, *self.network.outputs]

    def kernel_text(self) -> str:
        members = [
            f"  {'const ' if b.home is Home.INPUT else ''}{self.real} *{b.home.value}_{b.name};"
            for b in self.given
        ]
        fixed = fixed_part(self.c.parts.used, self.name, self.real)
        fixed = re.sub(r"^static (inline )?", r"static __device__ \1", fixed, flags=re.MULTILINE)
        return KERNELS.format(
            name=self.name,
            real=self.real,
            flags=" ".join(FLAGS),
            members="\n".join(members),
            fixed=_RTC + fixed,
            functions="\n".join(self.c.parts.functions),
            kernels="\n\n".join(kernel.text for kernel in self.kernels),
        )

    def header(self, images: int) -> str:
        sizes = [
            *self.host.sizes(),
            (f"{self.macro}_N_KERNELS", len(self.kernels), "kernels"),
            (f"{self.macro}_N_FIRST", self.first, "of them for the first step alone"),
            (f"{self.macro}_N_INPUTS", len(self.network.inputs), "inputs"),
            (f"{self.macro}_N_BUFFERS", len(self.given), "inputs and outputs"),
            (f"{self.macro}_N_STATES", max(self.memory.states, 1), "numbers of all states"),
            (f"{self.macro}_N_WORK", max(self.memory.memory.work, 1), "numbers of work memory"),
            (f"{self.macro}_N_IMAGES", images, "kinds of GPUs that there are binaries for"),
        ]
        return HEADER.format(
            name=self.name,
            macro=self.macro,
            real=self.real,
            no_binary=NO_BINARY,
            macros="\n".join(f"#define {n} {v} /* {c} */" for n, v, c in sizes),
            outputs=self.host.describe_outputs(),
            parameters=self.host.parameters(),
            device_parameters=self.device_parameters(),
        )

    def device_parameters(self) -> str:
        return ", ".join(f"{self.name}_address {buffer.name}" for buffer in self.given)

    def source(self) -> str:
        every = [1] * len(self.network.inputs) + [int(e) for e in self.network.every_step]
        limit = f"  if (net->steps >= {self.macro}_STEPS) {{\n    return 1;\n  }}\n"
        ins, outs = ([b.name for b in bs] for bs in (self.network.inputs, self.network.outputs))
        return SOURCE.format(
            name=self.name,
            macro=self.macro,
            real=self.real,
            no_binary=NO_BINARY,
            threads=THREADS,
            check=self.host.check_weights(),
            kernels=",\n".join(f'  {{"{k.name}", {k.blocks}}}' for k in self.kernels),
            start=self.start(),
            bytes=", ".join(f"{buffer.size} * sizeof({self.real})" for buffer in self.given),
            every=", ".join(map(str, every)),
            limit=limit if self.network.limit else "",
            span=self.span(),
            count=COUNT,
            parameters=self.host.parameters(),
            device_parameters=self.device_parameters(),
            names=", ".join([*ins, *outs]),
            ins=", ".join([*ins, "NULL"]),
            outs=", ".join([*outs, "NULL"]),
        )

    def span(self) -> str:
        """Return the statements that say which kernels a step launches."""
        if not self.first:
            return f"  const int begin = 0, end = {self.macro}_N_KERNELS;\n"
        first, every = f"{self.macro}_N_FIRST", f"{self.macro}_N_KERNELS"
        begin, end = f"net->steps > 1 ? {first} : 0", f"net->steps > 1 ? {every} : {first}"
        return f"  const int begin = {begin};\n  const int end = {end};\n"

    def start(self) -> str:
        """Return the numbers that all states start from, in order."""
        items = [self.numbers.literal(0.0)] * max(self.memory.states, 1)
        for state, place in self.memory.places.items():
            values = self.numbers.start(state).tolist()
            values = values * state.size if len(values) == 1 else values
            items[place : place + state.size] = [self.numbers.literal(v) for v in values]
        return in_rows(items)

    def image_arrays(self, images: dict[str, bytes]) -> str:
        parts = [f'#include "{self.name}.h"\n']
        entries = []
        for arch, image in images.items():
            rows = [image[k : k + 24] for k in range(0, len(image), 24)]
            body = ",\n  ".join(", ".join(map(str, row)) for row in rows)
            array = f"{self.name}_{arch}"
            parts.append(f"_Alignas(64) static const unsigned char {array}[] = {{\n  {body}}};\n")
            major, minor = arch[3:-1], arch[-1]
            entries.append(f"  {{{major}, {minor}, {array}}}")
        head = f"const struct {self.name}_image {self.name}_images[{self.macro}_N_IMAGES] = {{"
        return "\n".join([*parts, head, ",\n".join(entries) + "};", ""])

    def main(self, sequence: Run) -> str:
        """Return the test program: that of a C library, on a device that may not be there."""
        text = self.host.fill(MAIN, sequence)
        changes = {
            f"  {self.name}_init(&net, weights);\n": f"""\
  const int missing = {self.name}_init(&net, weights, 0);
  if (missing) {{
    printf("not run: error %d of the driver; is there a GPU?\\n", missing);
    return 3;
  }}
""",
            '  printf("memory: %zu bytes of state and work, %zu bytes of weights\\n", sizeof net,\n'
            f"         sizeof({self.real}) * (size_t){self.macro}_WEIGHTS);\n": "",
            "  free(weight_file);\n": (
                f"  status |= {self.name}_free(&net);\n  free(weight_file);\n"
            ),
        }
        for old, new in changes.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        return text

    def makefile(self, arches: Sequence[str]) -> str:
        flags = " ".join(FLAGS)
        commands = [
            f"\t$(NVCC) {flags} -arch={arch} -cubin {self.name}.cu -o {self.name}.{arch}.cubin"
            for arch in arches
        ]
        return MAKEFILE.replace("@CUBINS@", "\n".join(commands)).replace("@NAME@", self.name)


def _compiled(text: str, arch: str) -> bytes:
    """Return the binary of the kernels for a kind of GPU."""
    with tempfile.TemporaryDirectory(prefix="snncc-cuda-") as folder:
        find_cuda_compiler().compile(text, arch, Path(folder), FLAGS)
        return (Path(folder) / "kernel.cubin").read_bytes()
