"""Bundles: exported networks on disk, with a manifest and a test vector.

A bundle is written whole or not at all.  Reading one checks the size and hash of every file and
executes nothing; `snncc.export.replay` lets its network run the test vector.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snncc.arguments import Check
from snncc.errors import BundleError

MANIFEST = "manifest.json"
LIBRARY, CUDA, ONNX = "snncc-c-library", "snncc-cuda-library", "snncc-onnx"
PROGRAM, NIR = "snncc-torch-program", "snncc-nir"
FORMATS = (LIBRARY, CUDA, ONNX, PROGRAM, NIR)
VERSION = 1
_FOLDER = Check("The folder of a bundle", code="option.bundle", hint="Name what 'export' wrote.")
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
        OptionError: It is no path.
        BundleError: It is no bundle, of another version, or damaged.
    """
    target = _FOLDER.path(folder)
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        known = (manifest["format"], manifest["version"])
        listed = {str(name): dict(facts) for name, facts in manifest["files"].items()}
        own = str(manifest["name"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(target, f"its manifest cannot be read: {error}") from error
    if known not in [(format, VERSION) for format in FORMATS]:
        raise damaged(target, f"it is of format {known}, which is none of {', '.join(FORMATS)}")
    missing = [file for file in _files_of(known[0], own) if file not in listed]
    if missing or re.fullmatch(r"[A-Za-z_]\w*", own, re.ASCII) is None:
        raise damaged(target, f"its manifest does not list {[own, *missing][-1]!a}")
    for name, facts in listed.items():
        _check_file(target, name, facts)
    return Bundle(target, manifest)


def _files_of(format: str, name: str) -> tuple[str, ...]:
    """Return the files of a bundle that it is run from."""
    if format == ONNX:
        return (f"{name}.onnx", f"{name}_step.onnx", "start.npz", "test_vector.npz")
    if format == PROGRAM:
        return (f"{name}.pt2", "neurons.json", "test_vector.npz")
    if format == NIR:
        return (f"{name}.nir", "test_vector.npz")
    images = (f"{name}_images.c",) if format == CUDA else ()
    sources = (f"{name}.h", f"{name}.c", f"{name}_weights.c", "main.c", *images)
    return (*sources, f"{name}.weights", "test_vector.bin")


def _check_file(folder: Path, name: str, facts: dict[str, Any]) -> None:
    path = folder / name
    try:
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise damaged(folder, f"{name!a} is missing, or no file of the bundle")
        size = path.stat().st_size
        if size != facts.get("bytes") or size > _LARGEST:
            raise damaged(folder, f"{name!a} has {size} bytes instead of {facts.get('bytes')!a}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != facts.get("sha256"):
            raise damaged(folder, f"{name!a} was changed")
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{name[:40]!a} cannot be read: {type(error).__name__}") from error


def damaged(folder: Path, reason: str) -> BundleError:
    """Return the error of a bundle that is not what an export writes."""
    return BundleError(
        f"'{folder}' is not an intact bundle.",
        code="bundle.damaged",
        notes=[reason],
        hints=["Export it again."],
    )
