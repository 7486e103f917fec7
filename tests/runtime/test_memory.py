"""The pool of large buffers: nothing comes back too early, nothing is lost."""

import gc
import os
import subprocess
import sys
import threading

import pytest
import torch

from snncc.runtime.memory import SMALLEST, Pool

BIG = (SMALLEST // 4, 4)
BYTES = SMALLEST * 4


def test_blocks_are_used_again():
    """The block of a tensor that is gone serves the next one."""
    pool = Pool()
    first = pool.empty(BIG, torch.float32)
    address = first.data_ptr()
    del first

    assert pool.empty(BIG, torch.float32).data_ptr() == address


def test_blocks_are_aligned_to_huge_pages():
    """A block starts where a huge page can."""
    assert Pool().empty(BIG, torch.float32).data_ptr() % (2 << 20) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
def test_shape_and_dtype(dtype):
    """A tensor is what was asked for, and can be written."""
    tensor = Pool().empty((3, 1 << 20), dtype)
    tensor.fill_(7)

    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    assert not tensor._is_view() or tensor._base is not None
    assert bool((tensor == 7).all())


def test_strided():
    """A dense tensor may have its dimensions in any order."""
    tensor = Pool().empty_strided((4, 8, 1 << 17), (1 << 17, 4 << 17, 1), torch.float32)

    assert tensor.stride() == (1 << 17, 4 << 17, 1)
    assert not tensor._is_view()


def test_small_tensors_come_from_torch():
    """The pool does not deal with what malloc does well."""
    pool = Pool()
    tensor = pool.empty((10,), torch.float32)

    assert tensor.shape == (10,)
    assert pool.stats().used_bytes == 0


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[1:],
        lambda t: t.t(),
        lambda t: t.detach(),
        lambda t: t.view(torch.int32),
        lambda t: t.numpy(),
        lambda t: t.untyped_storage(),
        lambda t: torch.utils.data.default_convert(t)[0],
    ],
    ids=["slice", "transpose", "detach", "dtype", "numpy", "storage", "row"],
)
def test_views_keep_a_block(view):
    """A block does not come back while anything refers to it."""
    pool = Pool()
    tensor = pool.empty(BIG, torch.float32)
    seen = view(tensor)
    del tensor
    gc.collect()
    while_seen = pool.stats()
    del seen

    assert while_seen.used_bytes == BYTES
    assert pool.stats().used_bytes == 0
    assert pool.stats().idle_bytes == BYTES


def test_autograd_keeps_a_block():
    """A tensor that was saved for backward is in use."""
    pool = Pool()
    x = torch.ones(BIG, requires_grad=True)
    saved = pool.empty(BIG, torch.float32).fill_(3.0)
    y = x * saved
    del saved
    gc.collect()
    other = pool.empty(BIG, torch.float32).fill_(5.0)
    y.sum().backward()

    assert float(x.grad[0, 0]) == 3.0
    assert float(other[0, 0]) == 5.0


def test_cycles_give_blocks_back():
    """The garbage collector gives blocks back, also while the pool is in use."""
    pool = Pool()
    for _ in range(20):
        holder = [pool.empty(BIG, torch.float32)]
        holder.append(holder)
        del holder
    gc.collect()

    assert pool.stats().used_bytes == 0


def test_limit_on_idle_memory():
    """Idle memory beyond the limit goes back to the system."""
    pool = Pool(limit=2 * BYTES)
    tensors = [pool.empty(BIG, torch.float32) for _ in range(5)]
    tensors.clear()
    at_limit = pool.stats()
    pool.set_limit(BYTES)
    at_lower_limit = pool.stats()
    pool.trim()

    assert at_limit.idle_bytes == 2 * BYTES
    assert at_lower_limit.idle_bytes == BYTES
    assert pool.stats().idle_bytes == 0


def test_size_classes_are_close():
    """A block is at most an eighth larger than what was asked for, above 16 MB."""
    pool = Pool()
    for size in (17 << 20, (33 << 20) + 1, 100_000_001):
        tensor = pool.empty((size,), torch.uint8)
        assert size <= pool.stats().used_bytes <= size * 1.13
        del tensor


def test_threads():
    """Many threads take and give at once; no two tensors ever share memory."""
    pool = Pool()
    failures = []

    def work(number):
        for step in range(40):
            tensor = pool.empty((SMALLEST // 4,), torch.float32)
            tensor[:64].fill_(number * 1000 + step)
            if float(tensor[:64].sum()) != 64 * (number * 1000 + step):
                failures.append((number, step))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert pool.stats().used_bytes == 0


def test_other_thread_gives_back():
    """A block may die in another thread than the one that asked for it."""
    pool = Pool()
    box = [pool.empty(BIG, torch.float32)]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()

    assert pool.stats().used_bytes == 0


def run_python(text):
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)


def test_shutdown_with_living_tensors():
    """A process may end while tensors of the pool live."""
    text = (
        "import torch, sys; from snncc.runtime import memory\n"
        "kept = memory.empty((1 << 20,), torch.float32).fill_(1.0); sys.kept = kept\n"
        "cycle = [kept[5:]]; cycle.append(cycle)\n"
        "leaf = torch.ones(1 << 20, requires_grad=True); graph = leaf * kept\n"
    )
    result = run_python(text)

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork():
    """A forked child has its own memory and can use the pool."""
    text = (
        "import os, torch; from snncc.runtime import memory\n"
        "torch.set_num_threads(1)\n"
        "shared = memory.empty((1 << 20,), torch.float32).fill_(1.0)\n"
        "memory.POOL._lock.acquire()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    shared.fill_(2.0); other = memory.empty((1 << 20,), torch.float32).fill_(3.0)\n"
        "    os._exit(0 if float(shared[5]) == 2.0 else 1)\n"
        "memory.POOL._lock.release()\n"
        "status = os.waitpid(child, 0)[1]\n"
        "print(status, float(shared[5]))\n"
    )
    result = run_python(text)

    assert result.stdout == "0 1.0\n"
