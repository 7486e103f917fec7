"""Exports of unkind names and values, into unkind folders, and bundles that were tampered with."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import subprocess
import threading
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import snncc
from snncc.errors import BundleError, OptionError
from snncc.export.arrays import UntrustedError, compare
from snncc.export.bundle import ONNX, write_bundle
from snncc.export.c.footprint import code_bytes
from snncc.export.names import is_library_name, parameter_name
from snncc.export.torch_program.archive import check_archive, is_size

STRICT = ("-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow")
X = torch.rand(5, 1, 3)


class Words(nn.Module):
    """Its inputs are called like outputs, keywords, macros and variables of a library."""

    def forward(self, y, register, steps, h, total, state_v, n_inputs, class_):
        v = V = torch.zeros_like(y[0])  # noqa: N806
        out = []
        for t in range(y.shape[0]):
            v = 0.5 * v + y[t] + register[t] + steps[t] + h[t].sum(-1, keepdim=True)
            new = 0.25 * V + v + total[t] + state_v[t]
            V = new + n_inputs[t].mean(-1, keepdim=True)  # noqa: N806
            out.append((V - class_[t] > 1).float())
        return torch.stack(out), V


class Rate(nn.Module):
    """A layer and its threshold; the last potential is an output."""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        self.layer, self.threshold = nn.Linear(3, 4), threshold

    def forward(self, x):
        v = x.new_zeros(x.shape[1], 4)
        for x_t in x:
            v = 0.5 * v + self.layer(x_t)
            v = v - (v > self.threshold).to(v.dtype) * self.threshold
        return v


def export(folder: Path, **options) -> snncc.Bundle:
    torch.manual_seed(0)
    return snncc.export(snncc.compile(Rate().eval()), folder, example_inputs=(X,), **options)


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
def test_names_mean_one_thing(tmp_path, arithmetic):
    """Inputs, outputs, states and macros of one name get different ones, in C and in C++."""
    inputs = tuple(torch.rand(5, 1, 3) for _ in range(8))
    bundle = snncc.export(
        snncc.compile(Words()), tmp_path / "b", example_inputs=inputs, arithmetic=arithmetic
    )

    report = snncc.verify_bundle(bundle.folder, flags=STRICT)
    assert report.ok, report
    assert [*bundle.manifest["inputs"]][:5] == ["y", "register_", "steps_", "h_", "total_"]
    macros = [line.split()[1] for line in (bundle.folder / "network.h").read_text().splitlines()
              if line.startswith("#define")]  # fmt: skip
    assert len({*macros}) == len(macros)
    if shutil.which("c++"):
        command = ["c++", "-fsyntax-only", "-Wall", "-Werror", "-x", "c++", "network.h"]
        subprocess.run(command, cwd=bundle.folder, check=True, capture_output=True)


def test_words_of_the_language_are_no_names(tmp_path):
    """A library cannot be called like a keyword, like the test program, or endlessly."""
    for name in ("int", "class", "main", "NULL", "a" * 300, "", "_x", "été", "a\n", 3):
        assert not is_library_name(name)
        with pytest.raises(OptionError) as error:
            export(tmp_path / "b", name=name)
        assert error.value.code == "option.name"
    assert [parameter_name(n) for n in ("i0", "weights", "input", "data")] == [
        "i0_",
        "weights_",
        "input",
        "data",
    ]
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("format", ["c", "onnx", "pt2"])
def test_what_is_not_a_number_in_pytorch_is_none_in_an_export(tmp_path, format):
    """A threshold that overflows makes NaN in the model, and in every export of it."""
    fast = snncc.compile(Rate(float("inf")).eval())
    bundle = snncc.export(fast, tmp_path / "b", example_inputs=(X,), format=format)

    report = snncc.verify_bundle(bundle.folder)
    assert report.ok, report


def test_a_missing_nan_is_a_difference():
    """NaN is equal to NaN and to nothing else; infinities have signs."""
    inf, nan = float("inf"), float("nan")
    values = numpy.asarray([inf, nan, 0.5])

    assert compare("y", values, values).is_ok
    for other in ([inf, 1.0, 0.5], [-inf, nan, 0.5], [inf, nan, 0.6], [inf, nan, nan]):
        assert not compare("y", numpy.asarray(other), values).is_ok


def test_potentials_leave_a_program_of_torch(tmp_path):
    """Outputs that products in another order round otherwise are no reason for a refusal."""
    bundle = export(tmp_path / "b", format="pt2")

    assert snncc.verify_bundle(bundle.folder).ok
    torch.testing.assert_close(
        snncc.load_program(bundle.folder).module()(X), _rate()(X), rtol=1e-5, atol=1e-6
    )


def _rate() -> Rate:
    torch.manual_seed(0)
    return Rate()


@pytest.mark.parametrize("example", [X, (X[:, :0],)], ids=["tensor", "empty"])
def test_an_example_says_what_a_call_is(tmp_path, example):
    """An example that is no tuple of arguments, or is empty, is refused."""
    with pytest.raises(OptionError) as error:
        snncc.export(snncc.compile(Rate()), tmp_path / "b", example_inputs=example)

    assert error.value.code == "option.example"


def _begun(x):
    v = None
    for x_t in x:
        v = x_t if v is None else 0.5 * v + x_t
    return v


def test_one_step_that_shows_no_loop_is_no_example(tmp_path):
    """Where a first step of its own is all that an example has, nothing is known of the others."""
    with pytest.raises(OptionError, match="no time axis"):
        snncc.export(snncc.compile(_begun), tmp_path / "b", example_inputs=(X[:1],))


def test_without_room_the_code_is_not_measured(monkeypatch):
    """A full disk is no reason against a library that is written elsewhere."""
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))

    assert code_bytes({"a.h": b"", "a.c": b"int a;"}, "a") is None


def test_only_arithmetic_of_sizes_is_evaluated():
    """What torch would evaluate as a size is sums, products and quotients of sizes."""
    size = "Symbol('s7', positive=True, integer=True)"
    for text in (
        size,
        "Integer(-4)",
        f"Add(Pow({size}, Integer(2)), Integer(-1))",
        f"Add(Mul(Integer(3), {size}), FloorDiv({size}, Integer(2)))",
    ):
        assert is_size(text)
    for text in (
        *("", "#", "s7", "9", 3, "Symbol('x', positive=True, integer=True)", f"{size}.evalf()"),
        *(f"Pow({size}, Integer(9))", f"Add({size}), print()", f"Add({size}", f"Add({size}) "),
        *("__import__('os')", f"Mul(#, {size})", "Add(" * 999 + size + ")" * 999),
    ):
        assert not is_size(text)


def test_what_is_no_bundle_is_kept(tmp_path):
    """A file, and a folder with the manifest of something else, are not replaced."""
    extension = tmp_path / "extension"
    extension.mkdir()
    (extension / "manifest.json").write_text('{"name": "an extension of a browser"}')
    (tmp_path / "file").write_text("kept")
    for place in ("extension", "file"):
        with pytest.raises(BundleError) as error:
            export(tmp_path / place)
        assert error.value.code == "bundle.exists"

    assert (tmp_path / "file").read_text() == "kept"
    assert "browser" in (extension / "manifest.json").read_text()


def test_a_link_goes_on_pointing_to_the_bundle(tmp_path):
    """An export to a link replaces what it points to."""
    (tmp_path / "link").symlink_to(tmp_path / "v1")
    for _ in range(2):
        export(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert snncc.verify_bundle(tmp_path / "v1").ok


def test_an_interrupted_replacement_leaves_the_older_bundle(tmp_path, monkeypatch):
    """Whatever happens between taking the old away and putting the new there, the old is back."""
    export(tmp_path / "b", name="older")
    rename = Path.rename

    def interrupted(self, target):
        if self.name == "bundle":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "b", name="newer")

    assert snncc.read_bundle(tmp_path / "b").name == "older"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_exports_at_once_leave_one_whole_bundle(tmp_path):
    """Exports into one folder wait for each other; the last one is there, whole."""
    names = ("net.onnx", "net_step.onnx", "start.npz", "test_vector.npz")
    errors = []

    def write(k: int) -> None:
        try:
            for _ in range(20):
                files = {name: bytes([k]) * 50 for name in names}
                write_bundle(tmp_path / "b", files, {"name": "net"}, ONNX)
        except BundleError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len({(snncc.read_bundle(tmp_path / "b").folder / n).read_bytes() for n in names}) == 1


def _tampered(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("format", ["c", "onnx", "pt2"])
def test_nothing_runs_that_the_manifest_does_not_list(tmp_path, format):
    """A bundle whose files have no hash, or impossible names, is refused before anything runs."""
    changes = (
        lambda m: m.update(files={}),
        lambda m: m["files"].pop("net.c" if format == "c" else sorted(m["files"])[0]),
        lambda m: m["files"].update({"a" * 5000: {}}),
        lambda m: m["files"].update({"\ud800\0": {}}),
        lambda m: m.update(name="other"),
    )
    for change in changes:
        bundle = export(tmp_path / "b", format=format, name="net")
        _tampered(bundle.folder, change)
        with pytest.raises(BundleError) as error:
            snncc.verify_bundle(bundle.folder)
        assert error.value.code == "bundle.damaged"
        assert str(error.value).isprintable() or str(error.value).encode()


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, "half"])
def test_damaged_vectors_of_programs_are_refused(tmp_path, data):
    """A test vector that is no archive of numbers gives an error of ours."""
    bundle = export(tmp_path / "b", format="pt2", name="net")
    file = bundle.folder / "test_vector.npz"
    file.write_bytes(file.read_bytes()[:200] if data == "half" else data)
    facts = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    _tampered(bundle.folder, lambda m: m["files"].update({file.name: facts}))
    with pytest.raises(BundleError) as error:
        snncc.verify_bundle(bundle.folder)

    assert error.value.code == "bundle.damaged"


def _archive(weights: bytes, name: str = "torch.ops.aten.linear.default") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("net/models/model.json", json.dumps({"target": name}))
        archive.writestr("net/data/sample_inputs/model.pt", b"")
        archive.writestr("net/data/weights/weight_0", weights)
    return out.getvalue()


def test_torch_reads_the_parts_that_were_checked():
    """An archive with two directories, which readers choose differently, becomes one with one."""
    hidden, shown = _archive(b"hidden"), _archive(b"shown!")
    end = len(shown) - 22
    size, start = struct.unpack_from("<II", shown, end + 12)
    moved = bytearray(hidden[:end] + shown)
    # By its offset the directory is the hidden one, by its distance from the end the shown one.
    struct.pack_into("<I", moved, len(moved) - 22 + 16, start)
    assert moved[start : start + size] != moved[-22 - size : -22]

    checked = check_archive(bytes(moved))

    assert b"hidden" not in checked
    assert zipfile.ZipFile(io.BytesIO(checked)).read("net/data/weights/weight_0") == b"shown!"


@pytest.mark.parametrize("name", ["args_0", "p_layer_weight", "linear"])
def test_names_of_a_program_are_no_code(tmp_path, name):
    """Torch writes the names of a program into code; one that is more than a name is refused."""
    bundle = export(tmp_path / "b", format="pt2", name="net")
    out = io.BytesIO()
    with zipfile.ZipFile(bundle.folder / "net.pt2") as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            code = f"\"{name}=open('{tmp_path}/written', 'w')\"".encode()
            new.writestr(entry.filename, old.read(entry).replace(f'"{name}"'.encode(), code))
            assert code in out.getvalue() or not entry.filename.endswith("model.json")
    with pytest.raises(UntrustedError, match="has a name"):
        check_archive(out.getvalue())


@pytest.mark.parametrize(
    ("key", "spec", "said"),
    [
        ("in_spec", {"type": "collections.defaultdict", "context": "null"}, "arguments in a"),
        ("in_spec", {"type": "builtins.dict", "context": '["x=open(1)"]'}, "has a name"),
        ("forward_arg_names", ["x=open(1)"], "has a name"),
    ],
)
def test_arguments_of_a_program_are_no_code(key, spec, said):
    """Names of arguments are names, and what they are nested in imports nothing."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        text = json.dumps({key: json.dumps([1, spec]) if key == "in_spec" else spec})
        archive.writestr("net/models/model.json", text)
        archive.writestr("net/data/sample_inputs/model.pt", b"")
    with pytest.raises(UntrustedError, match=said):
        check_archive(out.getvalue())


def test_programs_do_not_open_files():
    """An operator of torch that maps a file, or reads past the end, is none of a program."""
    for name in ("from_file.default", "_unsafe_index.Tensor"):
        with pytest.raises(UntrustedError, match="calls"):
            check_archive(_archive(b"", f"torch.ops.aten.{name}"))
