"""The size of a library: its weights, the memory of a network, and its code as compiled here."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snncc.errors import TargetError
from snncc.export.c.library import Numbers
from snncc.export.network.nodes import Network
from snncc.runtime.binaries.build import find_compiler


def footprint(
    network: Network, numbers: Numbers, files: Mapping[str, bytes], name: str
) -> dict[str, Any]:
    """Return bytes: of the weights, of the states, of what a step needs besides, of the code.

    Args:
        network: The network.
        numbers: Its numbers in the library.
        files: The files of the library.
        name: Its name.
    """
    states = sum(state.size for state in network.states)
    size = int(numbers.dtype[-1])
    return {
        "weight_bytes": numbers.weights.size * numbers.weights.count,
        "state_bytes": size * states,
        "work_bytes": size * numbers.memory.work + numbers.extra_bytes,
        "code_bytes": code_bytes(files, name),
    }


def code_bytes(files: Mapping[str, bytes], name: str) -> int | None:
    """Return the size of the code and its tables, optimised for size for this machine.

    None where there is no compiler, or no program ``size`` beside it.
    """
    try:
        compiler = find_compiler()
    except TargetError:
        return None
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix="snncc-size-") as work:
        for ending in (".h", ".c"):
            (Path(work) / f"{name}{ending}").write_bytes(files[f"{name}{ending}"])
        command = [*compiler.command, "-std=c11", "-ffp-contract=off", "-Os", "-c", f"{name}.c"]
        if _output(command, work) is None:
            return None
        printed = _output(["size", f"{name}.o"], work)
        found = (printed or "").split("\n")[1:2]
        text = found[0].split()[:1] if found else []
        return int(text[0]) if text and text[0].isdigit() else None
    return None  # there is no room for it


def _output(command: list[str], folder: str) -> str | None:
    """Return what a command prints, or None if it fails."""
    try:
        ran = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except OSError:
        return None
    return ran.stdout if ran.returncode == 0 else None
