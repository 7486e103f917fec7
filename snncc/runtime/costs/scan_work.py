"""The work of a scan over chunks, and the cut that takes least."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from snncc.ir.chunked_scan import ChunkedScan
from snncc.runtime.costs.work import Work, kernel_work, step_work
from snncc.runtime.scans.cut import FEW_LANES, Cut, cut_into

# Operators of torch around the kernels of a scan, for each input or output and each linear state.
_OPERATORS_AN_ARRAY, _OPERATORS_A_STATE, _OPERATORS = 4, 8, 12
# The longest row of lanes that chunks are laid side by side for, over the threads' count.
_MOST_LANES = 8192


def scan_work(scan: ChunkedScan, steps: int, lanes: int, threads: int, cut: Cut | None) -> Work:
    """Return the work of a scan with a given cut; None runs from the first step to the last."""
    apply = step_work(scan.apply)
    if cut is None:
        return kernel_work(apply, steps, 1, lanes, threads)
    states = len(scan.linear)
    total = Work(
        operators=_OPERATORS + _OPERATORS_AN_ARRAY * apply.arrays + _OPERATORS_A_STATE * states
    )
    before, chunks = cut.chunks - 1, cut.chunks
    dense = lanes < FEW_LANES
    if dense:  # copied, so that chunks lie next to each other
        total += Work(copies=8.0 * apply.arrays * steps * lanes)
    for part, count in ((scan.summary, before), (scan.apply, chunks)):
        if part is not None:
            rows, width = (1, count * lanes) if dense else (count, lanes)
            total += kernel_work(step_work(part), cut.length, rows, width, threads)
    if scan.carry is not None:
        total += kernel_work(step_work(scan.carry), before, 1, lanes, threads)
    if scan.lookback is not None:
        total += kernel_work(step_work(scan.lookback), len(scan.delays), before, lanes, threads)
    if cut.rest:
        total += kernel_work(apply, cut.rest, 1, lanes, threads)
        # The outputs of both parts are put together.
        total += Work(copies=8.0 * len(scan.whole.outputs) * steps * lanes)
    return total


def cuts(steps: int, lanes: int, least: int) -> Iterator[Cut]:
    """Yield cuts into powers of two of chunks."""
    chunks = 2
    while steps // chunks >= least and chunks * max(lanes, 1) <= _MOST_LANES:
        cut = cut_into(steps, steps // chunks)
        if cut is not None:
            yield cut
        chunks *= 2


def best_cut(
    scan: ChunkedScan, steps: int, lanes: int, threads: int, prices: Mapping[str, float]
) -> tuple[Cut | None, float]:
    """Return the cut that will probably take least, and the seconds; None is no cut."""
    whole = scan_work(scan, steps, lanes, threads, None).seconds(prices)
    choices = [
        (scan_work(scan, steps, lanes, threads, cut).seconds(prices), cut)
        for cut in cuts(steps, lanes, scan.least)
    ]
    best, cut = min(choices, key=lambda choice: choice[0], default=(whole, None))
    return (cut, best) if best < whole else (None, whole)
