"""Arguments of public functions: whatever is given, the answer is an error of snncc or none."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import snncc
from snncc.arguments import Check, shown
from snncc.errors import BundleError, LaunchError, OptionError, SnnccError, UnsupportedError
from snncc.nn import LIF
from snncc.options import Options

CHECK = Check("The value", code="option.unknown", hint="Give another.")


class _Hostile:
    """An object that refuses to be shown, compared, hashed or asked whether it is true."""

    __hash__ = None

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("hostile")

    __repr__ = __eq__ = __bool__ = __len__ = _refuse


VALUES = [
    *(None, True, -1, 0, 3, 10**400, 2.5, math.nan, math.inf, 1j),
    *("", "none", "a\0b", "\udc80", "x" * 3000, b"c", [], ["c"], (1, "b"), {"a": 1}, {1}, [[1]]),
    *(numpy.int64(2), numpy.float32(0.5), numpy.bool_(True), numpy.ones(3)),
    *(torch.ones(3), torch.tensor(2), torch.float32, int, len, object(), _Hostile()),
]
X = torch.randn(4, 2, 3)


@pytest.fixture(scope="module")
def fast() -> snncc.CompiledModule:
    return snncc.compile(LIF(), example_inputs=(X,))


def refused(call: Callable[[Any], Any], value: Any) -> SnnccError | None:
    """Return the error that a value leads to, None where it is taken."""
    try:
        call(value)
    except SnnccError as error:
        return error
    return None


@pytest.mark.parametrize("name", Options.__dataclass_fields__)
def test_options_are_checked(name: str) -> None:
    """An option takes a value or refuses it; the error shows what is wrong and what to do."""
    refusals = [refused(lambda v: Options(**{name: v}), value) for value in VALUES]

    assert any(refusals)
    assert all(error.hints and error.code.startswith("option.") for error in refusals if error)


def export(fast: Any = None, **options: Any) -> None:
    """Export with one option out of place; no format of that name is written."""
    given = {"folder": "out", "format": "none", "example_inputs": (X,)} | options
    snncc.export(fast, given.pop("folder"), **given)


def no_arguments(value: Any) -> Any:
    """Return a value that is no series of arguments; what a model says of those is its own."""
    return {} if value is None or isinstance(value, (list, tuple)) else value


ENTRIES: dict[str, Callable[[snncc.CompiledModule, Any], Any]] = {
    "compile": lambda fast, v: snncc.compile(v),
    "compile, example": lambda fast, v: snncc.compile(LIF(), example_inputs=no_arguments(v)),
    "explain, options": lambda fast, v: snncc.explain(LIF(), X, options=v),
    "explain, file": lambda fast, v: snncc.explain(fast, X).save(v),
    "verify, model": lambda fast, v: callable(v) or snncc.verify(v, fast, X),
    "verify, fast": lambda fast, v: snncc.verify(LIF(), v, X),
    "verify, seed": lambda fast, v: snncc.verify(LIF(), fast, X, seed=v),
    "verify, gradients": lambda fast, v: snncc.verify(LIF(), fast, X, gradients=v),
    "export, fast": lambda fast, v: export(v, format="c"),
    "export, folder": lambda fast, v: export(fast, folder=v),
    "export, format": lambda fast, v: export(fast, format=v),
    "export, name": lambda fast, v: export(fast, name=v),
    "export, arch": lambda fast, v: export(fast, arch=v),
    "export, dt": lambda fast, v: export(fast, dt=v),
    "export, arithmetic": lambda fast, v: export(fast, arithmetic=v),
    "export, example": lambda fast, v: export(fast, format="c", example_inputs=no_arguments(v)),
    "quantization": lambda fast, v: snncc.Quantization(v),
    "quantization, examples": lambda fast, v: snncc.Quantization(examples=v),
    "quantization, labels": lambda fast, v: snncc.Quantization(labels=v),
    "quantization, label": lambda fast, v: snncc.Quantization(labels=[v]),
    "bundle": lambda fast, v: snncc.verify_bundle(v),
    "program": lambda fast, v: snncc.load_program(v),
    "from_nir": lambda fast, v: snncc.from_nir(v),
    "from_nir, dt": lambda fast, v: snncc.from_nir("no graph", dt=v),
    "from_nir, surrogate": lambda fast, v: snncc.from_nir("no graph", surrogate=v),
    "to_nir": lambda fast, v: snncc.to_nir(v, X),
    "to_nir, dt": lambda fast, v: snncc.to_nir(fast, X, dt=v),
    "stream, step": lambda fast, v: fast.stream(X)(v),
    "stream, chunk": lambda fast, v: fast.stream(X).chunk(v),
    "stream, mask": lambda fast, v: fast.stream(X).reset(v),
    "stream, state": lambda fast, v: fast.stream(X).load_state(v),
    "stream, steps": lambda fast, v: fast.stream(X).load_state({"neuron1.v": X[0]}, v),
    "stream, save": lambda fast, v: fast.stream(X).save(v),
    "stream, load": lambda fast, v: fast.stream(X).load(v),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_public_functions_are_checked(
    entry: str, fast: snncc.CompiledModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public function raises an error of snncc for what it cannot take, and never another."""
    monkeypatch.chdir(tmp_path)

    refusals = [refused(lambda v: ENTRIES[entry](fast, v), value) for value in VALUES]

    assert any(refusals)
    assert all(error.hints for error in refusals if error)


def test_a_class_is_no_model() -> None:
    """The class of a module, passed for a module, is named."""
    with pytest.raises(OptionError, match="the class 'LIF' itself"):
        snncc.compile(LIF)


def test_values_are_converted() -> None:
    """What is meant the same is the same: numpy's numbers, lists, whole numbers for fractions."""
    given = Options(mode="fpt", sweeps=numpy.int64(2), schedule=[2, 6], num_threads=numpy.int8(3))

    assert given == Options(mode="fpt", sweeps=2, schedule=(2.0, 6.0), num_threads=3)
    assert type(given.sweeps) is int
    assert type(given.schedule) is tuple
    assert CHECK.positive(Fraction(1, 4)) == 0.25
    assert CHECK.words("one") == ("one",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (_Hostile(), "hostile"),
        ("x" * 3000, "xxx ..."),
        (torch.ones(40, 40), "tensor([[1., 1., 1."),
    ],
    ids=["hostile", "long", "tensor"],
)
def test_any_value_is_shown(value: object, text: str) -> None:
    """A message shows a value in less than a line, whatever its class does."""
    found = shown(value)

    assert text in found.lower()
    assert len(found) <= 60
    assert "\n" not in found


def test_a_state_replaces_no_device(fast: snncc.CompiledModule, tmp_path: Path) -> None:
    """A state is written to a file, and to nothing else that is there."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with pytest.raises(BundleError, match="cannot be written"):
        fast.stream(X).save(pipe)

    assert pipe.is_fifo()


def test_a_step_of_other_sizes_is_explained() -> None:
    """A first step that torch refuses leaves a stream as it was."""
    stream = snncc.compile(nn.Sequential(nn.Linear(3, 5), LIF())).stream(X)

    with pytest.raises(LaunchError, match=r"'input' is \[1, 2, 4\]"):
        stream(torch.ones(2, 4))

    assert stream(X[0]).shape == (2, 5)


@pytest.mark.parametrize(
    "trace",
    [
        lambda fast: torch.jit.trace(fast, X),
        lambda fast: torch.onnx.export(fast, (X,), io.BytesIO(), dynamo=False),
    ],
    ids=["jit", "onnx"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_is_refused(trace: Callable[[Any], Any], fast: snncc.CompiledModule) -> None:
    """A trace would hold buffers that no kernel writes to: it is refused, not returned."""
    with pytest.raises(UnsupportedError, match="format='pt2'") as caught:
        trace(fast)

    assert caught.value.code == "unsupported.jit-trace"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["parameter", "sparse", "nested"])
def test_kinds_of_tensors(kind: str) -> None:
    """A parameter is an input like any other; what has no memory or no sizes is refused."""
    fast = snncc.compile(LIF(), example_inputs=(X,))
    if kind == "parameter":
        given = nn.Parameter(X.clone())
        fast(given).sum().backward()
        expected = nn.Parameter(X.clone())
        LIF()(expected).sum().backward()

        assert torch.equal(given.grad, expected.grad)
        assert fast(nn.Parameter(X[:2])).shape == (2, 2, 3)
        return
    given = X.to_sparse() if kind == "sparse" else torch.nested.nested_tensor([X[0], X[1]])

    with pytest.raises(UnsupportedError) as caught:
        fast(given)

    assert caught.value.code == "unsupported.tensor-kind"
