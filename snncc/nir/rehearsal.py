"""Read a whole HDF5 file, and say why it is none to be read: run in a process of its own.

The HDF5 library trusts its files: a damaged heap can keep it busy for ever, or end the process.
This file is run as a script, by a process that waits for so long and no longer, before the library
sees the file a second time; it imports nothing of the package.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

# Compressed numbers take a thousandth of their size at best.
COMPRESSION = 2000


def reason_against(path: str) -> str:
    """Return why a file is not to be read; nothing where it was read to its end."""
    import h5py

    items: list[tuple[str, Any]] = []
    with h5py.File(path, "r") as file:
        items.append(("/", file["/"]))
        file.visititems(lambda name, item: items.append((name, item)))
        for name, item in items:
            if not _is_here(item, h5py) or h5py.h5o.get_info(item.id).rc > 1:
                return f"'{name}' refers to another place"
        arrays = [item for _, item in items if isinstance(item, h5py.Dataset)]
        size = sum(math.prod(x.shape or ()) * x.dtype.itemsize for x in arrays)
        if size > COMPRESSION * Path(path).stat().st_size:
            return "its arrays are larger than the file can hold"
        for _, item in items:
            dict(item.attrs)
        for array in arrays:
            array[()]
    return ""


def _is_here(item: Any, h5py: Any) -> bool:
    """Tell whether what an item holds is in the file itself."""
    if isinstance(item, h5py.Dataset):
        return not item.external and not item.is_virtual
    return all(isinstance(item.get(key, getlink=True), h5py.HardLink) for key in item)


if __name__ == "__main__":
    try:
        sys.exit(reason_against(sys.argv[1]) or 0)
    except Exception as error:  # whatever a reader says about a file that is no graph
        sys.exit(str(error))
