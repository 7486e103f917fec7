"""Spikes packed by Triton kernels: in its interpreter, and compiled for GPUs that are not there."""

from __future__ import annotations

import pytest
import torch

from snncc.codegen.c.bits import Way
from snncc.codegen.triton.bits import BLOCKS, bits_source
from snncc.runtime.gpu import bits
from snncc.runtime.gpu.triton_kernels import load
from snncc.runtime.products import spikes

HALF = torch.float16


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("count", [1, 31, 32, 64, 65, 1024, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, HALF], ids=str)
def test_words_are_those_of_the_cpu(count: int, dtype: torch.dtype) -> None:
    """Any number of values, of any type; what was packed is what is unpacked."""
    torch.manual_seed(count)
    flat = (torch.rand(count) < 0.4).to(dtype)
    words = bits.pack(flat)

    assert torch.equal(words, spikes.pack(flat.float()))
    assert torch.equal(bits.unpack(words, count, dtype), flat)


@pytest.mark.usefixtures("triton_cache")
@pytest.mark.parametrize("way", ["pack", "unpack"])
@pytest.mark.parametrize(("name", "warp"), [("sm_90", 32), ("gfx942", 64)])
def test_kernels_compile(way: Way, name: str, warp: int) -> None:
    """They have binaries for NVIDIA's and AMD's GPUs."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    arch = int(name[3:]) if name.startswith("sm_") else name
    target = GPUTarget("cuda" if name.startswith("sm_") else "hip", arch, warp)
    types = {"values": "*fp32", "halves": "*i32", "count": "i64", "BLOCK": "constexpr"}
    source = ASTSource(load(bits_source(way)).function, types, {(3,): BLOCKS[way]})

    assert compile(source, target).asm["cubin" if target.backend == "cuda" else "hsaco"]
