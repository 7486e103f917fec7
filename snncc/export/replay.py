"""Exported networks run their test vectors: a library is compiled, a model given to a runtime."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snncc.arguments import Check
from snncc.errors import BundleError, OptionError
from snncc.export.bundle import CUDA, NIR, ONNX, PROGRAM, Bundle, damaged, read_bundle
from snncc.runtime.binaries.build import find_compiler

# What the test program of a CUDA library ends with where there is no GPU for it.
NO_GPU = 3
_FLAGS = Check("Option 'flags'", code="option.bundle", hint="For example: flags=('-O3',).")


@dataclass(frozen=True)
class BundleReport:
    """What the test program of a bundle said.

    Attributes:
        ok: Whether its outputs are those of the PyTorch model; where the network was not run,
            whether its files are intact.
        text: What it printed, or why it was not run.
        ran: Whether the network was run.
    """

    ok: bool
    text: str
    ran: bool = True

    def __str__(self) -> str:
        return self.text


def verify_bundle(
    folder: str | os.PathLike[str], flags: tuple[str, ...] = ("-O2",)
) -> BundleReport:
    """Let the network of a bundle run its test vector and report what came out.

    A library is compiled, one for GPUs where the driver of one is; elsewhere its files are checked,
    and the report says that it was not run.  ONNX models run by onnxruntime, or by the reference
    evaluator of the package ``onnx`` where that is missing.

    Args:
        folder: The bundle, which is not changed.
        flags: Options for the compiler of a library.

    Raises:
        BundleError: The bundle is damaged, or its source does not compile.
        TargetError: There is no C compiler.
        OptionError: The package ``onnx`` is missing.
    """
    bundle, flags = read_bundle(folder), _FLAGS.words(flags)
    if bundle.manifest["format"] == ONNX:
        return _verify_onnx(bundle)
    if bundle.manifest["format"] == CUDA:
        return _verify_cuda(bundle, flags)
    if bundle.manifest["format"] == PROGRAM:
        return _verify_program(bundle)
    if bundle.manifest["format"] == NIR:
        return _verify_nir(bundle)
    return _verify_library(bundle, flags)


def _verify_onnx(bundle: Bundle) -> BundleReport:
    require_onnx()
    from snncc.export.arrays import UntrustedError
    from snncc.export.onnx.verify import verify

    try:
        return BundleReport(*verify(bundle.folder, bundle.manifest))
    except UntrustedError as error:
        raise damaged(bundle.folder, str(error)) from error


def _verify_program(bundle: Bundle) -> BundleReport:
    from snncc.export.arrays import UntrustedError
    from snncc.export.torch_program.program import replay

    try:
        return BundleReport(*replay(bundle.folder, bundle.name))
    except UntrustedError as error:
        raise damaged(bundle.folder, str(error)) from error


def load_program(folder: str | os.PathLike[str]) -> Any:
    """Return the `torch.export.ExportedProgram` of a bundle of the format ``"pt2"``.

    Nothing in it is unpickled or evaluated; its neurons are compiled at the first call.

    Raises:
        BundleError: It is no such bundle, or damaged.
    """
    from snncc.export.arrays import UntrustedError
    from snncc.export.torch_program.program import load_files

    bundle = read_bundle(folder)
    if bundle.manifest["format"] != PROGRAM:
        raise damaged(bundle.folder, f"it is of format {bundle.manifest['format']}")
    try:
        return load_files(bundle.folder, bundle.name)
    except UntrustedError as error:
        raise damaged(bundle.folder, str(error)) from error


def _verify_nir(bundle: Bundle) -> BundleReport:
    from snncc.export.arrays import UntrustedError
    from snncc.export.nir_files import replay

    try:
        return BundleReport(*replay(bundle.folder, bundle.manifest))
    except UntrustedError as error:
        raise damaged(bundle.folder, str(error)) from error


def require_onnx() -> None:
    """Refuse to go on without the package ``onnx``.

    Raises:
        OptionError: It is missing.
    """
    if importlib.util.find_spec("onnx") is None:
        raise OptionError(
            "ONNX models need the package 'onnx'.",
            code="option.format",
            hints=["Install it: pip install 'snncc[export]'."],
        )


def _verify_cuda(bundle: Bundle, flags: tuple[str, ...]) -> BundleReport:
    """Compile what launches the kernels and run the test program, where there is a GPU."""
    files = f"the hashes of {len(bundle.manifest['files'])} files are those of the manifest"
    driver = driver_library()
    if driver is None:
        reason = "CUDA's driver is not on this machine, so that no kernel was run"
        return BundleReport(True, f"{files}; {reason}", ran=False)
    sources = (f"{bundle.name}.c", f"{bundle.name}_images.c", f"{bundle.name}_weights.c", "main.c")
    ran = _build_and_run(bundle, sources, flags, (str(driver),))
    said = (ran.stdout + ran.stderr).strip()
    if ran.returncode == NO_GPU:
        return BundleReport(True, f"{files}; {said}", ran=False)
    return BundleReport(ran.returncode == 0, said)


def driver_library() -> Path | None:
    """Return the file of CUDA's driver on this machine, or None where there is none."""
    try:
        ctypes.CDLL("libcuda.so.1")
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    files = (line.split(maxsplit=5)[5] for line in maps.splitlines() if "libcuda.so" in line)
    return next((Path(file) for file in files), None)


def _verify_library(bundle: Bundle, flags: tuple[str, ...]) -> BundleReport:
    """Compile a library and run its test program."""
    sources = (f"{bundle.name}.c", f"{bundle.name}_weights.c", "main.c")
    ran = _build_and_run(bundle, sources, flags)
    return BundleReport(ran.returncode == 0, (ran.stdout + ran.stderr).strip())


def _build_and_run(
    bundle: Bundle,
    sources: tuple[str, ...],
    flags: tuple[str, ...],
    libraries: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Compile a test program in a folder of its own, and run it."""
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(prefix="snncc-verify-") as work:
        for name in bundle.manifest["files"]:
            shutil.copyfile(bundle.folder / name, Path(work) / name)
        command = [*compiler.command, "-std=c11", "-ffp-contract=off", *flags, *sources]
        built = _run([*command, *libraries, "-o", "main", "-lm"], work)
        if built.returncode:
            raise BundleError(
                f"The library of '{bundle.folder}' does not compile.",
                code="bundle.compile",
                notes=[" ".join(command), *built.stderr.splitlines()[-20:]],
                hints=["Name another compiler in the environment variable SNNCC_CC."],
            )
        return _run(["./main", "test_vector.bin", f"{bundle.name}.weights"], work)


def _run(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
