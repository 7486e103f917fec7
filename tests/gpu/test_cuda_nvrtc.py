"""CUDA kernels compiled by NVRTC, for machines where torch is and nvcc is not."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from snncc.errors import BuildError, TargetError
from snncc.ir.program import NeuronProgram
from snncc.runtime.backward import BackwardCall
from snncc.runtime.gpu import cuda_build, cuda_nvrtc
from snncc.runtime.gpu.cuda_build import find_cuda_compiler, find_nvcc
from snncc.runtime.gpu.cuda_nvrtc import Nvrtc, find_nvrtc
from snncc.runtime.gpu.cuda_source import specialize
from snncc.runtime.operators import Neuron
from tests.gpu.test_values import curves
from tests.neuron_programs import lif

FLAGS = ("-std=c++17", "-fmad=false")


@dataclass
class Library:
    """Plays NVRTC: a binary is the text, a fixed head before it."""

    status: int = 0
    options: list[str] = field(default_factory=list)
    programs: dict[int, bytes] = field(default_factory=dict)

    def nvrtcCreateProgram(self, program: Any, text: bytes, *rest: Any) -> int:  # noqa: N802
        assert rest == (b"kernel.cu", 0, None, None)
        program._obj.value = 7
        self.programs[7] = text
        return 0

    def nvrtcCompileProgram(self, program: Any, count: int, words: Any) -> int:  # noqa: N802
        self.options = [word.decode() for word in words[:count]]
        return self.status

    def nvrtcGetProgramLogSize(self, program: Any, size: Any) -> int:  # noqa: N802
        size._obj.value = 15
        return 0

    def nvrtcGetProgramLog(self, program: Any, data: Any) -> int:  # noqa: N802
        data.value = b"error: no such"
        return 0

    def nvrtcGetCUBINSize(self, program: Any, size: Any) -> int:  # noqa: N802
        size._obj.value = 4 + len(self.programs[program.value])
        return 0

    def nvrtcGetCUBIN(self, program: Any, data: Any) -> int:  # noqa: N802
        data.raw = b"\x7fELF" + self.programs[program.value]
        return 0

    def nvrtcDestroyProgram(self, program: Any) -> int:  # noqa: N802
        del self.programs[program._obj.value]
        return 0


@pytest.fixture
def no_nvcc(monkeypatch):
    """Hide the nvcc of this machine."""
    monkeypatch.delenv("SNNCC_NVCC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(cuda_build, "_USUAL", "/nowhere/nvcc")


def test_a_text_becomes_a_binary(tmp_path):
    """Numerics have the flags that nvcc is given, and headers of half types are found."""
    library = Library()
    nvrtc = Nvrtc(library, "libnvrtc.so.13", ("/include",))
    log = nvrtc.compile("text", "sm_90", tmp_path, FLAGS)

    assert (tmp_path / "kernel.cubin").read_bytes() == b"\x7fELFtext"
    assert library.options == ["-arch=sm_90", "-std=c++17", "-fmad=false", "-I/include"]
    assert log == "NVRTC libnvrtc.so.13 -arch=sm_90 -std=c++17 -fmad=false -I/include"
    assert library.programs == {}


def test_failure(tmp_path):
    """What the library says is in the error, and nothing of it is left behind."""
    library = Library(status=6)
    with pytest.raises(BuildError, match="NVRTC failed with status 6") as error:
        Nvrtc(library, "libnvrtc.so.13", ()).compile("text", "sm_90", tmp_path, FLAGS)

    assert error.value.code == "build.nvrtc-failed"
    assert error.value.notes[-1] == "error: no such"
    assert library.programs == {}


def test_it_serves_where_nvcc_is_missing(no_nvcc, monkeypatch):
    """It is taken where there is no nvcc, but not where the user names one."""
    nvrtc = Nvrtc(Library(), __file__, ())
    monkeypatch.setattr(cuda_build, "find_nvrtc", lambda: nvrtc)

    assert find_cuda_compiler() is nvrtc
    with pytest.raises(TargetError):
        find_nvcc()
    monkeypatch.setenv("SNNCC_NVCC", "no-such-nvcc")
    with pytest.raises(TargetError, match="SNNCC_NVCC names"):
        find_cuda_compiler()


def test_neither_is_there(no_nvcc, monkeypatch):
    """Without any compiler the error says what to install."""
    monkeypatch.setattr(cuda_build, "find_nvrtc", lambda: None)
    with pytest.raises(TargetError, match="no CUDA compiler on this machine") as error:
        find_cuda_compiler()

    assert error.value.code == "target.no-nvcc"


@pytest.mark.parametrize("layout", ["cuda_nvrtc", "cu13"])
def test_it_is_found_among_packages(monkeypatch, tmp_path, layout):
    """Packages have put it into different folders; one that does not load is passed over."""
    library = tmp_path / layout / "lib" / "libnvrtc.so.13"
    header = tmp_path / "cuda_runtime" / "include" / "cuda_fp16.h"
    broken = tmp_path / "a" / "lib" / "libnvrtc.so.12"
    for file in (library, header, broken):
        file.parent.mkdir(parents=True)
        file.touch()
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    def load(name):
        if name == str(broken):
            raise OSError("file too short")
        return name

    monkeypatch.setattr(ctypes, "CDLL", load)
    found = find_nvrtc.__wrapped__()

    assert found == Nvrtc(str(library), str(library), (str(header.parent),))


def test_it_is_not_there(monkeypatch):
    """Without such packages there is none."""
    monkeypatch.setattr(cuda_nvrtc.importlib.util, "find_spec", lambda name: None)

    assert find_nvrtc.__wrapped__() is None


NEEDS_NVRTC = pytest.mark.skipif(find_nvrtc() is None, reason="NVRTC is not on this machine")


@NEEDS_NVRTC
def test_every_operation_compiles(tmp_path):
    """Special numbers are there without the headers of C."""
    neuron = Neuron(NeuronProgram(curves()), target="cuda")
    call = neuron._gpu.plan([torch.empty(9, 64), torch.empty(64)], None, training=False).call
    source = specialize(call.kernel.source, call.variant)
    find_nvrtc().compile(source.text, "sm_90", tmp_path, source.flags)

    assert "INFINITY" in source.text
    assert (tmp_path / "kernel.cubin").read_bytes()[:4] == b"\x7fELF"


@NEEDS_NVRTC
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_compile(dtype, tmp_path):
    """The text that nvcc compiles is one that NVRTC compiles, too."""
    nvrtc = find_nvrtc()
    if dtype is torch.bfloat16 and not nvrtc.include:
        pytest.skip("the headers of half types are not on this machine")
    neuron = Neuron(lif(), target="cuda")
    x = torch.empty(20, 64, dtype=dtype)
    training = neuron._gpu.plan([x, x[0]], None, training=True)
    call = BackwardCall(neuron.program.adjoint, [x, x[0]], [x, x[0]], [True] * 2)
    backward = training.differentiate(call)
    for call in (training.call, backward.call):
        source = specialize(call.kernel.source, call.variant)
        nvrtc.compile(source.anonymous, "sm_90", tmp_path, source.flags)

        assert (tmp_path / "kernel.cubin").read_bytes()[:4] == b"\x7fELF"
