"""The files of a network in the Neuromorphic Intermediate Representation, and its proof.

The graph is read back as `snncc.from_nir` reads it, and runs the test vector.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import OptionError
from snncc.export.arrays import TEST_VECTOR, UntrustedError, archive, compare, read_arrays
from snncc.nir.from_nir import from_nir

NUMERICS = (
    "one step of forward Euler a time step, spikes above the threshold, reset in the same step;"
    " sums in the order of the reader"
)


def nir_files(
    graph: Any, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> dict[str, bytes]:
    """Return the files: the graph as HDF5, and the test vector.

    Args:
        graph: A ``nir.NIRGraph``.
        name: What it is called.
        inputs: The inputs of the example, time and batch first.
        outputs: What the PyTorch model returns for them, time and batch first.
    """
    import nir

    vector = {f"input_{i}": x for i, x in enumerate(inputs)}
    vector |= {f"output_{i}": y for i, y in enumerate(outputs)}
    with tempfile.TemporaryDirectory(prefix="snncc-nir-") as folder:
        path = Path(folder) / "graph.nir"
        nir.write(path, graph)
        return {f"{name}.nir": path.read_bytes(), TEST_VECTOR: archive(vector)}


def nir_facts(graph: Any, dt: float) -> dict[str, Any]:
    """Return what the manifest says of a graph: its nodes, and the length of a step in seconds."""
    import nir

    return {
        "nir": nir.version,
        "dt": float(dt),
        "numerics": NUMERICS,
        "nodes": {str(name): type(node).__name__ for name, node in graph.nodes.items()},
    }


def replay(folder: Path, manifest: Mapping[str, Any]) -> tuple[bool, str]:
    """Run a graph's test vector; tell whether its outputs are those of the model.

    Raises:
        UntrustedError: The files are not those of an export, or do not run.
    """
    name, dt = manifest["name"], manifest.get("dt")
    if not isinstance(dt, float):
        raise UntrustedError(f"its manifest says no length of a step but {dt!r}")
    values = read_arrays(folder / TEST_VECTOR)
    inputs = [torch.from_numpy(x) for key, x in values.items() if key.startswith("input_")]
    try:
        model = from_nir(folder / f"{name}.nir", dt=dt)
        with torch.no_grad():
            found = pytree.tree_leaves(model.to(inputs[0].dtype)(*inputs))
    except OptionError as error:
        raise UntrustedError(f"its graph cannot be read: {error.message}") from error
    except Exception as error:  # torch raises what it likes where sizes do not fit
        raise UntrustedError(f"its graph does not run: {error}") from error
    pairs = {f"output_{i}": y for i, y in enumerate(found)}
    results = [compare(key, y.numpy(), values.get(key)) for key, y in pairs.items()]
    is_ok = all(result.is_ok for result in results)
    verdict = "the network of the model" if is_ok else "NOT the network of the model"
    return is_ok, "\n".join([*map(str, results), verdict])
