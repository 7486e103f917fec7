"""Schedules respect their bounds, whatever the sizes."""

from hypothesis import given
from hypothesis import strategies as st

from snncc.codegen.base import BLOCK, Argument, FloatType, Role, Signature
from snncc.ir.nodes import Rank
from snncc.runtime.layout import Layout
from snncc.runtime.schedule import make_schedule

X = Argument("x_in", "x", Role.INPUT, Rank.STEP)


def signature(dtype=FloatType.FLOAT32, scratch=0, checkpoint=0):
    return Signature(dtype, (X,), tile=2048, scratch=scratch, checkpoint=checkpoint)


@given(
    st.sampled_from(FloatType),
    st.integers(0, 3),
    st.integers(0, 3000),
    st.integers(1, 100_000),
    st.integers(1, 64),
    st.sampled_from([None, 1, 1 << 16]),
)
def test_bounds(dtype, scratch, steps, lanes, threads, scratch_bytes):
    """Tiles are whole blocks within the kernel's limit; scratch holds its chunks."""
    kernel = signature(dtype, scratch, checkpoint=1)
    layout = Layout(steps, (lanes,), (0, 1), ((0,),))
    schedule = make_schedule(kernel, layout, threads, scratch_bytes)

    assert 0 < schedule.tile <= kernel.tile
    assert schedule.tile % BLOCK == 0
    assert 1 <= schedule.chunk <= max(steps, 1)
    assert 1 <= schedule.threads <= threads
    assert schedule.ahead >= 1
    chunks = -(-steps // schedule.chunk)
    needed = (chunks + schedule.chunk * scratch) * schedule.tile
    assert schedule.thread_scratch >= needed


def test_small_work_stays_on_one_thread():
    """Waking a thread takes longer than a small layer."""
    assert make_schedule(signature(), Layout(4, (100,), (0, 1), ((0,),)), 2).threads == 1


def test_lanes_are_divided_among_threads():
    """Each thread gets the same number of tiles."""
    schedule = make_schedule(signature(), Layout(100, (4096,), (0, 1), ((0,),)), 2)

    assert -(-4096 // schedule.tile) % 2 == 0


def test_long_time_is_cut():
    """Scratch stays in the second-level cache."""
    kernel = signature(scratch=1, checkpoint=1)
    schedule = make_schedule(kernel, Layout(100_000, (4096,), (0, 1), ((0,),)), 2, 1 << 18)

    assert schedule.chunk * schedule.tile * 4 <= 1 << 18


def test_chunks_are_equal():
    """A step more than a chunk does not make a chunk of its own."""
    kernel = signature(scratch=1, checkpoint=1)
    layout = Layout(257, (256,), (0, 1), ((0,),))

    assert make_schedule(kernel, layout, 1, 256 * 256 * 4).chunk == 129
