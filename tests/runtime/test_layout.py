"""How lanes are joined and what is copied."""

import pytest

from snncc.runtime.layout import Array, Layout, choose_groups, memory_order, place


def see(lanes, arrays, order=None, steps=4):
    order = order or tuple(range(len(lanes) + 1))
    layout = choose_groups(Layout(steps, lanes, order), arrays)
    return layout, place(layout, arrays)


def test_contiguous_lanes_are_one_dimension():
    """The common case: one row of lanes."""
    layout, (x,) = see((8, 100), [Array(800, (100, 1))])

    assert layout.extents == (1, 1, 800)
    assert (x.copy, x.strides, x.uniform) == (None, (800, 0, 0), False)


def test_long_rows_are_read_as_they_are():
    """A parameter for each neuron is read in place where rows are long."""
    layout, (_, p) = see((8, 1000), [Array(8000, (1000, 1)), Array(None, (0, 1))])

    assert layout.extents == (1, 8, 1000)
    assert (p.copy, p.strides) == (None, (0, 0))


def test_short_rows_are_joined_by_a_copy_of_the_parameter():
    """A parameter for each channel of small images is copied, the input is not."""
    arrays = [Array(8 * 16 * 49, (16 * 49, 49, 1)), Array(None, (0, 1, 0))]
    layout, (x, p) = see((8, 16, 49), arrays)

    assert layout.extents == (1, 8, 784)
    assert x.copy is None
    assert p.copy == (1, 16, 49)


def test_channels_of_large_images_are_uniform():
    """A parameter for each channel of large images is one number in a row."""
    arrays = [Array(8 * 16 * 256, (16 * 256, 256, 1)), Array(None, (0, 1, 0))]
    layout, (_, p) = see((8, 16, 256), arrays)

    assert layout.extents == (8, 16, 256)
    assert (p.copy, p.uniform) == (None, True)


def test_gaps_are_packed():
    """An innermost stride that is not 0 or 1 needs a copy, of the array's own size."""
    _, (x,) = see((8, 100), [Array(200, (0, 2))])

    assert x.copy == (1, 100)


def test_many_dimensions():
    """Whatever does not fit three dimensions is copied."""
    arrays = [
        Array(720, (360, 120, 30, 6, 1)),
        Array(720, (0, 120, 0, 6, 0)),
        Array(None, (0, 1, 0, 5, 0)),
    ]
    layout, placed = see((2, 3, 4, 5, 6), arrays)

    assert len(layout.groups) <= 3
    assert placed[0].copy is None


def test_single_lane():
    """A scalar neuron has one lane and no strides."""
    layout, (x,) = see((), [Array(1, ())])

    assert layout.extents == (1, 1, 1)
    assert not x.uniform


@pytest.mark.parametrize(
    ("sizes", "strides", "order"),
    [
        ((4, 8, 10), (80, 10, 1), (0, 1, 2)),
        ((4, 8, 10), (10, 40, 1), (1, 0, 2)),
        ((4, 8, 10), (80, 1, 8), (0, 2, 1)),
        ((4, 8, 10), (1, 4, 32), (0, 1, 2)),  # time innermost
        ((4, 8, 10), (80, 0, 1), (0, 1, 2)),  # broadcast
        ((4, 8, 10), (160, 20, 2), (0, 1, 2)),  # gaps
        ((4, 1, 10), (10, 7, 1), (1, 0, 2)),
    ],
)
def test_memory_order(sizes, strides, order):
    """The order in memory is followed where it is dense and time is not innermost."""
    assert memory_order(sizes, strides) == order
