"""Read exported ONNX models without trusting them, and run their test vector.

Nothing is executed but the operators that `GraphWriter` writes, by onnxruntime where that is
installed and by the reference evaluator of the package ``onnx`` elsewhere.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import onnx
from google.protobuf.message import DecodeError
from onnx import checker

from snncc.export.onnx.graph import OPERATORS, subgraphs

Arrays: TypeAlias = dict[str, Any]
Runner: TypeAlias = Callable[[Arrays], Arrays]

TOLERANCE = 1e-4  # of the largest value; sums are taken in another order
MOST_STEPS = 1 << 20  # of a test vector
TEST_VECTOR = "test_vector.npz"
START = "start.npz"


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
        vector = read_arrays(folder / TEST_VECTOR)
        inputs = {str(n): (vector[n], _axis(a)) for n, a in manifest["inputs"].items()}
        expected = {str(n): (vector[n], _axis(a)) for n, a in manifest["outputs"].items()}
        states = read_arrays(folder / START)
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
            found = _compared(each, outputs.get(each), wanted)
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


def _compared(name: str, found: Any, wanted: Any) -> Comparison:
    if found is None or found.shape != wanted.shape:
        raise UntrustedError(f"its output '{name}' is not of the shape of the test vector")
    equal = (found == wanted) | (numpy.isnan(found) & numpy.isnan(wanted))
    errors = numpy.where(equal, 0.0, numpy.abs(found.astype(float) - wanted.astype(float)))
    worst = float(errors.max(initial=0.0))
    largest = float(numpy.abs(wanted).max(initial=1.0))
    is_whole = bool(numpy.all(wanted == numpy.round(wanted)))
    is_ok = worst == 0.0 if is_whole else worst <= TOLERANCE * largest
    return Comparison(name, wanted.size, int((~equal).sum()), worst, is_ok)


def read_arrays(path: Path) -> Arrays:
    """Read arrays of numbers from an npz file that holds nothing else.

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
    wrong = [name for name, array in found.items() if array.dtype.kind not in "fi"]
    if wrong:
        raise UntrustedError(f"'{wrong[0]}' in '{path.name}' holds no numbers")
    return found


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
