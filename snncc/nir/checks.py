"""Check a graph from elsewhere: numbers that are numbers, sizes that its file can hold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from snncc.arguments import Check
from snncc.errors import OptionError

STEP = Check(
    "The length 'dt' of a step", code="option.nir", hint="Give dt > 0, in seconds: dt=1e-4."
)


def refused(message: str, hint: str = "snncc.from_nir lists what it reads.") -> OptionError:
    """Return the error about a graph that has no serial code."""
    return OptionError(message, code="option.nir", hints=[hint])


def numbers(name: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the numbers of a node as tensors on the CPU.

    Raises:
        OptionError: Some are no real and finite numbers of single precision.
    """
    result = {}
    for key, value in values.items():
        array = numpy.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        if array.dtype.kind not in "biuf":
            raise refused(f"'{key}' of node '{name}' is not made of real numbers.", CHECK)
        wide = array.astype(numpy.float64)
        if array.size == 0:
            raise refused(f"'{key}' of node '{name}' is empty.", CHECK)
        if not bool((numpy.abs(wide) <= numpy.finfo(numpy.float32).max).all()):
            raise refused(f"'{key}' of node '{name}' holds a number that is not finite.", CHECK)
        result[key] = torch.from_numpy(array if array.dtype == numpy.float32 else wide)
    return result


def whole(name: str, key: str, value: Any, *, least: int = 0) -> tuple[int, ...]:
    """Return whole numbers of a node.

    Raises:
        OptionError: Some are none, or too small.
    """
    found = numbers(name, {key: value})[key].flatten().tolist()
    if not found or any(n != int(n) or n < least for n in found):
        raise refused(f"'{key}' of node '{name}' is not made of whole numbers from {least}.", CHECK)
    return tuple(int(n) for n in found)


def common_size(name: str, values: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the shape that the numbers of a node share; None where one of each holds for all.

    Raises:
        OptionError: They have several shapes, or are empty.
    """
    sizes = {tuple(value.shape) for value in values.values() if value.numel() != 1}
    if len(sizes) > 1 or any(0 in size for size in sizes):
        shapes = ", ".join(f"'{key}' {list(value.shape)}" for key, value in values.items())
        raise refused(f"The numbers of node '{name}' do not fit together: {shapes}.", CHECK)
    return sizes.pop() if sizes else None


def check_file(path: Path) -> None:
    """Refuse a file that does not hold what it says, after it was read in a process of its own.

    Raises:
        OptionError: Its arrays could not have been written into a file of its size, lie elsewhere,
            or are there twice; or reading it does not end, or ends the process.
    """
    command = [sys.executable, "-P", str(_REHEARSAL), str(path.absolute())]
    try:
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise refused(
            f"'{path}' is no intact file: reading it takes more than {_SECONDS} seconds.", _ANEW
        ) from error
    if ran.returncode:
        said = ran.stderr.strip().rsplit("\n", 1)[-1] or "reading it ends the process"
        raise refused(f"'{path}' cannot be read as a NIR graph: {said[:500]}.", _ANEW)


_REHEARSAL = Path(__file__).with_name("rehearsal.py")
_SECONDS = 60
_ANEW = "Write it anew."
CHECK = "Check the graph: nir.NIRGraph(..., type_check=True) does."
