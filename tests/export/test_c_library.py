"""Exported C libraries compute what the PyTorch model computes, on every compiler setting."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import snncc
from snncc.errors import BundleError, OptionError, UnsupportedError
from tests.export.networks import LIBRARIES, Dense, prepared

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow", "-Wvla")
CC = shutil.which("cc") or "cc"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Export every network once."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for name, case in LIBRARIES.items():
        model, x = prepared(case)
        fast = snncc.compile(model, **case.options)
        made[name] = snncc.export(fast, folder / name, example_inputs=(x,), name=f"net_{name}")
    return made


def build(folder: Path, bundle: snncc.Bundle, *flags: str) -> Path:
    """Compile a bundle's test program and return its path."""
    program = folder / "main"
    sources = [
        bundle.folder / n for n in (f"{bundle.name}.c", f"{bundle.name}_weights.c", "main.c")
    ]
    command = [CC, "-std=c11", "-ffp-contract=off", *flags, *map(str, sources)]
    subprocess.run([*command, "-o", str(program), "-lm"], check=True, capture_output=True)
    return program


def run(program: Path, bundle: snncc.Bundle, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), str(bundle.folder / "test_vector.bin"), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},  # an early exit frees nothing
    )


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_is_the_model(bundles, name):
    """The library compiles without a warning and gives the outputs of the model."""
    report = snncc.verify_bundle(bundles[name].folder, flags=("-O1", *STRICT))

    assert report.ok, report
    if LIBRARIES[name].exact:
        assert re.findall(r", (\d+) differ", report.text) == ["0"] * report.text.count("differ,")


@pytest.mark.parametrize("name", ["dense", "conv", "attending"])
def test_optimisation_changes_no_bit(bundles, tmp_path, name):
    """Without optimisation and with all of it, with vectors of each width and without: one result.

    A compiler lays vectors that the machine does not have out in narrower ones.
    """
    outputs = []
    widths = [(f"-DNET_{name.upper()}_VECTOR={n}",) for n in (0, 16, 32, 64)]
    for i, flags in enumerate([("-O0",), ("-Os",), ("-O3", "-march=native"), *widths]):
        program = build(tmp_path, bundles[name], *flags)
        out = tmp_path / f"out{i}"
        run(program, bundles[name], "--out", str(out))
        outputs.append(out.read_bytes())

    assert outputs[0]
    assert set(outputs) == {outputs[0]}


@pytest.mark.parametrize("name", ["dense", "conv", "temporal", "recurrent", "peeled"])
def test_sanitizers_find_nothing(bundles, tmp_path, name):
    """No access out of bounds and no undefined behaviour."""
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = build(tmp_path, bundles[name], *flags)

    result = run(program, bundles[name])

    assert result.returncode == 0, result.stderr


def test_instances_do_not_share_state(bundles, tmp_path):
    """Two networks in one program, a reset between sequences, and a copy of a state."""
    bundle = bundles["dense"]
    (tmp_path / "two.c").write_text(
        """
#include "net_dense.h"
#include <stdio.h>
#include <string.h>
int main(void)
{
  static struct net_dense a, b, copy;
  static float x[NET_DENSE_X], first[NET_DENSE_Y], second[NET_DENSE_Y], third[NET_DENSE_Y];
  for (int i = 0; i < NET_DENSE_X; i++) {
    x[i] = (float)(i % 3);
  }
  net_dense_init(&a, net_dense_weights);
  net_dense_init(&b, net_dense_weights);
  net_dense_step(&a, x, first);
  net_dense_step(&a, x, second);
  copy = a;
  net_dense_step(&b, x, third);
  if (memcmp(first, third, sizeof first) || !memcmp(first, second, sizeof first)) {
    return 1;
  }
  net_dense_step(&a, x, second);
  net_dense_step(&copy, x, third);
  if (memcmp(second, third, sizeof second)) {
    return 2;
  }
  net_dense_reset(&a);
  net_dense_step(&a, x, second);
  return memcmp(first, second, sizeof first) ? 3 : 0;
}
"""
    )
    sources = ["two.c", bundle.folder / "net_dense.c", bundle.folder / "net_dense_weights.c"]
    command = [CC, "-std=c11", f"-I{bundle.folder}", *map(str, sources), "-o", "two", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)

    assert subprocess.run([str(tmp_path / "two")]).returncode == 0


def test_a_first_step_of_its_own_comes_once_after_each_reset(bundles, tmp_path):
    """It comes after a reset, in a network of its own, and not when the count of steps is full."""
    bundle = bundles["peeled"]
    (tmp_path / "first.c").write_text(
        """
#include "net_peeled.h"
#include <limits.h>
#include <string.h>
static struct net_peeled a, b;
static float y[2][NET_PEELED_Y0], rest[3][NET_PEELED_Y1];
static int took(struct net_peeled *net, const float *x, int i)
{
  net_peeled_step(net, x, y[i], rest[0], rest[1], rest[2]);
  return memcmp(y[i], y[0], sizeof y[i]) == 0;
}
int main(void)
{
  static float x[NET_PEELED_X], last[2][NET_PEELED_Y3];
  for (int i = 0; i < NET_PEELED_X; i++) {
    x[i] = (float)(i % 3);
  }
  net_peeled_init(&a, net_peeled_weights);
  net_peeled_init(&b, net_peeled_weights);
  took(&a, x, 0);
  memcpy(last[0], rest[2], sizeof last[0]);
  took(&a, x, 1);
  if (memcmp(last[0], rest[2], sizeof last[0]) == 0 || !took(&b, x, 1)) {
    return 1;
  }
  net_peeled_reset(&a);
  if (!took(&a, x, 1) || memcmp(last[0], rest[2], sizeof last[0]) != 0) {
    return 2;
  }
  a.steps = ULONG_MAX;
  took(&a, x, 1);
  return a.steps != ULONG_MAX || memcmp(last[0], rest[2], sizeof last[0]) == 0 ? 3 : 0;
}
"""
    )
    sources = ["first.c", bundle.folder / "net_peeled.c", bundle.folder / "net_peeled_weights.c"]
    command = [CC, "-std=c11", f"-I{bundle.folder}", *map(str, sources), "-o", "first", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)

    assert subprocess.run([str(tmp_path / "first")]).returncode == 0


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
@pytest.mark.parametrize("name", ["conv", "recurrent", "temporal"])
def test_library_needs_no_operating_system(tmp_path, name, arithmetic):
    """It calls memory and maths functions only, has nothing global that changes, and is small."""
    case = LIBRARIES[name]
    model, x = prepared(case)
    bundle = snncc.export(
        snncc.compile(model, **case.options),
        tmp_path / "b",
        example_inputs=(x,),
        arithmetic=arithmetic,
    )
    source = str(bundle.folder / "network.c")
    subprocess.run([CC, "-std=c11", "-O2", "-c", source, "-o", "n.o"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["nm", "n.o"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    symbols = [line.split()[-2:] for line in listed.splitlines()]

    assert {n for kind, n in symbols if kind == "U"} <= {"memcpy", "memset", "memmove", "memcmp"}
    assert not [n for kind, n in symbols if kind in "BbCDdGgSs"]
    assert {n for kind, n in symbols if kind == "T"} == {
        f"network_{end}" for end in ("check_weights", "init", "reset", "run", "step")
    }
    assert 0 < bundle.manifest["code_bytes"] < 64 * 1024


@pytest.mark.parametrize("arithmetic", ["float", "int8", "int16"])
def test_sizes_are_told_before_compilation(tmp_path, arithmetic):
    """The macros of the header and the bytes of the manifest are those of the structure."""
    model, x = prepared(LIBRARIES["dense"])
    bundle = snncc.export(
        snncc.compile(model),
        tmp_path / "b",
        example_inputs=(x,),
        name="net",
        arithmetic=arithmetic,
    )
    facts = bundle.manifest
    states = re.findall(r"#define NET_(STATE_(\w+)) \d+", (bundle.folder / "net.h").read_text())
    checks = [
        f"sizeof ((struct net *)0)->state_{member} == NET_{macro} * sizeof(NUMBER)"
        for macro, name in states
        for member in [name.lower()]
    ]
    bytes_ = facts["state_bytes"] + facts["work_bytes"]
    room = f"sizeof(struct net) - {bytes_} - sizeof(void *) - sizeof(unsigned long) < 16"
    given = f"sizeof *net_weights * NET_WEIGHTS == {facts['weight_bytes']}"
    number = {"float32": "float"}.get(facts["number"], f"{facts['number']}_t")
    text = "\n".join(f'_Static_assert({c}, "size");' for c in [*checks, room, given])
    (tmp_path / "sizes.c").write_text(f'#include "net.h"\n#define NUMBER {number}\n{text}\n')

    assert len(states) == len(set(states)) == 3
    subprocess.run(
        [CC, "-std=c11", f"-I{bundle.folder}", "-c", "sizes.c"], cwd=tmp_path, check=True
    )
    assert f"weights {facts['weight_bytes']:,} bytes" in str(bundle)


def test_makefile_tests_the_library(bundles, tmp_path):
    """``make test`` builds the library and runs the test vector with both kinds of weights."""
    folder = tmp_path / "copy"
    shutil.copytree(bundles["dense"].folder, folder)

    result = subprocess.run(["make", "-C", str(folder), "test"], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the network of the model") == 2


def test_numbers_end_with_the_sequence(bundles, tmp_path):
    """A network with numbers for nine steps says so in its header and stops."""
    header = (bundles["numbered"].folder / "net_numbered.h").read_text()

    assert "#define NET_NUMBERED_STEPS 9" in header
    assert "return 1" in (bundles["numbered"].folder / "net_numbered.c").read_text()


def damaged(data: bytes, how: str) -> bytes:
    match how:
        case "empty":
            return b""
        case "short":
            return data[:-1]
        case "long":
            return data + b"\0"
        case "magic":
            return b"X" + data[1:]
        case _:
            middle = len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("how", ["empty", "short", "long", "magic", "bit"])
def test_damaged_weights_are_refused(bundles, tmp_path, how):
    """The library checks a weight file before it uses it."""
    bundle = bundles["static"]
    program = build(tmp_path, bundle, "-O1", "-fsanitize=address,undefined")
    weights = (bundle.folder / f"{bundle.name}.weights").read_bytes()
    (tmp_path / "bad").write_bytes(damaged(weights, how))

    result = run(program, bundle, str(tmp_path / "bad"))

    assert result.returncode == 2
    assert "damaged" in result.stderr


def test_loader_survives_random_files(bundles, tmp_path):
    """Files of random bytes, and weights with random changes, are refused or taken, never worse."""
    bundle = bundles["static"]
    program = build(tmp_path, bundle, "-O1", "-fsanitize=address,undefined")
    weights = (bundle.folder / f"{bundle.name}.weights").read_bytes()
    generator = numpy.random.default_rng(0)
    for _ in range(20):
        data = bytearray(weights)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(256)
        (tmp_path / "bad").write_bytes(bytes(data[: generator.integers(1, len(data) + 1)]))

        assert run(program, bundle, str(tmp_path / "bad")).returncode in (0, 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "net_dense.c").unlink(),
        lambda f: (f / "net_dense.c").write_text("int main(void) { return 0; }"),
        lambda f: (f / "manifest.json").write_text("{"),
        lambda f: (f / "manifest.json").write_text("[" * 100_000),
        lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda f: (f / "manifest.json").unlink(),
        lambda f: rename(f, "../../etc/passwd"),
        lambda f: rename(f, "name; rm -rf x"),
        lambda f: listed(f, "../outside"),
        lambda f: version(f),
    ],
)
def test_damaged_bundle_is_refused(bundles, tmp_path, change):
    """Nothing of a bundle that was changed is compiled or run."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundles["dense"].folder, folder)
    (tmp_path / "outside").write_text("")
    change(folder)

    with pytest.raises(BundleError) as caught:
        snncc.verify_bundle(folder)
    assert caught.value.code == "bundle.damaged"


def manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder: Path, name: str) -> None:
    manifest(folder, name=name)


def version(folder: Path) -> None:
    manifest(folder, version=99)


def listed(folder: Path, name: str) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    manifest(folder, files=files | {name: {"bytes": 0, "sha256": empty}})


def test_bundle_replaces_a_bundle_and_nothing_else(tmp_path):
    """An older bundle is replaced; a folder with other files is left alone."""
    model, x = prepared(LIBRARIES["static"])
    fast = snncc.compile(model)
    for _ in range(2):
        snncc.export(fast, tmp_path / "bundle", example_inputs=(x,))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")

    with pytest.raises(BundleError, match="no bundle and no empty folder"):
        snncc.export(fast, other, example_inputs=(x,))
    assert (other / "thesis.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "other"]
    assert snncc.read_bundle(tmp_path / "bundle").name == "network"


def test_double_precision_is_kept(tmp_path):
    """A float64 model becomes a library of doubles."""
    model, x = prepared(LIBRARIES["dense"])
    fast = snncc.compile(model.double())
    bundle = snncc.export(fast, tmp_path / "bundle", example_inputs=(x.double(),))

    assert "double" in (bundle.folder / "network.h").read_text()
    assert snncc.verify_bundle(bundle.folder).ok


def test_training_mode_is_refused(tmp_path):
    """Batch statistics have no place in a library."""
    model, x = prepared(LIBRARIES["conv"])

    with pytest.raises(UnsupportedError) as caught:
        snncc.export(snncc.compile(model.train()), tmp_path / "bundle", example_inputs=(x,))
    assert caught.value.location is not None


@pytest.mark.parametrize(
    ("options", "code"),
    [({"format": "exe"}, "option.format"), ({"name": "1; rm"}, "option.name")],
)
def test_wrong_options_are_refused(tmp_path, options, code):
    """The format and the name are checked before anything is written."""
    model, x = prepared(LIBRARIES["static"])

    with pytest.raises(OptionError) as caught:
        snncc.export(snncc.compile(model), tmp_path / "b", example_inputs=(x,), **options)
    assert caught.value.code == code
    assert not (tmp_path / "b").exists()


def test_serial_model_is_refused(tmp_path):
    """Export takes a compiled model."""
    with pytest.raises(OptionError, match="not a compiled model"):
        snncc.export(Dense(), tmp_path / "b", example_inputs=(torch.rand(9, 2, 150),))


class OneStep(nn.Module):
    """One time step; the potential is kept from call to call."""

    def __init__(self):
        super().__init__()
        self.v = torch.zeros(2, 3)

    def forward(self, x):
        self.v = 0.5 * self.v + x
        s = (self.v >= 1.0).to(x.dtype)
        self.v = self.v - s
        return s


def test_model_of_one_step_is_exported(tmp_path):
    """A step that is compiled over time is exported as the sequence of its calls."""
    x = torch.randint(0, 8, (9, 2, 3)) / 4
    fast = snncc.compile(OneStep(), step=True)
    bundle = snncc.export(fast, tmp_path / "bundle", example_inputs=(x,))

    assert snncc.verify_bundle(bundle.folder).ok
