"""Read exported ONNX models without trusting them, and run their test vector.

Nothing is executed but the operators that `GraphWriter` writes, by onnxruntime where that is
installed and by the reference evaluator of the package ``onnx`` elsewhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import onnx
from google.protobuf.message import DecodeError
from onnx import checker

from snncc.export.arrays import TEST_VECTOR, Arrays, UntrustedError, compare, read_arrays
from snncc.export.onnx.graph import OPERATORS, subgraphs

Runner: TypeAlias = Callable[[Arrays], Arrays]

MOST_STEPS = 1 << 20  # of a test vector
START = "start.npz"


def verify(folder: Path, manifest: Mapping[str, Any]) -> tuple[bool, str]:
    """Run both models of a bundle; return whether they agree with PyTorch, and what came out.

    Args:
        folder: The bundle, its files checked against the manifest.
        manifest: Its manifest.

    Raises:
        UntrustedError: The files are not those of an export, or do not run.
    """
    name = manifest["name"]
    try:
        vector = read_arrays(folder / TEST_VECTOR, "fiub")
        inputs = {str(n): (vector[n], _axis(a)) for n, a in manifest["inputs"].items()}
        expected = {str(n): (vector[n], _axis(a)) for n, a in manifest["outputs"].items()}
        states = read_arrays(folder / START, "fiub")
        steps = int(manifest["steps"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UntrustedError(f"its manifest does not fit its files: {error!r}") from error
    lines = [f"run by {_runtime()}"]
    whole = runner(read_model(folder / f"{name}.onnx"))({n: x for n, (x, _) in inputs.items()})
    step = runner(read_model(folder / f"{name}_step.onnx"))
    results = {f"{name}.onnx": whole}
    results[f"{name}_step.onnx"] = _stepped(step, inputs, expected, states, steps)
    is_ok = True
    for file, outputs in results.items():
        for each, (wanted, _) in expected.items():
            found = compare(each, outputs.get(each), wanted)
            lines.append(f"{file}, {found}")
            is_ok &= found.is_ok
    return is_ok, "\n".join(lines)


def _axis(value: Any) -> int | None:
    return None if value is None else int(value)


def _stepped(
    step: Runner,
    inputs: Mapping[str, tuple[Any, int | None]],
    expected: Mapping[str, tuple[Any, int | None]],
    states: Arrays,
    steps: int,
) -> Arrays:
    """Run one step after another; return the outputs with their time axis, if they have one."""
    if not 0 < steps <= MOST_STEPS:
        raise UntrustedError(f"its test vector has {steps} steps")
    seen: dict[str, list[Any]] = {name: [] for name in expected}
    for t in range(steps):
        try:
            given = {n: x if a is None else numpy.take(x, t, a) for n, (x, a) in inputs.items()}
        except (IndexError, ValueError) as error:
            raise UntrustedError(f"its test vector is too short: {error}") from error
        results = step({**given, **states})
        if any(f"{n}.next" not in results for n in states) or any(n not in results for n in seen):
            raise UntrustedError("its models and its manifest name different outputs")
        states = {n: results[f"{n}.next"] for n in states}
        for name, values in seen.items():
            values.append(results[name])
    try:
        return {
            name: seen[name][-1] if axis is None else numpy.stack(seen[name], axis)
            for name, (_, axis) in expected.items()
        }
    except (IndexError, ValueError) as error:
        raise UntrustedError(
            f"its outputs are not of the shape of the test vector: {error}"
        ) from error


def read_model(path: Path) -> onnx.ModelProto:
    """Read a model that consists of nothing but what an export writes.

    Raises:
        UntrustedError: It is no model, reads other files, or has operators of other kinds.
    """
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
        checker.check_model(model, full_check=True)
    except (OSError, DecodeError, checker.ValidationError, ValueError, RuntimeError) as error:
        raise UntrustedError(f"'{path.name}' is no valid model: {error}") from error
    if len(model.functions) or any(o.domain not in ("", "ai.onnx") for o in model.opset_import):
        raise UntrustedError(f"'{path.name}' has functions of its own")
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_location != onnx.TensorProto.DEFAULT or len(tensor.external_data):
                raise UntrustedError(f"'{path.name}' reads other files")
        for node in graph.node:
            if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
                raise UntrustedError(f"'{path.name}' has a node '{node.op_type}'")
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _graphs(inner)


def _runtime() -> str:
    is_there = importlib.util.find_spec("onnxruntime") is not None
    return "onnxruntime" if is_there else "the reference evaluator of onnx"


def runner(model: onnx.ModelProto) -> Runner:
    """Return a function that runs a model.

    Raises:
        UntrustedError: No runtime takes it.
    """
    names = [value.name for value in model.graph.output]
    try:
        if _runtime() == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        else:
            from onnx.reference import ReferenceEvaluator

            session = ReferenceEvaluator(model)
    except Exception as error:  # runtimes have exceptions of their own
        raise UntrustedError(
            f"'{model.graph.name}' is not taken by {_runtime()}: {error}"
        ) from error

    def run(inputs: Arrays) -> Arrays:
        try:
            return dict(zip(names, session.run(None, inputs), strict=True))
        except Exception as error:
            raise UntrustedError(f"'{model.graph.name}' does not run: {error}") from error

    return run
