"""Exported CUDA libraries compute what the PyTorch model computes; no GPU is needed to know.

The very text of the kernels and the very C that launches them are compiled for the CPU, and linked
with a library that plays CUDA's driver.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import snncc
from snncc.errors import BundleError, OptionError
from tests.export.networks import LIBRARIES, prepared
from tests.gpu.emulated import NVCC

BUNDLES = importlib.import_module("snncc.export.replay")  # "snncc.export" is the function
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow", "-Wvla")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Compile what plays the driver."""
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = NVCC.parent / "libcuda.c"
    command = ["cc", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-ldl"]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library


@pytest.fixture
def gpu(driver, monkeypatch):
    """Let the CPU play a GPU and its compiler."""
    monkeypatch.setenv("SNNCC_NVCC", f"{sys.executable} {NVCC}")
    monkeypatch.setattr(BUNDLES, "driver_library", lambda: driver)


def export(name: str, folder: Path, **options: object) -> snncc.Bundle:
    case = LIBRARIES[name]
    model, x = prepared(case)
    fast = snncc.compile(model, **case.options)
    return snncc.export(
        fast, folder / name, format="cuda", example_inputs=(x,), name=f"net_{name}", **options
    )


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_is_the_model(gpu, tmp_path, name):
    """Kernels, launches and copies give the outputs of the model; nothing is left allocated.

    Where products are exact, no bit differs.
    """
    bundle = export(name, tmp_path, arch="sm_90")
    report = snncc.verify_bundle(bundle.folder, flags=("-O1", *STRICT))

    assert report.ok, report
    assert report.ran
    if LIBRARIES[name].exact:
        assert re.findall(r", (\d+) differ", report.text) == ["0"] * report.text.count("differ,")


@pytest.mark.parametrize("name", ["dense", "conv", "attending"])
def test_bits_are_those_of_the_c_library(gpu, tmp_path, name):
    """Sums run in the same order, so that inexact products agree, too."""
    case = LIBRARIES[name]
    model, x = prepared(case)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.01)
    fast = snncc.compile(model, **case.options)
    outputs = []
    for format in ("c", "cuda"):
        bundle = snncc.export(
            fast, tmp_path / format, format=format, example_inputs=(x,), name="net", arch="sm_90"
        )
        outputs.append(_outputs(bundle, tmp_path, format))

    assert outputs[0]
    assert outputs[0] == outputs[1]


def _outputs(bundle: snncc.Bundle, folder: Path, format: str) -> bytes:
    sources = ["net.c", "net_weights.c", "main.c"]
    libraries = []
    if format == "cuda":
        sources.append("net_images.c")
        libraries = [str(BUNDLES.driver_library())]
    program, written = folder / f"main-{format}", folder / f"out-{format}"
    command = ["cc", "-std=c11", "-O2", "-ffp-contract=off", *sources, *libraries, "-lm"]
    subprocess.run([*command, "-o", str(program)], cwd=bundle.folder, check=True)
    subprocess.run(
        [str(program), "test_vector.bin", "--out", str(written)],
        cwd=bundle.folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return written.read_bytes()


def test_without_a_driver_files_are_checked(gpu, tmp_path, monkeypatch):
    """Where no kernel can run the report says so, and damage is found all the same."""
    bundle = export("dense", tmp_path)
    monkeypatch.setattr(BUNDLES, "driver_library", lambda: None)
    report = snncc.verify_bundle(bundle.folder)

    assert report.ok
    assert not report.ran
    assert "no kernel was run" in report.text
    image = bundle.folder / "net_dense.sm_90.cubin"
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="intact") as error:
        snncc.verify_bundle(bundle.folder)
    assert error.value.code == "bundle.damaged"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FAKE_CUDA_REFUSES", "cuInit", "error 100"),
        ("FAKE_CUDA_REFUSES", "cuMemAlloc", "error 2"),
        ("FAKE_CUDA_COMPUTE", "75", "error 209"),
        ("FAKE_CUDA_COMPUTE", "100", "error 209"),
    ],
)
def test_what_the_driver_refuses(gpu, tmp_path, monkeypatch, variable, value, said):
    """No GPU, no memory, and GPUs without a binary: the error is returned, and nothing is left."""
    bundle = export("dense", tmp_path)
    monkeypatch.setenv(variable, value)
    report = snncc.verify_bundle(bundle.folder)

    assert not report.ran
    assert said in report.text
    assert "are left" not in report.text


def test_a_newer_gpu_of_the_same_kind_is_served(gpu, tmp_path, monkeypatch):
    """A binary for 8.0 runs on 8.6; of two that fit the newer is taken."""
    bundle = export("dense", tmp_path, arch=("sm_80", "sm_86", "sm_90"))
    monkeypatch.setenv("FAKE_CUDA_COMPUTE", "89")

    assert snncc.verify_bundle(bundle.folder).ran


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on this machine")
@pytest.mark.parametrize("name", ["conv", "attending", "recurrent"])
def test_kernels_compile_for_gpus(tmp_path, name):
    """nvcc compiles all kernels without a warning, and contracts nothing but inside of ``exp``."""
    bundle = export(name, tmp_path, arch=("sm_80", "sm_90"))
    kernels = bundle.folder / f"net_{name}.cu"
    command = ["nvcc", "-std=c++17", "-fmad=false", "-arch=sm_90", "-ptx", "-Werror=all-warnings"]
    subprocess.run([*command, str(kernels), "-o", str(tmp_path / "k.ptx")], check=True)
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    names = re.findall(r"\.entry (\w+)\(", (tmp_path / "k.ptx").read_text())

    assert manifest["format"] == "snncc-cuda-library"
    assert manifest["arch"] == ["sm_80", "sm_90"]
    assert set(manifest["kernels"]) == set(names)
    assert name == "attending" or not re.search(r"\bfma\.", (tmp_path / "k.ptx").read_text())
    for arch in manifest["arch"]:
        assert (bundle.folder / f"net_{name}.{arch}.cubin").read_bytes()[:4] == b"\x7fELF"


@pytest.mark.parametrize("arch", ["gfx942", "90", (), "sm_90a"])
def test_other_architectures_are_refused(tmp_path, arch):
    """A library is for GPUs of NVIDIA, one at least."""
    with pytest.raises(OptionError) as error:
        export("dense", tmp_path, arch=arch)

    assert error.value.code == "option.arch"
