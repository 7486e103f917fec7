"""The examples in ``docs/errors.md``: run them, and compare or rewrite what they say.

``python -m tests.errors_page`` writes the message of each example below it, where it is not there
yet or has changed.  A line ``...`` in a message stands for any lines, where they are those of a
machine: paths, compilers.
"""

from __future__ import annotations

import os
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn

import snncc
from snncc.ir.nodes import Binary, Const, Let, Op, Recurrence, State, Var
from snncc.ir.program import NeuronProgram
from snncc.model.distribution import require_same
from snncc.nn import LIF, ATan
from snncc.runtime.gpu.binaries import compile_offline
from snncc.runtime.gpu.cuda_build import find_nvcc
from snncc.runtime.gpu.cuda_driver import Driver, open_driver
from snncc.runtime.gpu.cuda_nvrtc import Nvrtc
from snncc.runtime.launch import check_arguments
from snncc.runtime.operators import Neuron
from tests.gpu.emulated import Library
from tests.neuron_programs import lif, without_adjoint

PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"
PACKAGE = Path(snncc.__file__).parent
SECTION = re.compile(r"^### `(?P<code>[a-z]+\.[a-z-]+)`\n(?P<body>.*?)(?=^##|\Z)", re.M | re.S)
BLOCK = re.compile(r"^```(?P<language>py|sh|text)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Section:
    """One error: what is said of it, its example, and the message that the example gives."""

    code: str
    body: str
    example: str
    language: str
    message: str


def sections() -> list[Section]:
    """Return the sections of the page, in order."""
    found = []
    for match in SECTION.finditer(PAGE.read_text(encoding="utf-8")):
        blocks = {b["language"]: b["text"] for b in BLOCK.finditer(match["body"])}
        language = "py" if "py" in blocks else "sh"
        found.append(
            Section(
                match["code"],
                match["body"],
                blocks.get(language, ""),
                language,
                blocks.get("text", ""),
            )
        )
    return found


def message_of(section: Section, folder: Path) -> str:
    """Run the example of a section in a folder and return the error that it ends with."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        with mock.patch.dict(os.environ, {"SNNCC_CACHE_DIR": str(folder / "cache")}):
            run = SHELL.get(section.code) or (lambda _: _run(section.example, folder))
            run(folder)
    except snncc.SnnccError as error:
        if error.code != section.code:
            raise AssertionError(f"The example of {section.code} raises {error}") from error
        text = f"{type(error).__name__}: {error}\n"
        return text.replace(f"{folder}{os.sep}", "").replace(f"{PACKAGE.parent}{os.sep}", "")
    finally:
        os.chdir(here)
    raise AssertionError(f"The example of {section.code} raises nothing.")


def is_as_documented(section: Section, message: str) -> bool:
    """Tell whether a message is the one on the page."""
    lines = section.message.splitlines(keepends=True)
    pattern = "".join(r"(?:.*\n)*" if line == "...\n" else re.escape(line) for line in lines)
    return re.fullmatch(pattern, message) is not None


def _run(example: str, folder: Path) -> None:
    path = folder / "model.py"
    path.write_text(example, encoding="utf-8")
    torch.manual_seed(0)
    namespace: dict[str, Any] = {
        "__name__": "model", "torch": torch, "nn": nn, "snncc": snncc, "LIF": LIF, "os": os,
        "spike": ATan(), "x": torch.randn(8, 2, 3), "Path": Path, "random": random,
        "ThreadPoolExecutor": ThreadPoolExecutor,
        "neuron": Neuron(without_adjoint(lif())), "counter": Neuron(NeuronProgram(_counter())),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(example, str(path), "exec"), namespace)


def _counter() -> Recurrence:
    """Return a recurrence without any input."""
    count = Let("m", Binary(Op.ADD, Var("n"), Const(1.0)))
    return Recurrence("counter", (), (State("n", Const(0.0), "m"),), (count,), ("m",))


def _full_disk(folder: Path) -> None:
    neuron = LIF(0.4711)  # no other test has loaded its kernel
    with mock.patch.object(Path, "write_text", side_effect=OSError(28, "No space left on device")):
        snncc.compile(neuron)(torch.randn(8, 2, 3))


def _wrong_library(folder: Path) -> None:
    compiler = folder / "cross-compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo x > "$2"\n')
    compiler.chmod(0o755)
    with mock.patch.dict(os.environ, {"SNNCC_CC": str(compiler)}):
        snncc.compile(LIF())(torch.randn(8, 2, 3))


def _other_device(folder: Path) -> None:
    tensor: Any = SimpleNamespace(dtype=torch.float32, device=torch.device("xpu", 0))
    check_arguments(["x"], [tensor], 1)


def _broken_triton(folder: Path) -> None:
    neuron = Neuron(lif(), target="triton")
    call = neuron._gpu.plan([torch.empty(3, 8), torch.empty(8)], None, training=False).call
    source = replace(call.kernel.source, anonymous=call.kernel.source.anonymous + "\n")
    with mock.patch("triton.compiler.compile", side_effect=RuntimeError("PassManager::run failed")):
        compile_offline(source, call.variant, "sm_90")


def _no_triton(folder: Path) -> None:
    missing = PackageNotFoundError("triton")
    with mock.patch("importlib.metadata.version", side_effect=missing):
        Neuron(lif(), target="triton")([torch.ones(3, 8)], [torch.ones(8)])


def _old_triton(folder: Path) -> None:
    with mock.patch("importlib.metadata.version", return_value="3.5.1"):
        Neuron(lif(), target="triton")([torch.ones(3, 8)], [torch.ones(8)])


def _no_nvcc(folder: Path) -> None:
    with mock.patch.dict(os.environ, {"SNNCC_NVCC": "no-such-nvcc"}):
        find_nvcc().compile("", "sm_90", folder, ())


def _broken_nvcc(folder: Path) -> None:
    with mock.patch.dict(os.environ, {"SNNCC_NVCC": "false"}):
        find_nvcc().compile("", "sm_90", folder, ())


def _broken_nvrtc(folder: Path) -> None:
    said = b"kernel.cu(41): error: identifier 'steps' is undefined"
    library = mock.Mock()
    library.nvrtcCreateProgram.return_value = 0
    library.nvrtcCompileProgram.return_value = 6
    library.nvrtcGetProgramLogSize.side_effect = lambda _, size: _assign(size._obj, len(said) + 1)
    library.nvrtcGetProgramLog.side_effect = lambda _, data: _assign(data, said)
    Nvrtc(library, "libnvrtc.so", ()).compile("", "sm_90", folder, ("-fmad=false",))


def _assign(box: Any, value: Any) -> int:
    box.value = value
    return 0


def _no_driver(folder: Path) -> None:
    missing = OSError("libcuda.so.1: cannot open shared object file: No such file or directory")
    with mock.patch("ctypes.CDLL", side_effect=missing):
        open_driver.__wrapped__()


def _refusing_driver(folder: Path) -> None:
    Driver(Library(refuse={"cuInit": 999})).load(0, b"", "kernel")


def _other_rank(folder: Path) -> None:
    require_same([[1, 2, 3, 4, 5, 6], [1, 7, 3, 4, 5, 6]])


def _many_steps(folder: Path) -> None:
    program = replace(without_adjoint(lif()), most_steps=1 << 24)
    like = torch.zeros(1, 3)
    Neuron(program)([like.expand((1 << 24) + 1, 3)], [torch.zeros(3)])


# What the shell examples stand for; none can be run as it is on every machine.
SHELL: dict[str, Callable[[Path], None]] = {
    "build.cache-write": _full_disk,
    "build.unloadable": _wrong_library,
    "launch.device": _other_device,
    "launch.steps": _many_steps,
    "build.nvcc-failed": _broken_nvcc,
    "build.nvrtc-failed": _broken_nvrtc,
    "build.triton-failed": _broken_triton,
    "launch.driver": _refusing_driver,
    "launch.ranks": _other_rank,
    "target.no-driver": _no_driver,
    "target.no-nvcc": _no_nvcc,
    "target.no-triton": _no_triton,
    "target.triton-version": _old_triton,
}


def main() -> None:
    """Write the messages of all examples to the page."""
    page = PAGE.read_text(encoding="utf-8")
    for section in sections():
        if not section.example:
            sys.stderr.write(f"{section.code} has no example\n")
            continue
        # Kernels may still be built into it in the background.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            message = message_of(section, Path(folder))
        if is_as_documented(section, message):
            continue
        example = f"```{section.language}\n{section.example}```\n"
        old = f"{example}\n```text\n{section.message}```\n" if section.message else example
        body = section.body.replace(old, f"{example}\n```text\n{message}```\n")
        page = page.replace(section.body, body)
        PAGE.write_text(page, encoding="utf-8")
        sys.stderr.write(f"{section.code} written\n")


if __name__ == "__main__":
    main()
