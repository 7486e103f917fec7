"""GPUs that are not there: an interpreter or the CPU for values, compilers for binaries."""

import sys

import pytest

from snncc.runtime.gpu.cuda_driver import Device, Driver
from tests.gpu.emulated import NVCC, Library

pytest.importorskip("triton")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load Triton kernels into Triton's interpreter, which runs them on CPU tensors."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let Triton compile anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Run CUDA kernels on the CPU, as if its tensors were on a GPU."""
    library = Library()
    device = Device(Driver(library), 0, "sm_90", lambda: 0)
    monkeypatch.setattr("snncc.runtime.gpu.cuda_kernels.open_device", lambda _: device)
    monkeypatch.setenv("SNNCC_NVCC", f"{sys.executable} {NVCC}")
    return library


@pytest.fixture(params=["triton", "cuda"])
def target(request: pytest.FixtureRequest) -> str:
    """Name a language whose kernels run on tensors of the CPU."""
    request.getfixturevalue("interpreted" if request.param == "triton" else "emulated")
    return request.param
