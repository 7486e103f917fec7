"""Say before the text of a CUDA kernel what one binary of it is made for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from snncc.codegen.base import KernelSource, SlotKind
from snncc.runtime.gpu.variants import Variant, constants_of

WARP = 32
_TYPES = {
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
    torch.float32: "float",
    torch.float64: "double",
    torch.int8: "signed char",
}
_HALVES = frozenset({torch.float16, torch.bfloat16})


def threads_of(variant: Variant) -> int:
    """Return the threads of a block."""
    return variant.blocks.warps * WARP


def specialize(source: KernelSource, variant: Variant) -> KernelSource:
    """Return a complete text for one variant of a kernel."""
    head = "\n".join(_head(source, variant)) + "\n\n"
    return replace(source, text=head + source.text, anonymous=head + source.anonymous)


def _head(source: KernelSource, variant: Variant) -> Iterator[str]:
    if not _HALVES.isdisjoint(variant.pointers):
        yield "#include <cuda_bf16.h>"
        yield "#include <cuda_fp16.h>"
        yield "#define HALVES"
    yield "#define VARIANT"
    yield f"#define LANE {'long long' if variant.wide else 'int'}"
    yield f"#define VECTOR {variant.blocks.lanes // threads_of(variant)}"
    yield f"#define ALIGNED {int(variant.aligned)}"
    slots = source.signature.slots
    for position, value in constants_of(slots, variant.blocks).items():
        argument = slots[position].argument
        name = slots[position].name
        if slots[position].kind is SlotKind.FOLD and argument is not None:
            name = f"FOLD_{source.signature.arguments.index(argument)}"
        yield f"#define {name} {value}"
    for position, dtype in enumerate(variant.pointers):
        yield f"#define TYPE_{position} {_TYPES[dtype]}"
