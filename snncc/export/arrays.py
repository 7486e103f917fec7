"""The test vectors of exports: written, read without trusting them, and compared."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy
from torch import Tensor

Arrays: TypeAlias = dict[str, Any]

TEST_VECTOR = "test_vector.npz"
TOLERANCE = 1e-4  # of the largest value; sums are taken in another order


class UntrustedError(Exception):
    """A file is not what an export writes."""


@dataclass(frozen=True)
class Comparison:
    """What a model gave for one output, beside what PyTorch gave.

    Attributes:
        name: The output.
        values: How many values it has.
        differing: How many differ at all.
        worst: The largest difference.
        is_ok: Whether all are near enough; whole numbers, such as spikes, must be equal.
    """

    name: str
    values: int
    differing: int
    worst: float
    is_ok: bool

    def __str__(self) -> str:
        text = f"{self.name}: {self.values} values, {self.differing} differ, "
        return text + f"largest difference {self.worst:g}"


def compare(name: str, found: Any, wanted: Any) -> Comparison:
    """Compare an output with what PyTorch gave; infinities and NaN have to be where it has them.

    Raises:
        UntrustedError: They are not of one shape.
    """
    if found is None or wanted is None or found.shape != wanted.shape:
        raise UntrustedError(f"its output '{name}' is not of the shape of the test vector")
    found, wanted = found.astype(float), wanted.astype(float)
    equal = (found == wanted) | (numpy.isnan(found) & numpy.isnan(wanted))
    errors = numpy.zeros(wanted.shape)
    numpy.subtract(found, wanted, out=errors, where=~equal)
    worst = float(numpy.abs(errors).max(initial=0.0))
    largest = float(numpy.abs(wanted[numpy.isfinite(wanted)]).max(initial=1.0))
    is_whole = bool(numpy.all(wanted == numpy.round(wanted)))
    is_ok = worst == 0.0 if is_whole else worst <= TOLERANCE * largest
    return Comparison(name, wanted.size, int((~equal).sum()), worst, is_ok)


def archive(arrays: Mapping[str, Tensor]) -> bytes:
    """Return arrays as an npz file; equal arrays give equal bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as entries:
        for name, x in arrays.items():
            entry = io.BytesIO()
            numpy.save(entry, x.detach().cpu().numpy(), allow_pickle=False)
            entries.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getvalue())
    return file.getvalue()


def read_arrays(path: Path, kinds: str = "fi") -> Arrays:
    """Read arrays of numbers from an npz file that holds nothing else.

    Args:
        path: The file.
        kinds: The kinds of numbers that there may be, as numpy calls them.

    Raises:
        UntrustedError: It holds something else.
    """
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise UntrustedError(f"'{path.name}' is compressed")
        with numpy.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise UntrustedError(f"'{path.name}' cannot be read: {error}") from error
    wrong = [name for name, array in found.items() if array.dtype.kind not in kinds]
    if wrong:
        raise UntrustedError(f"'{wrong[0]}' in '{path.name}' holds no numbers")
    return found
