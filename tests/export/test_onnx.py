"""Exported ONNX models compute what the PyTorch model computes, for other sizes too."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import snncc
from snncc.errors import BundleError, OptionError, UnsupportedError
from snncc.export.onnx import verify
from tests.export.networks import NETWORKS, SPIKE, Dense, prepared


def exported(folder: Path, model: nn.Module, *inputs: torch.Tensor, **options: object):
    """Export a model and return its bundle."""
    fast = snncc.compile(model, **options)
    return snncc.export(fast, folder, format="onnx", example_inputs=inputs, name="net")


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """Return a session of onnxruntime that runs a model."""
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def run_sequence(bundle: snncc.Bundle, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Run the model of the whole sequence."""
    session = session_of(bundle.folder / "net.onnx")
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    return [torch.from_numpy(numpy.asarray(y)) for y in found]


def run_steps(bundle: snncc.Bundle, *inputs: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """Run the model of a step, as the documentation says."""
    session = session_of(bundle.folder / "net_step.onnx")
    facts = bundle.manifest
    states = dict(numpy.load(bundle.folder / "start.npz"))
    if "batch" in facts["dynamic"]:
        states = {n: fitted(x, inputs[0], facts) if x.ndim else x for n, x in states.items()}
    seen = []
    for t in range(steps):
        given = {
            n: (x if axis is None else x.select(axis, t)).numpy()
            for (n, axis), x in zip(facts["inputs"].items(), inputs, strict=True)
        }
        names = [value.name for value in session.get_outputs()]
        results = dict(zip(names, session.run(None, {**given, **states}), strict=True))
        states = {n: results[f"{n}.next"] for n in states}
        seen.append(results)
    return [
        torch.from_numpy(seen[-1][n] if a is None else numpy.stack([r[n] for r in seen], a))
        for n, a in facts["outputs"].items()
    ]


def fitted(state, x, facts):
    """Return a start for another batch: its first sample, repeated."""
    axis = next(iter(facts["inputs"].values()))
    size = x.shape[0] if axis is None else x.select(axis, 0).shape[0]
    return numpy.repeat(state[:1], size, 0)


def example(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network and an input with a batch of two: a batch of one says little of others."""
    model, x = prepared(NETWORKS[name])
    return model, torch.cat([x, 1.0 - x], 1) if x.shape[1] == 1 else x


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Export every network once."""
    folder = tmp_path_factory.mktemp("onnx")
    made = {}
    for name, case in NETWORKS.items():
        model, x = example(name)
        made[name] = exported(folder / name, model, x, **case.options)
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_models_agree_with_pytorch(bundles, name):
    """Both models give the outputs of the PyTorch model."""
    case = NETWORKS[name]
    report = snncc.verify_bundle(bundles[name].folder)

    assert report.ok, report
    assert not case.exact or report.text.count(" 0 differ") == len(report.text.splitlines()) - 1
    assert report.text.startswith("run by onnxruntime")


DYNAMIC = {
    "dense": ["time", "batch"],
    "conv": ["time", "batch"],
    "temporal": ["time", "batch"],
    "recurrent": ["time", "batch"],
    "attending": ["time", "batch"],
    "numbered": ["batch"],
    "started": ["time"],
    "static": ["batch"],
    "gated": ["time", "batch"],
    "peeled": ["time", "batch"],
    "cells": ["time", "batch"],
    "layers": ["time", "batch"],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_models_take_other_sizes(bundles, name):
    """Where time or batch is dynamic, other lengths and batches give PyTorch's outputs."""
    case = NETWORKS[name]
    x = example(name)[1]
    shape = list(x.shape)
    dynamic = bundles[name].manifest["dynamic"]
    axis = next(iter(bundles[name].manifest["inputs"].values()))
    if "time" in dynamic:
        shape[axis] += 4
    if "batch" in dynamic:
        shape[0 if axis is None else 1] += 3
    other = torch.rand(shape).mul(8).round().div(8)
    steps = 8 if axis is None else shape[axis]
    with torch.no_grad():
        expected = pytree.tree_leaves(prepared(case)[0](other))

    assert dynamic == DYNAMIC[name]
    for found in (run_sequence(bundles[name], other), run_steps(bundles[name], other, steps=steps)):
        for y, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(y, wanted, rtol=0, atol=0 if case.exact else 1e-5)


def test_batch_of_one_stays_one(tmp_path):
    """A program that was recorded with a single row is not taken for that of several."""
    model, x = prepared(NETWORKS["conv"])

    assert exported(tmp_path / "net", model, x).manifest["dynamic"] == ["time"]


def test_parameters_keep_their_names(bundles):
    """Weights are initializers under the names that the model gives them."""
    model = onnx.load(bundles["dense"].folder / "net_step.onnx")
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    for name, parameter in prepared(NETWORKS["dense"])[0].named_parameters():
        assert numpy.array_equal(found[name], parameter.detach().numpy())


def test_step_is_made_of_few_nodes(bundles):
    """A step multiplies once a layer, and arranges nothing."""
    model = onnx.load(bundles["dense"].folder / "net_step.onnx")
    kinds = [node.op_type for node in model.graph.node if node.op_type != "Identity"]

    assert kinds.count("Gemm") == 3
    assert not {"Squeeze", "Unsqueeze", "Reshape", "Transpose"} & set(kinds)


def test_recurrent_loop_is_one_scan(bundles):
    """The product with the recurrent weights is inside of the scan, the other outside."""
    model = onnx.load(bundles["recurrent"].folder / "net.onnx")
    (scan,) = [node for node in model.graph.node if node.op_type == "Scan"]
    inside = [node.op_type for node in scan.attribute[0].g.node]

    assert [n.op_type for n in model.graph.node].count("MatMul") == 1
    assert inside.count("Gemm") == 1


def test_reference_evaluator_agrees(bundles, monkeypatch):
    """Where onnxruntime is missing, the evaluator of the package onnx takes its place."""
    monkeypatch.setattr(verify, "_runtime", lambda: "the reference evaluator of onnx")
    for name in ("dense", "recurrent", "static"):
        report = snncc.verify_bundle(bundles[name].folder)

        assert report.ok, report
        assert "reference evaluator" in report.text


class BatchFirst(nn.Module):
    """Time is the second axis, in and out; weights in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6).double()

    def forward(self, x, gain):
        v = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        out = []
        for t in range(x.shape[1]):
            v = 0.5 * v + gain * self.layer(x[:, t])
            s = SPIKE(v - 0.25)
            v = v - s
            out.append(s)
        return torch.stack(out, 1)


def test_time_may_be_the_second_axis(tmp_path):
    """A model in double precision with the batch first has its own axes in ONNX."""
    torch.manual_seed(0)
    model, x, gain = BatchFirst(), torch.rand(3, 7, 4).double(), torch.rand(6).double()
    bundle = exported(tmp_path / "net", model, x, gain)
    other = torch.rand(5, 9, 4).double()
    with torch.no_grad():
        expected = model(other, gain)

    assert bundle.manifest["inputs"] == {"x": 1, "gain": None}
    assert bundle.manifest["outputs"] == {"y": 1}
    assert snncc.verify_bundle(bundle.folder).ok
    assert torch.equal(run_sequence(bundle, other, gain)[0], expected)
    assert torch.equal(run_steps(bundle, other, gain, steps=9)[0], expected)


class Named(nn.Module):
    """Inputs that are called what the models call other things; a result that is an input."""

    def forward(self, y, steps):
        v = torch.zeros_like(y[0])
        total = torch.zeros_like(y[0])
        for t in range(y.shape[0]):
            v = 0.5 * v + y[t] * steps["elapsed"]
            total = total + v
        return total / y.shape[0], y


def test_numbers_of_python_follow_the_steps(tmp_path):
    """A model of a step divides by the steps so far where the code divides by its own count."""

    def mean(x):
        v, total, count, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), 0, []
        for x_t in x:
            v = 0.5 * v + x_t
            total, count = total + v, count + 1
            out.append(v)
        return out, total / count, total * (1 / count), total / (count + 1)

    x = torch.rand(9, 2, 4)
    bundle = exported(tmp_path / "net", mean, x)

    _, *expected = mean(x[:4])
    _, *found = run_steps(bundle, x, steps=4)
    torch.testing.assert_close(found, expected)


def test_names_of_inputs_are_kept_apart(tmp_path):
    """No name of an input, output or state is that of another."""
    y, gain = torch.rand(6, 2, 3), torch.rand(3)
    bundle = exported(tmp_path / "net", Named(), y, {"elapsed": gain})
    x = torch.rand(9, 4, 3)
    with torch.no_grad():
        expected = Named()(x, {"elapsed": gain})
    names = [*bundle.manifest["inputs"], *bundle.manifest["outputs"], *bundle.manifest["states"]]

    assert len(set(names)) == len(names)
    assert bundle.manifest["inputs"].keys() >= {"y"}
    for found in (run_sequence(bundle, x, gain), run_steps(bundle, x, gain, steps=9)):
        for out, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)


class Compares(nn.Module):
    """Spikes above, or at and above, a threshold."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict

    def forward(self, x):
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = v + x[t]
            s = (v > 1.0).float() if self.strict else (v >= 1.0).float()
            out.append(s)
        return torch.stack(out)


@pytest.mark.parametrize("strict", [True, False])
def test_comparisons_are_kept(tmp_path, strict):
    """A potential at the threshold fires where the model says 'at least', and only there."""
    x = torch.full((4, 1, 3), 0.5)
    bundle = exported(tmp_path / "net", Compares(strict), x)
    (found,) = run_sequence(bundle, x)

    assert found[:, 0, 0].tolist() == [0.0, float(not strict), 1.0, 1.0]


class Passed(nn.Module):
    """The potential starts from an argument; steps are counted in integers, until a length."""

    def forward(self, x, v, lengths):
        count, out = torch.zeros(x.shape[1], 1, dtype=torch.int64), []
        for x_t in x:
            v = 0.5 * v + x_t * (count < lengths).float()
            s = (v > 0.75).float()
            v = v - s
            count = count + 1
            out.append(s)
        return torch.stack(out), v, count * 2 - lengths


class Embedded(nn.Module):
    """Words, the last of each step on, of three classes, one of which wins a step."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 3)

    def forward(self, words):
        v, out = torch.zeros(words.shape[1], 3), []
        for w in words:
            v = 0.75 * v + F.pad(self.table(w)[:, 1:], (1, 0), value=0.5)
            s = F.one_hot(v.argmax(-1), 3).float() * (v > 0.25)
            v = v - s * F.softplus(v)
            out.append(s)
        return torch.stack(out)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Passed, lambda T, B: (torch.rand(T, B, 4), torch.rand(B, 4), torch.arange(B)[:, None])),
        (Embedded, lambda T, B: (torch.randint(0, 9, (T, B)),)),
    ],
)
def test_integers_and_states_that_are_given(tmp_path, make, inputs):
    """States start from an argument, and integers are inputs, states, rows and results."""
    torch.manual_seed(0)
    model = make().eval()
    bundle = exported(tmp_path / "net", model, *inputs(7, 3))

    assert bundle.manifest["dynamic"] == ["time", "batch"]
    assert snncc.verify_bundle(bundle.folder).ok
    for sizes in ((7, 3), (12, 5)):
        given = inputs(*sizes)
        with torch.no_grad():
            expected = pytree.tree_leaves(model(*given))
        for found in (run_sequence(bundle, *given), run_steps(bundle, *given, steps=sizes[0])):
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_refusal_names_the_line(tmp_path):
    """An operator without a form in ONNX is refused with the user's line."""

    class Sorting(nn.Module):
        def forward(self, x):
            v = torch.zeros_like(x[0])
            out = []
            for t in range(x.shape[0]):
                v = 0.5 * v + torch.sort(x[t], -1).values
                out.append((v > 0.5).float())
            return torch.stack(out)

    with pytest.raises(UnsupportedError, match="'sort' has no form in ONNX") as caught:
        exported(tmp_path / "net", Sorting(), torch.rand(5, 2, 3))

    assert caught.value.code == "unsupported.onnx"
    assert "torch.sort(x[t], -1)" in str(caught.value)
    assert not (tmp_path / "net").exists()


def test_training_mode_is_refused(tmp_path):
    """Dropout draws random numbers, which no exported model does."""
    model = nn.Sequential(nn.Dropout(0.5), Compares(strict=True)).train()

    with pytest.raises(UnsupportedError):
        exported(tmp_path / "net", model, torch.rand(5, 2, 3))


def test_unknown_format_is_refused(tmp_path):
    """The error lists the formats that exist."""
    with pytest.raises(OptionError, match="'cuda', 'onnx'"):
        snncc.export(snncc.compile(Dense()), tmp_path, format="x", example_inputs=())


@pytest.fixture
def damaged(tmp_path):
    """Return a function that replaces a file of a fresh bundle and writes a manifest to match."""
    model, x = prepared(NETWORKS["dense"])
    bundle = exported(tmp_path / "net", model, x)

    def replace(file: str, data: bytes, **facts: object) -> Path:
        (bundle.folder / file).write_bytes(data)
        manifest = {**bundle.manifest, **facts}
        files = dict(manifest["files"])
        files[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps({**manifest, "files": files})
        (bundle.folder / "manifest.json").write_text(text, encoding="utf-8")
        return bundle.folder

    return replace, bundle.folder


def refused(folder: Path) -> str:
    """Return why a bundle is refused."""
    with pytest.raises(BundleError) as caught:
        snncc.verify_bundle(folder)
    assert caught.value.code == "bundle.damaged"
    return str(caught.value)


def test_changed_file_is_refused(damaged):
    """A file that does not have its hash is not read."""
    _, folder = damaged
    data = (folder / "net.onnx").read_bytes()
    (folder / "net.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    assert "was changed" in refused(folder)


def test_truncated_model_is_refused(damaged):
    """Half a model is no model, whatever its hash says."""
    replace, folder = damaged
    data = (folder / "net.onnx").read_bytes()

    assert "net.onnx" in refused(replace("net.onnx", data[: len(data) // 2]))


def test_pickles_are_not_read(damaged):
    """An array of objects would execute code when it is loaded."""
    replace, _ = damaged
    file = io.BytesIO()
    numpy.savez(file, x=numpy.array([{}], dtype=object), y=numpy.zeros(1))

    assert "cannot be read" in refused(replace("test_vector.npz", file.getvalue()))


def test_compressed_arrays_are_not_read(damaged):
    """A small file cannot claim large arrays."""
    replace, _ = damaged
    file = io.BytesIO()
    numpy.savez_compressed(file, x=numpy.zeros((1000, 1000)))

    assert "is compressed" in refused(replace("start.npz", file.getvalue()))


def test_array_beyond_its_file_is_refused(damaged):
    """A header that promises more than the file holds allocates nothing."""
    replace, _ = damaged
    head = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", head.getvalue())

    assert "cannot be read" in refused(replace("start.npz", file.getvalue()))


def changed(folder: Path, change) -> bytes:
    """Return the sequence model of a bundle after a change."""
    model = onnx.load(folder / "net.onnx")
    change(model)
    return model.SerializeToString()


def test_model_that_reads_files_is_refused(damaged):
    """Weights outside of the model could be any file of the machine."""
    replace, folder = damaged

    def outside(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../../etc/hostname"

    assert "net.onnx" in refused(replace("net.onnx", changed(folder, outside)))


def test_foreign_operators_are_refused(damaged):
    """A model has no operators but those that an export writes: no loop without end."""
    replace, folder = damaged

    def foreign(model):
        node = model.graph.node[-1]
        node.CopyFrom(helper.make_node("Softsign", node.input, node.output))

    assert "Softsign" in refused(replace("net.onnx", changed(folder, foreign)))


def test_manifest_of_another_model_is_refused(damaged):
    """Inputs and outputs that the models do not have are an error, no crash."""
    replace, folder = damaged
    vector = (folder / "test_vector.npz").read_bytes()
    for facts in (
        {"inputs": {"z": 0}},
        {"inputs": []},
        {"outputs": {"y": "0"}, "steps": 10**9},
        {"steps": 0},
        {"steps": None},
        {"outputs": {"y": 7}},
        {"inputs": {"x": 1}},
    ):
        refused(replace("test_vector.npz", vector, **facts))


def test_wrong_weights_are_noticed(damaged):
    """A model that runs and computes something else fails the comparison."""
    replace, folder = damaged

    def other(model):
        for tensor in model.graph.initializer:
            if tensor.name == "tau":
                tensor.CopyFrom(numpy_helper.from_array(numpy.zeros(5, numpy.float32), "tau"))

    report = snncc.verify_bundle(replace("net.onnx", changed(folder, other)))

    assert not report.ok
