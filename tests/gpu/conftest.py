"""GPUs that are not there: an interpreter or the CPU for values, compilers for binaries."""

import sys
from typing import Any

import pytest
import torch

from snncc.runtime.gpu.cuda_driver import Device, Driver
from tests.gpu.emulated import NVCC, Library

pytest.importorskip("triton")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load Triton kernels into Triton's interpreter, which runs them on CPU tensors."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def rounding(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter round to bfloat16 as a GPU does; it cuts off."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cut = InterpreterBuilder.cast_impl

    def cast(builder: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cut(builder, source, kind)
        value = torch.tensor(source.data).to(torch.bfloat16).view(torch.uint16).numpy()
        return TensorHandle(value, kind.scalar)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast)


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
