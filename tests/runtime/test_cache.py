"""The kernel cache under faults: damaged entries, many processes, no compiler, no space."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from snncc.codegen.base import FloatType, Job, KernelSpec
from snncc.codegen.c.target import CTarget
from snncc.codegen.lower import lower
from snncc.errors import BuildError, SnnccWarning, TargetError
from snncc.runtime.binaries import build
from snncc.runtime.binaries.cache import KernelCache, entry_key
from snncc.runtime.operators import Neuron
from tests.neuron_programs import lif

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

ROOT = Path(__file__).parent.parent.parent


def source(decay=0.9):
    return CTarget().emit(lower(lif(decay=decay), KernelSpec(Job.INFERENCE, FloatType.FLOAT32)))


def entry_of(folder):
    (meta,) = folder.glob("*/*/*/meta.json")
    return meta.parent


def run_layer(folder):
    """Run a layer whose kernels live in a folder, by a cache that remembers nothing."""
    neuron = Neuron(lif(), cache=KernelCache(folder))
    with torch.no_grad():
        (s,), _ = neuron([torch.ones(3, 40)], [torch.zeros(())])
    return s


@pytest.fixture
def calls(monkeypatch):
    """Count the runs of the compiler."""
    seen = []
    original = build._run
    monkeypatch.setattr(build, "_run", lambda *args: seen.append(args) or original(*args))
    return seen


def test_second_process_finds_the_entry(tmp_path, calls):
    """A kernel is compiled once, and its entry tells how."""
    expected = run_layer(tmp_path)
    made = len(calls)
    actual = run_layer(tmp_path)

    assert made == 2  # compile, link
    assert len(calls) == made
    assert torch.equal(actual, expected)
    names = {file.name for file in entry_of(tmp_path).iterdir()}
    assert names == {"kernel.c", "kernel.so", "build.log", "meta.json"}


def replace_library(entry, data):
    """Put another file in the place of a library; the file that this process has loaded stays."""
    (entry / "kernel.so").unlink()
    (entry / "kernel.so").write_bytes(data)


def truncate_library(entry):
    replace_library(entry, (entry / "kernel.so").read_bytes()[:1000])


def damage_library(entry):
    data = bytearray((entry / "kernel.so").read_bytes())
    data[len(data) // 2] ^= 1
    replace_library(entry, data)


def make_library_senseless(entry):
    """Leave a file that is what its meta data say, and no library."""
    replace_library(entry, b"not a library")
    meta = json.loads((entry / "meta.json").read_text())
    meta["sha256"] = "ba8ef71b3a4b6ee1a8c4d8b2e8d4ec6e"
    (entry / "meta.json").write_text(json.dumps(meta))


FAULTS = {
    "library truncated": truncate_library,
    "library changed": damage_library,
    "library senseless": make_library_senseless,
    "library gone": lambda entry: (entry / "kernel.so").unlink(),
    "meta truncated": lambda entry: (entry / "meta.json").write_text('{"kernel": "l'),
    "meta empty": lambda entry: (entry / "meta.json").write_text(""),
    "meta of another kind": lambda entry: (entry / "meta.json").write_text("[1]"),
    "meta gone": lambda entry: (entry / "meta.json").unlink(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_entries_are_made_again(fault, tmp_path, calls):
    """An entry that is not sound is never loaded."""
    expected = run_layer(tmp_path)
    entry = entry_of(tmp_path)
    FAULTS[fault](entry)
    calls.clear()
    actual = run_layer(tmp_path)

    assert torch.equal(actual, expected)
    assert len(calls) == 2
    assert entry_of(tmp_path) == entry
    assert not list(tmp_path.glob("*/tmp-*"))


def test_wrong_library_behind_a_right_hash(tmp_path, calls):
    """A library without the function is not used."""
    run_layer(tmp_path)
    entry = entry_of(tmp_path)
    (entry / "kernel.so").unlink()
    subprocess.run(
        ["cc", "-shared", "-x", "c", "/dev/null", "-o", str(entry / "kernel.so")], check=True
    )
    digest = hashlib.sha256((entry / "kernel.so").read_bytes()).hexdigest()
    meta = {"kernel": source().name, "sha256": digest}
    (entry / "meta.json").write_text(json.dumps(meta))
    calls.clear()

    assert run_layer(tmp_path).shape == (3, 40)
    assert len(calls) == 2


def test_key_depends_on_everything_that_decides_the_library(monkeypatch):
    """Text, flags, compiler and processor are part of the key."""
    compiler = build.find_compiler()
    base = source()
    keys = {
        entry_key(base, compiler),
        entry_key(source(decay=0.5), compiler),
        entry_key(replace(base, flags=(*base.flags, "-g")), compiler),
        entry_key(base, replace(compiler, identity="another")),
        entry_key(base, replace(compiler, command=(*compiler.command, "-m32"))),
    }
    monkeypatch.setattr(build, "cpu_identity", lambda: "another processor")
    keys.add(entry_key(base, compiler))

    assert len(keys) == 6


SCRIPT = """
import sys, torch
from snncc.runtime.operators import Neuron
from tests.neuron_programs import lif
with torch.no_grad():
    (s,), _ = Neuron(lif())([torch.ones(3, 40)], [torch.zeros(())])
print(int(s.sum()))
"""


def start(folder, script=SCRIPT, **env):
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "SNNCC_CACHE_DIR": str(folder), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_race(tmp_path):
    """Processes that make the same kernel at once all get it, in any folder and language."""
    folder = tmp_path / "kérnels ✓"
    processes = [start(folder), start(folder, LC_ALL="POSIX", PYTHONUTF8="0")]
    outputs = {process.communicate(timeout=120) for process in processes}

    assert outputs == {("120\n", "")}
    assert len(list(folder.glob("*/*/*/meta.json"))) == 1
    assert not list(folder.glob("*/tmp-*"))


def write_compiler(folder, body):
    """Make a program that behaves like a compiler in some situation."""
    program = folder / "fake-cc"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_killed_compiler(tmp_path, monkeypatch, calls):
    """A compiler that dies leaves no entry, and the next call compiles."""
    half = '[ "$1" = --version ] || { for last; do :; done; echo half > "$last"; kill -9 $$; }'
    monkeypatch.setenv("SNNCC_CC", str(write_compiler(tmp_path, half)))

    with pytest.raises(BuildError, match="was killed by signal 9") as error:
        run_layer(tmp_path / "cache")
    assert error.value.code == "build.compiler-failed"
    assert not list(tmp_path.glob("cache/*/*"))

    monkeypatch.delenv("SNNCC_CC")
    assert run_layer(tmp_path / "cache").shape == (3, 40)


def test_failing_compiler(tmp_path, monkeypatch):
    """The message has the command and the end of what the compiler said."""
    program = write_compiler(tmp_path, "echo 'error: no space left on device' >&2; exit 3")
    monkeypatch.setenv("SNNCC_CC", str(program))

    with pytest.raises(BuildError, match="it ended with status 3") as error:
        run_layer(tmp_path / "cache")
    text = str(error.value)
    assert "error: no space left on device" in text
    assert f"Command: {program} -std=c11" in text
    assert "kernel.c" in text


def test_compiler_that_makes_no_library(tmp_path, monkeypatch):
    """A library that does not load is an error, not an entry."""
    program = write_compiler(tmp_path, 'while [ "$1" != -o ]; do shift; done; echo x > "$2"')
    monkeypatch.setenv("SNNCC_CC", str(program))

    with pytest.raises(BuildError, match="does not load") as error:
        run_layer(tmp_path / "cache")
    assert error.value.code == "build.unloadable"
    assert not list(tmp_path.glob("cache/*/*"))


@pytest.mark.parametrize(
    ("version", "is_gcc"),
    [
        ("cc (Debian 12.2.0-14+deb12u1) 12.2.0", True),
        ("gcc (GCC) 13.2.1 20240316 (Red Hat 13.2.1-7)", True),
        ("arm-none-eabi-gcc (15:12.2.rel1-1) 12.2.1 20221205", True),
        ("gcc (Debian 6.3.0-18+deb9u1) 6.3.0 20170516", False),
        ("Debian clang version 14.0.6", False),
        ("Apple clang version 15.0.0 (clang-1500.3.9.4)", False),
        ("Intel(R) oneAPI DPC++/C++ Compiler 2024.0.0 (2024.0.0.20231017)", False),
        ("unknown: [Errno 8] Exec format error", False),
    ],
)
def test_flags_of_gcc_are_for_gcc_alone(version, is_gcc):
    """Another compiler ends where it is given a flag that it does not know."""
    kept = build.understood(["-O3", "-fno-split-loops"], version)

    assert kept == (["-O3", "-fno-split-loops"] if is_gcc else ["-O3"])


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", "it made no 'kernel.o'"),
        (r"printf '\303\050\377' >&2; exit 1", "\N{REPLACEMENT CHARACTER}"),
        (r"""printf '\377\n'; [ "$1" = --version ]""", "it ended with status 1"),
    ],
    ids=["nothing", "no text", "version that is no text"],
)
def test_odd_compilers(tmp_path, monkeypatch, script, said):
    """Whatever a compiler does, an error says what it was."""
    monkeypatch.setenv("SNNCC_CC", str(write_compiler(tmp_path, script)))
    with pytest.raises(BuildError) as error:
        run_layer(tmp_path / "cache")

    assert said in str(error.value)
    assert error.value.code == "build.compiler-failed"


def test_disk_that_the_compiler_fills(tmp_path, monkeypatch):
    """Another compiler would not help."""
    monkeypatch.setenv("SNNCC_CC", str(write_compiler(tmp_path, "exit 1")))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(BuildError, match="Make room in"):
        run_layer(tmp_path / "cache")


def test_no_compiler(tmp_path, monkeypatch):
    """The message says what to install and what else to do."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SNNCC_CC", raising=False)

    with pytest.raises(TargetError, match="no C compiler on this machine") as error:
        run_layer(tmp_path)
    assert error.value.code == "target.no-compiler"
    assert "target='torch'" in str(error.value)
    assert "SNNCC_CC" in str(error.value)


def test_missing_chosen_compiler(tmp_path, monkeypatch):
    """A compiler that the user named is not replaced by another."""
    for command in ("no-such-compiler -m64", "'cc"):
        monkeypatch.setenv("SNNCC_CC", command)
        with pytest.raises(TargetError, match=f"'{command}' that SNNCC_CC names"):
            run_layer(tmp_path)


def test_unwritable_folder(tmp_path):
    """Kernels go to a private folder, with one warning."""
    (tmp_path / "file").write_text("")
    cache = KernelCache(tmp_path / "file" / "cache")

    with pytest.warns(SnnccWarning, match="cannot be written"):
        cache.load(source())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.load(source(decay=0.5))


def test_read_only_entries_are_used(tmp_path, monkeypatch, calls):
    """A cache that cannot be written still serves what it holds."""
    run_layer(tmp_path)
    calls.clear()
    monkeypatch.setattr("snncc.runtime.binaries.entries.is_writable", lambda folder: False)
    run_layer(tmp_path)

    assert not calls


def test_full_disk(tmp_path, monkeypatch):
    """No space is an error that names the folder and the variable."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)

    with pytest.raises(BuildError, match="cannot be written to the cache") as error:
        run_layer(tmp_path)
    assert error.value.code == "build.cache-write"
    assert "SNNCC_CACHE_DIR" in str(error.value)


def test_abandoned_folders_are_removed(tmp_path):
    """What a killed process left behind goes when the next kernel is made, after a day."""
    folder = KernelCache(tmp_path).folder()
    old, fresh = folder / "tmp-old", folder / "tmp-fresh"
    for work in (old, fresh):
        work.mkdir(parents=True)
        (work / "kernel.c").write_text("")
    os.utime(old, (0, 0))
    run_layer(tmp_path)

    assert not old.exists()
    assert fresh.exists()


RUNTIMES = """
from pathlib import Path
import torch
from snncc.runtime.binaries import build
from snncc.runtime.operators import Neuron
from tests.neuron_programs import lif
with torch.no_grad():
    Neuron(lif(), num_threads=2)([torch.ones(64, 4096)], [torch.zeros(())])
lines = Path("/proc/self/maps").read_text().splitlines()
files = {line.split(maxsplit=5)[-1] for line in lines}
print(*(file for file in files if build._is_openmp(Path(file).name)), sep="\\n")
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files")
def test_one_openmp_runtime(tmp_path):
    """Kernels run on the threads of torch: a second runtime would fight for the cores."""
    # In a process of its own: other packages bring runtimes that have nothing to do with kernels.
    runtimes, errors = start(tmp_path, script=RUNTIMES).communicate(timeout=120)

    assert errors == ""
    assert len(runtimes.splitlines()) == 1
