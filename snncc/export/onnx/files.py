"""The files of an exported ONNX bundle, and what its manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from torch import Tensor

from snncc.export.arrays import TEST_VECTOR, archive
from snncc.export.onnx.graph import IR_VERSION, OPSET
from snncc.export.onnx.model import Models
from snncc.export.onnx.verify import START

NUMERICS = (
    "each elementwise operation rounds once, in the order of the model, unless the runtime fuses;"
    " sums of products, exponentials and their like are those of the runtime"
)


def onnx_files(
    models: Models, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> dict[str, bytes]:
    """Return the files: both models, the states to start from, and the test vector.

    Args:
        models: The models.
        name: What they are called.
        inputs: The inputs of the example, in order.
        outputs: What the PyTorch model returns for them.
    """
    vector = dict(zip(models.inputs, inputs, strict=True))
    vector |= dict(zip(models.outputs, outputs, strict=True))
    return {
        f"{name}.onnx": models.sequence.SerializeToString(deterministic=True),
        f"{name}_step.onnx": models.step.SerializeToString(deterministic=True),
        TEST_VECTOR: archive(vector),
        START: archive(models.states),
    }


def onnx_facts(models: Models) -> dict[str, Any]:
    """Return what the manifest says of the models: for each input and output its time axis."""
    return {
        "onnx": onnx.__version__,
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "numerics": NUMERICS,
        "dynamic": list(models.dynamic),
        "inputs": models.inputs,
        "outputs": models.outputs,
        "states": {n: list(x.shape) for n, x in models.states.items()},
    }
