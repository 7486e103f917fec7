"""What the figures were measured on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.device.clock import Record

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("snncc", "torch", "triton", "numpy", "spikingjelly", "pytest")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_device(*, rehearsal: bool) -> Record:
    """Return device, versions and date of this run."""
    facts: Record = {
        "rehearsal": rehearsal,
        "device": "cpu" if rehearsal else torch.cuda.get_device_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "commit": _commit(),
        "sources": _sources(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    if not rehearsal:
        properties = torch.cuda.get_device_properties(0)
        facts["processors"] = properties.multi_processor_count
        facts["memory_gib"] = round(properties.total_memory / 2**30, 1)
    return facts


def _version(name: str) -> str | None:
    if name == "snncc":  # it runs from its folder, without being installed
        from snncc.version import __version__

        return __version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sources() -> str:
    """Return a digest of the package's files: a copy of a tree may not be that of its commit."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "snncc").rglob("*.py")):
        digest.update(f"{file.relative_to(ROOT).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
