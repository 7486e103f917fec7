"""Exported programs of torch: what they compute, and what is refused before torch reads it."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import subprocess
import sys
import warnings
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import snncc
from snncc.errors import BundleError, UnsupportedError
from snncc.ir.plain import from_plain, to_plain
from snncc.ir.program import Place
from snncc.nn import LIF, AdaptiveLIF, CubaLIF
from snncc.runtime.neuron import find_neuron
from tests.neuron_programs import lif
from tests.recurrent_models import N, OwnSpikes

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Two layers and a rate, one neuron with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 4)
        self.hidden, self.last = LIF(0.9), LIF(learnable=True)

    def forward(self, x):
        return self.last(self.second(self.hidden(self.first(x)))).mean(0)


class Begun(nn.Module):
    """Batch first; the state is None at first, and a second input is there at each step."""

    def forward(self, x, more):
        v, out = None, []
        for t in range(x.shape[1]):
            h = x[:, t] + more[:, t]
            v = h * 0.5 if v is None else 0.75 * v + h
            s = (v > 1.0).float()
            v = v - s
            out.append(s)
        return torch.stack(out, 1), v


class BothWays(nn.Module):
    """No stream: one loop runs from the last step to the first, and all steps attend to all."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 5)

    def forward(self, x):
        scores = self.mix(x).transpose(0, 1)
        seen = (scores @ scores.transpose(1, 2) @ scores).transpose(0, 1)
        ahead, back, v, w = [], [], torch.zeros_like(x[0]), torch.zeros_like(x[0])
        for t in range(len(x)):
            v = 0.5 * v + seen[t]
            ahead.append((v > 1.0).float())
            v = v - ahead[-1]
        for t in range(len(x) - 1, -1, -1):
            w = 0.5 * w + x[t]
            back.append((w > 1.0).float())
            w = w * (1.0 - back[-1])
        return torch.stack(ahead), torch.stack(back[::-1])


Spikes = namedtuple("Spikes", ["s", "v"])


class Kept(nn.Module):
    """The potential is an attribute that calls leave behind; the results are a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.v = torch.zeros(())

    def forward(self, x):
        out = []
        for x_t in x:
            self.v = 0.5 * self.v + x_t
            out.append((self.v > 1.0).float())
            self.v = self.v - out[-1]
        x.zero_()
        return Spikes(torch.stack(out), self.v)


# Models, what they are given, and the axes that are free in their programs.
MODELS = {
    "net": (Net, [(9, 3, 12)], {"time": 0, "batch": 1}),
    "adaptive": (lambda: AdaptiveLIF(learnable=True), [(6, 2, 5)], {"time": 0, "batch": 1}),
    "current": (lambda: CubaLIF(), [(6, 2, 5)], {"time": 0, "batch": 1}),
    "recurrent": (OwnSpikes, [(4, 3, N)], {"batch": 1}),
    "single": (Net, [(9, 1, 12)], {"time": 0}),
    "begun": (Begun, [(3, 7, 5), (3, 7, 5)], {"time": 1, "batch": 0}),
    "both": (BothWays, [(9, 3, 5)], {"time": 0, "batch": 1}),
    "kept": (Kept, [(9, 3, 5)], {"time": 0, "batch": 1}),
    "same": (Begun, [(6, 6, 5), (6, 6, 5)], {"time": 1, "batch": 0}),
}


def sized(shapes, free, sizes):
    """Return inputs of the shapes, their free axes of other sizes."""
    axes = {axis: sizes[name] for name, axis in free.items() if name in sizes}
    return [torch.rand([axes.get(d, n) for d, n in enumerate(shape)]) * 2 for shape in shapes]


def export(name: str, folder: Path) -> tuple[snncc.Bundle, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shapes, _ = MODELS[name]
    model, inputs = make().eval(), sized(shapes, {}, {})
    fast = snncc.compile(model)
    bundle = snncc.export(
        fast, folder / name, format="pt2", example_inputs=tuple(inputs), name="net"
    )
    return bundle, model, inputs


@pytest.mark.parametrize("name", MODELS)
def test_program_is_the_model(tmp_path, name):
    """A program that was written and read computes what the model does, in other sizes too."""
    _, shapes, free = MODELS[name]
    bundle, model, _ = export(name, tmp_path)
    module = snncc.load_program(bundle.folder).module()

    assert bundle.manifest["dynamic"] == list(free)
    assert bundle.manifest["format"] == "snncc-torch-program"
    assert snncc.verify_bundle(bundle.folder).ok
    for sizes in ({}, {"time": 1, "batch": 1}, {"time": 2, "batch": 7}, {"time": 40, "batch": 40}):
        inputs = sized(shapes, free, sizes)
        expected = copy.deepcopy(model)(*[x.clone() for x in inputs])
        with torch.no_grad():
            pairs = zip(tree_leaves(module(*inputs)), tree_leaves(expected), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), sizes


def test_an_export_leaves_nothing_behind(tmp_path):
    """Not in the model, nor in the example, and torch has nothing to warn of."""
    model, x = Kept(), torch.ones(9, 3, 5)
    fast = snncc.compile(model)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        snncc.export(fast, tmp_path / "kept", format="pt2", example_inputs=(x,))

    assert [str(each.message) for each in found if each.category is UserWarning] == []
    assert model.v.shape == ()
    assert bool((x == 1.0).all())


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("single", [(9, 5, 12)]),
        ("recurrent", [(5, 3, N)]),
        ("begun", [(3, 7, 5), (3, 5, 5)]),
        ("begun", [(3, 7, 5), (1, 7, 5)]),
    ],
)
def test_sizes_that_are_not_free_are_refused(tmp_path, name, shapes):
    """Another size than the example's where that is not free, or inputs that differ in one."""
    module = snncc.load_program(export(name, tmp_path)[0].folder).module()
    with pytest.raises((AssertionError, RuntimeError)):
        module(*sized(shapes, {}, {}))


def test_operators_of_a_program_are_sound(tmp_path):
    """torch's checks of an operator pass for those that a program calls."""
    bundle, _, _ = export("net", tmp_path)
    program = snncc.load_program(bundle.folder)
    nodes = [n for n in program.graph.nodes if "neuron_forward" in str(n.target)]
    assert len(nodes) == 2
    for node in nodes:
        key = node.args[2]
        lanes = [torch.rand(())] * len(find_neuron(key).program.forward.lane_inputs)
        arguments = ([torch.rand(9, 3, 4)], lanes, key, 9, False)

        torch.library.opcheck(torch.ops.snncc.neuron_forward.default, arguments)


def test_another_process_reads_a_program(tmp_path):
    """Nothing of the process that wrote it is needed."""
    bundle, _, _ = export("net", tmp_path)
    code = f"""
import snncc, torch
assert snncc.verify_bundle({str(bundle.folder)!r}).ok
module = snncc.load_program({str(bundle.folder)!r}).module()
assert module(torch.ones(31, 5, 12)).shape == (5, 4)
"""

    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("program", [lif(), lif(Place.MEMORY, saved=("h", "fire"))])
def test_neurons_are_plain_data(program):
    """A neuron is read back as it was, through JSON."""
    assert from_plain(json.loads(json.dumps(to_plain(program)))) == program


@pytest.mark.parametrize(
    "data",
    [
        None,
        {
            "class": "Let",
            "fields": {"name": "x", "expr": {"class": "Var", "fields": {"name": "y"}}},
        },
        {"class": "Path", "fields": {}},
        {"class": "Var", "fields": {"name": "x */ evil"}},
        {"class": "Var", "fields": {"label": "x"}},
        {"dtype": "os.system"},
    ],
)
def test_other_data_is_no_neuron(data):
    """Other classes, fields and names than those of a neuron are refused."""
    with pytest.raises(ValueError, match=r"no neuron program|no name|no such fields"):
        from_plain(data)


def changed(bundle: snncc.Bundle, part: str, change) -> None:
    """Change a part of an archive, and the manifest with it."""
    file = bundle.folder / "net.pt2"
    out = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith(part) else data)
        if part.startswith("+"):
            new.writestr(f"net/{part[1:]}", change(b""))
    file.write_bytes(out.getvalue())
    path = bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    manifest["files"]["net.pt2"] = {"bytes": len(out.getvalue()), "sha256": digest}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("weights_config.json", lambda d: d.replace(b"false", b"true"), "unpickling"),
        ("model.pt", lambda d: b"\x80\x02.", "example inputs"),
        (
            "model.json",
            lambda d: d.replace(b"aten.linear", b"evil.linear"),
            "calls 'torch.ops.evil",
        ),
        ("model.json", lambda d: d.replace(b'"guards_code": []', b'"guards_code": ["x"]'), "evalu"),
        ("model.json", lambda d: d.replace(b"Symbol(", b"print(", 1), "evaluated"),
        ("model.json", lambda d: b"[" * 100000, "cannot be read"),
        ("+data/constants/opaque_obj_0", lambda d: b"x", "holds"),
        ("+data/extra/x.json", lambda d: b"{}", "holds"),
    ],
)
def test_archives_that_would_run_something_are_refused(tmp_path, part, change, said):
    """What torch's loader would unpickle or evaluate never reaches it."""
    bundle, _, _ = export("net", tmp_path)
    changed(bundle, part, change)
    with pytest.raises(BundleError, match="not an intact bundle") as error:
        snncc.load_program(bundle.folder)

    assert said in str(error.value)


def test_a_neuron_under_another_key_is_refused(tmp_path):
    """A bundle cannot put a neuron of its own in the place of another."""
    bundle, _, _ = export("net", tmp_path)
    path, listed = bundle.folder / "neurons.json", bundle.folder / "manifest.json"
    first, second = json.loads(path.read_text()).items()
    path.write_text(json.dumps({first[0]: second[1], second[0]: first[1]}))
    manifest = json.loads(listed.read_text())
    data = path.read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"]["neurons.json"] = entry
    listed.write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as error:
        snncc.verify_bundle(bundle.folder)

    assert "another key" in str(error.value)


def test_other_bundles_are_no_programs(tmp_path):
    """A C library is no program."""
    fast = snncc.compile(LIF(0.9))
    bundle = snncc.export(fast, tmp_path / "c", example_inputs=(torch.rand(4, 1, 3),))
    with pytest.raises(BundleError, match="intact"):
        snncc.load_program(bundle.folder)


class Noisy(nn.Module):
    def forward(self, x):
        return (x + torch.rand_like(x)).cumsum(0)


def test_what_computes_something_else_is_refused(tmp_path):
    """A model whose outputs a program does not repeat has none."""
    fast = snncc.compile(Noisy())
    with pytest.raises(UnsupportedError) as error:
        snncc.export(fast, tmp_path / "n", format="pt2", example_inputs=(torch.rand(4, 1, 3),))

    assert error.value.code in ("unsupported.export", "unsupported.no-time-loop")
