"""Load and launch CUDA kernels by the driver of the machine, without torch's headers."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from snncc.errors import LaunchError, TargetError


@dataclass(frozen=True)
class Function:
    """A kernel on a device.

    Attributes:
        handle: What the driver knows it by.
        context: The context that it was loaded into.
    """

    handle: ctypes.c_void_p
    context: ctypes.c_void_p


class Driver:
    """The part of CUDA's driver that kernels need.

    Args:
        library: The driver; its functions return 0 where all is well.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def load(self, ordinal: int, image: bytes, name: str) -> Function:
        """Load a kernel.

        Args:
            ordinal: The number of the device.
            image: A cubin.
            name: A function in it.

        Raises:
            LaunchError: The driver refuses.
        """
        module, handle, context = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        device = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), ordinal)
        # The context that torch works in, too.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxPushCurrent_v2", context)
        try:
            self._call("cuModuleLoadData", ctypes.byref(module), image)
            self._call("cuModuleGetFunction", ctypes.byref(handle), module, name.encode())
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        return Function(handle, context)

    def launch(
        self, function: Function, shape: tuple[int, int], parameters: Sequence[int], stream: int
    ) -> None:
        """Start a kernel.

        Args:
            function: The kernel.
            shape: The blocks, and the threads of a block.
            parameters: Addresses and integers, in the order of its parameters.
            stream: The stream that it is put into.

        Raises:
            LaunchError: The driver refuses.
        """
        values, places = pack(parameters)
        blocks, threads = shape
        # A thread of autograd may have no context yet.
        self._call("cuCtxPushCurrent_v2", function.context)
        try:
            grid = (blocks, 1, 1, threads, 1, 1)
            nothing = ctypes.c_void_p()
            where = ctypes.c_void_p(stream)
            self._call("cuLaunchKernel", function.handle, *grid, 0, where, places, nothing)
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        del values  # up to here the driver reads it

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            said = text.value.decode() if text.value else "an unknown error"
            raise LaunchError(
                f"CUDA's driver refused '{name}': {said}.",
                code="launch.driver",
                notes=[f"Error {status}."],
                hints=["An error of an earlier kernel shows here; CUDA_LAUNCH_BLOCKING=1 tells."],
            )


def pack(parameters: Sequence[int]) -> tuple[ctypes.Array[Any], ctypes.Array[Any]]:
    """Return parameters in memory, eight bytes each, and the addresses of all of them.

    A parameter of four bytes is the first half of its eight: the machines that have such a driver
    store the low bytes of a number first.
    """
    count = len(parameters)
    values = (ctypes.c_longlong * count)(*parameters)
    start = ctypes.addressof(values)
    return values, (ctypes.c_void_p * count)(*range(start, start + 8 * count, 8))


@functools.cache
def open_driver() -> Driver:
    """Return the driver of this machine.

    Raises:
        TargetError: There is none.
    """
    try:
        return Driver(ctypes.CDLL("libcuda.so.1"))
    except OSError as error:
        raise TargetError(
            "CUDA's driver is not on this machine.",
            code="target.no-driver",
            notes=[str(error)],
            hints=["Install NVIDIA's driver, or choose target='auto'."],
        ) from error


@dataclass(frozen=True)
class Device:
    """A GPU that kernels run on.

    Attributes:
        driver: What runs them.
        ordinal: Its number.
        arch: What they are compiled for, such as ``sm_90``.
        stream: Returns the stream that torch works in at present.
    """

    driver: Driver
    ordinal: int
    arch: str
    stream: Callable[[], int]


@functools.cache
def open_device(device: torch.device) -> Device:
    """Return the GPU behind a device of torch.

    Raises:
        TargetError: It is none of NVIDIA's.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        raise TargetError(
            f"A CUDA kernel cannot run on '{device.type}'.",
            code="target.cuda-on-cpu",
            hints=["Move the model and its inputs to a GPU of NVIDIA, or choose target='auto'."],
        )
    major, minor = torch.cuda.get_device_capability(device)
    ordinal = torch.cuda.current_device() if device.index is None else device.index

    def stream() -> int:
        return int(torch.cuda.current_stream(device).cuda_stream)

    return Device(open_driver(), ordinal, f"sm_{major}{minor}", stream)
