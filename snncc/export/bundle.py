"""Bundles: exported networks on disk, with a manifest, a test vector and a way to prove them.

A bundle is written whole or not at all.  Reading one checks the size and hash of every file and
executes nothing; `verify_bundle` lets the network run its test vector: it compiles a library, and
gives ONNX models to a runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snncc.errors import BundleError, OptionError
from snncc.runtime.binaries.build import find_compiler

MANIFEST = "manifest.json"
LIBRARY, CUDA, ONNX = "snncc-c-library", "snncc-cuda-library", "snncc-onnx"
PROGRAM = "snncc-torch-program"
FORMATS = (LIBRARY, CUDA, ONNX, PROGRAM)
VERSION = 1
# What the test program of a CUDA library ends with where there is no GPU for it.
NO_GPU = 3
_LARGEST = 1 << 34  # bytes of one file; more is no manifest of ours


@dataclass(frozen=True)
class Bundle:
    """An exported network on disk.

    Attributes:
        folder: Where it is.
        manifest: What its manifest says.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name that everything in the library starts with."""
        return str(self.manifest["name"])

    def __str__(self) -> str:
        facts = self.manifest
        lines = [f"{self.folder}: {', '.join(facts['files'])}"]
        if "weight_bytes" in facts:
            code = facts["code_bytes"]
            lines.append(
                f"{facts['number']}: weights {facts['weight_bytes']:,} bytes, "
                f"states {facts['state_bytes']:,}, work {facts['work_bytes']:,}, "
                f"code {'not measured' if code is None else f'{code:,}'}"
            )
        lines += _differences(facts["mismatch"]) if "mismatch" in facts else []
        return "\n".join(lines)


def _differences(found: Mapping[str, Any]) -> list[str]:
    """Return what a library in whole numbers says of the PyTorch model, as text."""
    spikes = f"{found['differing_spikes']:,} of {found['spikes']:,} spikes differ"
    answers = f"{found['same_answers']} of {found['answers']} answers are the same"
    lines = [f"{found['examples']} examples: {spikes}, {answers}"]
    for name, difference in found["output_difference"].items():
        largest = found["output_largest"][name]
        lines.append(f"output '{name}': largest difference {difference:.3g} of {largest:.3g}")
    if "accuracy" in found:
        right, quantized = found["accuracy"], found["accuracy_quantized"]
        lines.append(f"accuracy {right:.2%}, in whole numbers {quantized:.2%}")
    return lines


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


def write_bundle(
    folder: str | os.PathLike[str],
    files: Mapping[str, bytes],
    facts: Mapping[str, Any],
    format: str = LIBRARY,
) -> Bundle:
    """Write a bundle, replacing an older one.

    Args:
        folder: Where to; it is made, or replaced if it is a bundle.
        files: The files.
        facts: What the manifest says besides.
        format: What kind of bundle it is.

    Raises:
        BundleError: There is something else in the folder, or it cannot be written.
    """
    target = Path(folder)
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(files.items())
    }
    manifest = {"format": format, "version": VERSION, **facts, "files": listed}
    try:
        place = target.resolve() if target.is_symlink() else target
        place.parent.mkdir(parents=True, exist_ok=True)
        with (
            _alone(place.parent),
            tempfile.TemporaryDirectory(dir=place.parent, prefix=".snncc-") as work,
        ):
            _check_place(place)
            made = Path(work) / "bundle"
            made.mkdir()
            for name, data in files.items():
                (made / name).write_bytes(data)
            (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            _replace(place, made)
    except (OSError, ValueError, RuntimeError) as error:  # of the path: NUL, a circle of links
        raise BundleError(
            f"The bundle cannot be written to '{target}'.",
            code="bundle.write",
            notes=[str(error)],
            hints=["Make room, or export to another folder."],
        ) from error
    return Bundle(target, manifest)


def _check_place(place: Path) -> None:
    """Refuse to replace anything but a bundle."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    try:
        is_bundle = json.loads((place / MANIFEST).read_text(encoding="utf-8"))["format"] in FORMATS
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        is_bundle = False
    if not is_bundle:
        raise BundleError(
            f"'{place}' is no bundle and no empty folder.",
            code="bundle.exists",
            hints=["Export to a new folder."],
        )


def _replace(place: Path, made: Path) -> None:
    """Put a folder in the place of another, which comes back should that fail."""
    old = made.with_name("old")
    if place.exists():
        place.rename(old)
    try:
        made.rename(place)
    except BaseException:
        if old.exists():
            old.rename(place)
        raise


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other export writes to a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read a bundle's manifest and check every file against it.

    Raises:
        BundleError: It is no bundle, of another version, or damaged.
    """
    target = Path(folder)
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        known = (manifest["format"], manifest["version"])
        listed = {str(name): dict(facts) for name, facts in manifest["files"].items()}
        own = str(manifest["name"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(target, f"its manifest cannot be read: {error}") from error
    if known not in [(format, VERSION) for format in FORMATS]:
        raise _damaged(target, f"it is of format {known}, which is none of {', '.join(FORMATS)}")
    missing = [file for file in _files_of(known[0], own) if file not in listed]
    if missing or re.fullmatch(r"[A-Za-z_]\w*", own, re.ASCII) is None:
        raise _damaged(target, f"its manifest does not list {[own, *missing][-1]!a}")
    for name, facts in listed.items():
        _check_file(target, name, facts)
    return Bundle(target, manifest)


def _files_of(format: str, name: str) -> tuple[str, ...]:
    """Return the files of a bundle that it is run from."""
    if format == ONNX:
        return (f"{name}.onnx", f"{name}_step.onnx", "start.npz", "test_vector.npz")
    if format == PROGRAM:
        return (f"{name}.pt2", "neurons.json", "test_vector.npz")
    images = (f"{name}_images.c",) if format == CUDA else ()
    sources = (f"{name}.h", f"{name}.c", f"{name}_weights.c", "main.c", *images)
    return (*sources, f"{name}.weights", "test_vector.bin")


def _check_file(folder: Path, name: str, facts: dict[str, Any]) -> None:
    path = folder / name
    try:
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise _damaged(folder, f"{name!a} is missing, or no file of the bundle")
        size = path.stat().st_size
        if size != facts.get("bytes") or size > _LARGEST:
            raise _damaged(folder, f"{name!a} has {size} bytes instead of {facts.get('bytes')!a}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != facts.get("sha256"):
            raise _damaged(folder, f"{name!a} was changed")
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{name[:40]!a} cannot be read: {type(error).__name__}") from error


def _damaged(folder: Path, reason: str) -> BundleError:
    return BundleError(
        f"'{folder}' is not an intact bundle.",
        code="bundle.damaged",
        notes=[reason],
        hints=["Export it again."],
    )


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
    bundle = read_bundle(folder)
    if bundle.manifest["format"] == ONNX:
        return _verify_onnx(bundle)
    if bundle.manifest["format"] == CUDA:
        return _verify_cuda(bundle, flags)
    if bundle.manifest["format"] == PROGRAM:
        return _verify_program(bundle)
    return _verify_library(bundle, flags)


def _verify_onnx(bundle: Bundle) -> BundleReport:
    require_onnx()
    from snncc.export.arrays import UntrustedError
    from snncc.export.onnx.verify import verify

    try:
        return BundleReport(*verify(bundle.folder, bundle.manifest))
    except UntrustedError as error:
        raise _damaged(bundle.folder, str(error)) from error


def _verify_program(bundle: Bundle) -> BundleReport:
    from snncc.export.arrays import UntrustedError
    from snncc.export.torch_program import replay

    try:
        return BundleReport(*replay(bundle.folder, bundle.name))
    except UntrustedError as error:
        raise _damaged(bundle.folder, str(error)) from error


def load_program(folder: str | os.PathLike[str]) -> Any:
    """Return the `torch.export.ExportedProgram` of a bundle of the format ``"pt2"``.

    Nothing in it is unpickled or evaluated; its neurons are compiled at the first call.

    Raises:
        BundleError: It is no such bundle, or damaged.
    """
    from snncc.export.arrays import UntrustedError
    from snncc.export.torch_program import load_files

    bundle = read_bundle(folder)
    if bundle.manifest["format"] != PROGRAM:
        raise _damaged(bundle.folder, f"it is of format {bundle.manifest['format']}")
    try:
        return load_files(bundle.folder, bundle.name)
    except UntrustedError as error:
        raise _damaged(bundle.folder, str(error)) from error


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
