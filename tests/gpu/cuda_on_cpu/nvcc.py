"""Stands in for nvcc: compiles the text of a kernel for the CPU, into a library named ``.cubin``.

It takes the options that nvcc is given, so that what starts nvcc is tested, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUN = """
extern "C" void snncc_emulate{suffix}(unsigned blocks, unsigned threads, void **parameters)
{{
  emulation::run_grid([] {{ emulation::call({name}); }}, blocks, threads, parameters);
}}
"""


def main(words: list[str]) -> int:
    """Compile the files among the words of a command line."""
    assert "-cubin" in words
    assert "-fmad=false" in words
    for file in (Path(word) for word in words if word.endswith(".cu")):
        text = file.read_text()
        names = re.findall(r"__launch_bounds__\(\w+, 1\)\s(\w+)\(", text)
        runs = [RUN.format(name=names[0], suffix="")]
        runs += [RUN.format(name=name, suffix=f"_{name}") for name in names]
        unit = file.with_suffix(".cpp")
        unit.write_text(f'#include "cuda_on_cpu.h"\n{text}{"".join(runs)}')
        # What -fmad=false is to nvcc, -ffp-contract=off is to g++.
        command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC"]
        command += [f"-I{HERE}", str(unit), "-o", str(file.with_suffix(".cubin"))]
        if subprocess.run(command, check=False).returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
