"""A pool of large buffers, so that the outputs of kernels do not fault in new pages at each call.

The memory that ``malloc`` gives for a large tensor is fresh from the system each time, and the
first touch of each of its pages costs more than a kernel takes to fill it.  The pool keeps the
blocks of tensors that are gone and hands them out again.  Blocks start at a huge page and ask for
as many huge pages as they fill; the rest of a block is in small pages, so that none is wasted.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import math
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from torch import Tensor

_HUGE_PAGE = 2 << 20
# Smaller tensors come from torch: its allocator serves them without the system's help.
SMALLEST = 1 << 20
_SMALLEST_STEP = 16  # two to the power of it: no fewer bytes are between two size classes


@dataclass(frozen=True, slots=True)
class Stats:
    """What the pool holds, in bytes and blocks."""

    used_bytes: int
    idle_bytes: int
    idle_blocks: int
    limit: int


class _Block:
    """One mapping; its usable part starts at a huge page."""

    __slots__ = ("_mapping", "address", "lease", "size")

    def __init__(self, size: int) -> None:
        # Private: Python's default is memory shared with forked children, without huge pages.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._mapping = mmap.mmap(-1, size + _HUGE_PAGE, flags=flags)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.address = -(-start // _HUGE_PAGE) * _HUGE_PAGE
        self.size = size
        self.lease = _lease_type(size)
        huge = size // _HUGE_PAGE * _HUGE_PAGE
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            # A kernel without huge pages refuses; small pages work as well.
            with contextlib.suppress(OSError):
                self._mapping.madvise(mmap.MADV_HUGEPAGE, self.address - start, huge)

    def unmap(self) -> None:
        self._mapping.close()


@functools.cache
def _lease_type(size: int) -> Any:
    """Return a class of objects that lend a block: when the last tensor drops one, it is free."""

    def give_back(lease: Any) -> None:
        lease.pool._give_back(lease.block)

    return type("_Lease", (ctypes.c_char * size,), {"__del__": give_back})


class Pool:
    """Hands out tensors on blocks of memory and takes the blocks back when the tensors are gone.

    A block is free when no tensor, view or storage refers to it any more.  Blocks come back
    from any thread and from the garbage collector, at any point of a program: giving back only
    appends to a queue, which the next request empties.

    Args:
        limit: Most bytes kept idle; None means a quarter of the machine's memory.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = _quarter_of_memory() if limit is None else limit
        self._returned: deque[_Block] = deque()
        self._idle: dict[int, list[_Block]] = {}
        self._idle_bytes = 0
        self._used_bytes = 0
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            pool = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _reset_lock(pool))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a contiguous tensor with arbitrary content."""
        if math.prod(shape) * dtype.itemsize < SMALLEST:
            return torch.empty(shape, dtype=dtype, device="cpu")
        strides = list(accumulate(reversed(shape[1:]), mul, initial=1))[::-1]
        return self.empty_strided(shape, strides, dtype)

    def empty_strided(
        self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """Return a dense tensor with given strides and arbitrary content."""
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return torch.empty_strided(shape, stride, dtype=dtype, device="cpu")
        return self.buffer(size, dtype).as_strided_(shape, stride)

    def buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        """Return a flat tensor of ``size`` bytes on a block of the pool."""
        block = self._take(_size_class(size))
        lease = block.lease.from_address(block.address)
        lease.pool, lease.block = self, block
        # The storage of the tensor keeps the lease alive, whatever views there are.
        return torch.frombuffer(lease, dtype=dtype, count=size // dtype.itemsize)

    def stats(self) -> Stats:
        """Return what the pool holds now."""
        with self._lock:
            self._collect()
            blocks = sum(len(blocks) for blocks in self._idle.values())
            return Stats(self._used_bytes, self._idle_bytes, blocks, self._limit)

    def trim(self, idle_bytes: int = 0) -> None:
        """Return idle memory to the system until at most ``idle_bytes`` are kept."""
        with self._lock:
            self._collect()
            self._shrink(idle_bytes)

    def set_limit(self, limit: int) -> None:
        """Set the most bytes that are kept idle."""
        with self._lock:
            self._limit = limit
            self._collect()

    def _take(self, size: int) -> _Block:
        with self._lock:
            self._collect()
            blocks = self._idle.get(size)
            if blocks:
                block = blocks.pop()
                self._idle_bytes -= size
                self._used_bytes += size
                return block
        try:
            block = _Block(size)
        except OSError as error:
            raise MemoryError(f"the system has no {size} bytes of memory") from error
        with self._lock:
            self._used_bytes += size
        return block

    def _give_back(self, block: _Block) -> None:
        # Runs inside the garbage collector too, maybe while this thread holds the lock.
        self._returned.append(block)
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._used_bytes -= block.size
            self._idle_bytes += block.size
            # Last in the dictionary: sizes in use stay, others are the first to go.
            self._idle[block.size] = [*self._idle.pop(block.size, ()), block]
        self._shrink(self._limit)

    def _shrink(self, idle_bytes: int) -> None:
        while self._idle_bytes > idle_bytes:
            size = next(iter(self._idle))
            blocks = self._idle[size]
            if blocks:
                blocks.pop().unmap()
                self._idle_bytes -= size
            if not blocks:
                del self._idle[size]


def _reset_lock(pool: weakref.ref[Pool]) -> None:
    """Replace the lock in a forked child: another thread of the parent may have held it."""
    alive = pool()
    if alive is not None:
        alive._lock = threading.Lock()


def _size_class(size: int) -> int:
    """Round up to one of eight classes in each power of two."""
    step = 1 << max(size.bit_length() - 4, _SMALLEST_STEP)
    return -(-size // step) * step


def _quarter_of_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, OSError, ValueError):
        return 1 << 30


POOL = Pool()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a contiguous tensor with arbitrary content from the pool of the process."""
    return POOL.empty(shape, dtype)


def empty_strided(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a dense tensor with given strides from the pool of the process."""
    return POOL.empty_strided(shape, stride, dtype)


def stats() -> Stats:
    """Return what the pool of the process holds now."""
    return POOL.stats()


def trim(idle_bytes: int = 0) -> None:
    """Return idle memory of the process to the system until at most ``idle_bytes`` are kept."""
    POOL.trim(idle_bytes)


def set_limit(limit: int) -> None:
    """Set the most bytes that the pool of the process keeps idle."""
    POOL.set_limit(limit)


@contextlib.contextmanager
def passing() -> Iterator[None]:
    """Free what a block of code leaves behind at its end, memory of the C library included.

    Recording a model runs it serially once, and a record refers to itself.  Only objects younger
    than the block are looked at, because a collection of all objects takes longer than a recording.
    """
    freeze = gc.get_freeze_count() == 0
    if freeze:
        gc.freeze()
    try:
        yield
    finally:
        if freeze:
            gc.collect()
            gc.unfreeze()
        release_free()


def release_free() -> None:
    """Give memory that the C library keeps free back to the system, where it can."""
    trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim_heap is not None:
        trim_heap(ctypes.c_size_t(0))
