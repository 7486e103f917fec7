"""Compile and call kernels that are written in Triton.

Layers whose kernels differ in nothing but the names of the user share one function and its
binaries.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import linecache
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from snncc.codegen.base import KernelSource, Slot, SlotKind
from snncc.errors import BuildError, TargetError
from snncc.runtime.gpu.variants import (
    Launch,
    Variant,
    aligned_slots,
    constants_of,
    multiple_of,
)

POINTER = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
}
# The oldest Triton whose division rounds as IEEE 754 says, subnormal numbers included.
OLDEST = (3, 6)


class TritonKernel:
    """A kernel that can be compiled and called.

    Args:
        source: The kernel.
    """

    def __init__(self, source: KernelSource) -> None:
        self.source = source
        self.slots = source.signature.slots

    def bind(self, variant: Variant, values: Sequence[int], device: torch.device) -> Launch:
        """Return calls of the kernel, see `GpuKernel`."""
        programs = variant.blocks.programs(values)
        numbers = (*values, *constants_of(self.slots, variant.blocks).values())
        loaded = load(self.source)
        if device.type == "cpu":
            interpreted = loaded.interpreted()[(programs,)]
            return lambda arrays: interpreted(*arrays, *numbers)
        with torch.cuda.device(device):
            run = loaded.compiled(self.source, variant, device)[(programs, 1, 1)]
        return _on_device(device, run, numbers)


def _on_device(device: torch.device, run: Callable[..., None], numbers: Sequence[int]) -> Launch:
    """Return calls of a binary on its device, which becomes the current one where it is not."""
    current_device, stream_of = torch.cuda.current_device, _driver().get_current_stream

    def call(arrays: Sequence[Tensor]) -> None:
        if current_device() == device.index:
            run(*arrays, *numbers, stream=stream_of(device.index))
            return
        with torch.cuda.device(device):
            run(*arrays, *numbers)

    return call


class Loaded:
    """The function that a text defines, and its binaries.

    Args:
        function: What ``triton.jit`` made of it.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self._compiled: dict[tuple[Variant, int | None], Any] = {}

    def interpreted(self) -> Any:
        """Return the function for tensors of the CPU.

        Raises:
            TargetError: It was not loaded into the interpreter.
        """
        if not _is_interpreted(self.function):
            raise TargetError(
                "A Triton kernel cannot run on the CPU.",
                code="target.triton-on-cpu",
                hints=[
                    "Move the model and its inputs to a GPU, or choose target='c'.",
                    "Or set TRITON_INTERPRET=1 before the start: Triton's interpreter, slow.",
                ],
            )
        return self.function

    def compiled(self, source: KernelSource, variant: Variant, device: torch.device) -> Any:
        """Return the binary for a device, which is the current one."""
        key = (variant, device.index)
        if key not in self._compiled:
            target = _driver().get_current_target()
            self._compiled[key] = compile_kernel(source, self.function, variant, target)
        return self._compiled[key]


def load(source: KernelSource) -> Loaded:
    """Return the function of a kernel.

    Raises:
        TargetError: Triton is not installed, or too old.
    """
    require_triton()
    import triton

    return _load(source.anonymous, bool(triton.knobs.runtime.interpret))


@functools.cache
def _load(text: str, interpreted: bool) -> Loaded:
    # Triton reads the text of a function back; this is where Python finds it without a file.
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = f"<snncc kernel {digest}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"__name__": f"snncc.kernels.{digest}", "__file__": file}
    exec(compile(text, file, "exec"), scope)
    if interpreted and "libdevice" in scope:
        from snncc.runtime.gpu.triton_interpreter import Library

        scope["libdevice"] = Library()
    return Loaded(next(value for name, value in scope.items() if name.startswith("snncc_")))


def require_triton() -> None:
    """Check that Triton is there.

    Raises:
        TargetError: It is not installed, or too old.
    """
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise TargetError(
            "Triton is not installed.",
            code="target.no-triton",
            hints=["Install it: 'pip install triton'. It is for Linux."],
        ) from None
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise TargetError(
            f"Triton {version} is too old.",
            code="target.triton-version",
            notes=["Before Triton 3.6 a quotient of float32 that is subnormal becomes zero."],
            hints=["Install Triton 3.6 or newer; PyTorch 2.10 and newer come with it."],
        )


def _is_interpreted(function: Any) -> bool:
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(function, InterpretedFunction)


@functools.cache
def _driver() -> Any:
    from triton.runtime.driver import driver

    return driver.active


def compile_kernel(source: KernelSource, function: Any, variant: Variant, target: Any) -> Any:
    """Compile a kernel for a GPU, which need not be there.

    Args:
        source: The kernel.
        function: What its text defines.
        variant: What it is compiled for.
        target: A ``triton.backends.compiler.GPUTarget``.

    Returns:
        A ``triton.compiler.CompiledKernel``; its ``asm`` holds every stage.

    Raises:
        BuildError: Triton failed.
    """
    from triton.compiler import ASTSource, compile

    slots = source.signature.slots
    constants = {(i,): value for i, value in constants_of(slots, variant.blocks).items()}
    kinds = iter(variant.pointers)
    types = [_type(slot, kinds, variant) for slot in slots]
    signature = dict(zip(function.arg_names, types, strict=True))
    hints = alignment_hints(slots, variant)
    options = {"num_warps": variant.blocks.warps, "enable_fp_fusion": False}
    if variant.blocks.registers and target.backend == "cuda":
        options["maxnreg"] = variant.blocks.registers
    try:
        return compile(ASTSource(function, signature, constants, hints), target, options)
    except Exception as error:
        raise BuildError(
            f"Triton failed on the kernel '{source.name}'.",
            code="build.triton-failed",
            notes=[f"{type(error).__name__}: {error}", f"Target: {target}"],
        ) from error


def alignment_hints(slots: Sequence[Slot], variant: Variant) -> dict[tuple[int], list[Any]]:
    """Return for each parameter what it is known to be a multiple of, where it is known."""
    hinted = aligned_slots(slots) if variant.aligned else ()
    return {
        (position,): [["tt.divisibility", multiple_of(slot, variant.blocks.vector)]]
        for position, slot in enumerate(slots)
        if slot in hinted
    }


def _type(slot: Slot, pointers: Any, variant: Variant) -> str:
    if slot.kind is SlotKind.ARRAY:
        return POINTER[next(pointers)]
    if slot.kind is SlotKind.STEPS:
        return "i32"
    if slot.kind in (SlotKind.LANES, SlotKind.ACROSS, SlotKind.EXTENT):
        return "i64" if variant.wide else "i32"
    return "i64" if slot.kind in (SlotKind.TIME, SlotKind.STRIDE) else "constexpr"
