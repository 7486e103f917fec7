"""How CUDA kernels are compiled, cached and launched: all but the driver, which is played."""

from __future__ import annotations

import ctypes
import json
import struct
import threading

import pytest
import torch

from snncc.codegen.base import KernelSpec
from snncc.errors import BuildError, LaunchError, TargetError
from snncc.ir.program import Place
from snncc.runtime.gpu import cuda_build, cuda_driver
from snncc.runtime.gpu.cuda_build import cubin_of, find_nvcc, read_usage
from snncc.runtime.gpu.cuda_driver import open_device, open_driver, pack
from snncc.runtime.gpu.cuda_kernels import entry_name
from snncc.runtime.gpu.cuda_source import specialize
from snncc.runtime.operators import Neuron
from tests.neuron_programs import lif


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Compile into a cache of its own, and return the folder."""
    entries = cuda_build.Entries("kernel.cubin", lambda file, _: file.read_bytes(), tmp_path)
    monkeypatch.setattr(cuda_build, "_BINARIES", entries)
    return tmp_path


def run(neuron, x, v0=None):
    v0 = torch.zeros(x.shape[1:]) if v0 is None else v0
    return neuron([x], [v0])


def sources(folder):
    return [file.read_text() for file in folder.glob("*/*/*/kernel.cu")]


@pytest.mark.parametrize(
    ("lanes", "blocks", "threads"),
    [(1, 1, 32), (32, 1, 32), (33, 2, 32), (128, 1, 128), (512, 1, 128), (1300, 3, 128)],
)
def test_grid(emulated, lanes, blocks, threads):
    """Blocks are wide where there are lanes for them, and cover all lanes."""
    run(Neuron(lif(), target="cuda"), torch.rand(3, lanes))

    assert emulated.launched == [(blocks, threads)]


@pytest.mark.parametrize(
    ("shape", "start", "aligned"),
    [((3, 512), 0, 1), ((3, 512), 1, 0), ((3, 510), 0, 0)],
    ids=["aligned", "address", "size"],
)
def test_vectors_need_aligned_arrays(emulated, compiled, shape, start, aligned):
    """A kernel that moves 16 bytes at a time is called where addresses and sizes allow it."""
    count = shape[0] * shape[1]
    x = torch.rand(count + start)[start:].view(shape)
    (s,), _ = run(Neuron(lif(), target="cuda"), x)
    (text,) = sources(compiled)

    assert f"#define ALIGNED {aligned}\n" in text
    assert torch.equal(s, run(Neuron(lif()), x)[0][0])


def test_equal_layers_share_a_binary(emulated, compiled):
    """Names are no part of a binary, nor are lengths and sizes."""
    for decay, steps in ((0.9, 3), (0.9, 40), (0.5, 3)):
        run(Neuron(lif(decay=decay), target="cuda"), torch.rand(steps, 4, 8))

    assert len(sources(compiled)) == 2


def test_an_entry_says_how_it_was_made(emulated, compiled):
    """It holds the text, the binary and the command; what else nvcc leaves is deleted."""
    run(Neuron(lif(), target="cuda"), torch.rand(3, 8))
    (meta,) = compiled.glob("*/*/*/meta.json")
    log = json.loads(meta.read_text())["log"]

    assert " -arch=sm_90 -std=c++17 -fmad=false -cubin " in log[0]
    assert {file.name for file in meta.parent.iterdir()} == {
        "kernel.cu",
        "kernel.cubin",
        "meta.json",
    }


def test_a_broken_binary_is_made_again(emulated, compiled):
    """What was cut short is never loaded."""
    x = torch.rand(3, 8)
    (expected,), _ = run(Neuron(lif(), target="cuda"), x)
    (cubin,) = compiled.glob("*/*/*/kernel.cubin")
    size = cubin.stat().st_size
    cubin.write_bytes(cubin.read_bytes()[:100])
    cuda_build._BINARIES._loaded.clear()
    (s,), _ = run(Neuron(lif(), target="cuda"), x)

    assert torch.equal(s, expected)
    assert cubin.stat().st_size == size


def test_parameters_take_eight_bytes_each():
    """An integer of four bytes is the first half of its eight."""
    values, places = pack([1 << 40, 7, -2])
    steps = ctypes.c_int.from_address(places[1]).value
    stride = ctypes.c_longlong.from_address(places[2]).value

    assert bytes(values) == struct.pack("<3q", 1 << 40, 7, -2)
    assert (steps, stride) == (7, -2)


def test_every_call_leaves_the_context_as_it_was(emulated):
    """In a thread of its own, too, which starts without a context."""
    x = torch.rand(3, 8, requires_grad=True)
    (s,), _ = run(Neuron(lif(), target="cuda"), x)
    thread = threading.Thread(target=lambda: s.sum().backward())
    thread.start()
    thread.join()

    assert x.grad is not None
    assert emulated.contexts == []
    assert len(emulated.launched) == 2


@pytest.mark.parametrize("function", ["cuInit", "cuModuleLoadData", "cuLaunchKernel"])
def test_errors_of_the_driver(emulated, function):
    """An error of the driver has its text and its number, and leaves no context behind."""
    emulated.refuse[function] = 700
    with pytest.raises(LaunchError, match=f"refused '{function}': status 700") as error:
        run(Neuron(lif(), target="cuda"), torch.rand(3, 8))

    assert error.value.code == "launch.driver"
    assert emulated.contexts == []


def test_tensors_of_the_cpu_are_refused():
    """Without a GPU of NVIDIA there is nothing to launch on."""
    with pytest.raises(TargetError, match="cannot run on 'cpu'") as error:
        run(Neuron(lif(), target="cuda"), torch.rand(3, 8))

    assert error.value.code == "target.cuda-on-cpu"


def test_rocm_is_refused(monkeypatch):
    """A GPU of AMD calls itself 'cuda' in torch."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(TargetError) as error:
        open_device.__wrapped__(torch.device("cuda", 0))

    assert error.value.code == "target.cuda-on-cpu"


def test_a_device_is_what_torch_says(monkeypatch):
    """Its architecture, and the stream that is current at each launch."""
    streams = iter([17, 18])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(
        torch.cuda,
        "current_stream",
        lambda device: type("Stream", (), {"cuda_stream": next(streams)}),
    )
    monkeypatch.setattr(cuda_driver, "open_driver", lambda: None)
    device = open_device.__wrapped__(torch.device("cuda", 1))

    assert (device.ordinal, device.arch) == (1, "sm_90")
    assert [device.stream(), device.stream()] == [17, 18]


def test_no_driver(monkeypatch):
    """A machine without a driver is told apart from a driver that refuses."""

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(TargetError, match="driver is not on this machine") as error:
        open_driver.__wrapped__()

    assert error.value.code == "target.no-driver"


def kernel():
    """Return the text of a kernel for one variant."""
    neuron = Neuron(lif(Place.MEMORY, saved=("h",)), target="cuda")
    x = torch.empty(5, 64)
    call = neuron._gpu.plan([x, x[0]], None, training=True).call
    return specialize(call.kernel.source, call.variant)


def test_a_text_with_its_sizes_is_complete():
    """Constants and types are defined before it, and its name is found."""
    source = kernel()
    head, _, rest = source.text.partition("/*")

    assert "#define VARIANT\n#define LANE int\n#define VECTOR 1\n" in head
    assert "#define TYPE_0 float\n" in head
    assert entry_name(rest) == "lif_training"
    assert entry_name(source.anonymous) == "snncc_training"


def test_no_compiler(monkeypatch):
    """Where nvcc is missing the error says what to do."""
    monkeypatch.setenv("SNNCC_NVCC", "no-such-nvcc")
    with pytest.raises(TargetError, match="'no-such-nvcc' that SNNCC_NVCC names") as error:
        find_nvcc()

    assert error.value.code == "target.no-nvcc"
    monkeypatch.delenv("SNNCC_NVCC")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(cuda_build, "_USUAL", "/nowhere/nvcc")
    with pytest.raises(TargetError, match="no CUDA compiler on this machine"):
        find_nvcc()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_failure_of_the_compiler(monkeypatch, compiled, tmp_path, arch):
    """A compiler that fails is reported with its command and what it said."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'error: no such thing' >&2\nexit 3\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("SNNCC_NVCC", str(nvcc))
    with pytest.raises(BuildError, match="it ended with status 3") as error:
        cubin_of(kernel(), arch)

    assert error.value.code == "build.nvcc-failed"
    assert f"-arch={arch}" in error.value.notes[0]
    assert error.value.notes[-1] == "error: no such thing"


def test_reading_the_assembler():
    """Registers, spills and shared memory are those of the function that was asked for."""
    log = """
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
    16 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 2048 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""

    assert read_usage(log, "one") == cuda_build.Usage(255, 24, 2048)
    assert read_usage(log, "two") == cuda_build.Usage(32, 0, 0)


def test_kernels_of_a_layer_are_those_of_triton(emulated):
    """The two languages are asked for the same kernels."""
    specs: list[tuple[KernelSpec, ...]] = []
    for target in ("cuda", "triton"):
        neuron = Neuron(lif(), target=target)
        plan = neuron.plan([torch.rand(3, 8), torch.rand(8)], None, training=True)
        specs.append((*neuron.specs(), plan.call.variant))

    assert specs[0] == specs[1]
