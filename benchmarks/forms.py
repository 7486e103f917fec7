"""Forms of time against each other: fused time, chunks of time side by side, parallel resets.

Training steps (forward and backward) of single layers, from one lane to many and from short to
long sequences.  Each record has the work of the call as `snncc.runtime.costs` counts it;
``--fit`` finds the price of each kind of work by least squares and writes the table that mode
``"auto"`` chooses by.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial

import torch
from torch import nn

import snncc
from benchmarks import harness
from benchmarks.harness import Record
from snncc.ir.chunked_scan import ScanPrograms
from snncc.ir.program import NeuronProgram, Restart
from snncc.nn import LI, LIF, CubaLIF
from snncc.passes.neurons import neuron_nodes
from snncc.passes.parallel.parallelize_reset import restart_of, with_backward_scan
from snncc.passes.parallel.parallelize_scan import scan_programs
from snncc.runtime.costs.forms import Sizes, reset_layer, reset_work
from snncc.runtime.costs.scan_work import best_cut, scan_work
from snncc.runtime.costs.work import PRICES, Work, fused_work, kernel_work, prices_of, step_work
from snncc.runtime.forms.chosen import run_again
from snncc.runtime.forms.parallel_reset import ParallelResetNeuron
from snncc.runtime.scans.cut import Cut, cut_into
from snncc.runtime.scans.neuron import ScanNeuron


class GatedIntegrator(nn.Module):
    """A leaky integrator whose decay is a maths function of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the potentials [T, *] of inputs [T, *]."""
        v, seen = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = torch.exp(-x[t].abs()) * v + x[t]
            seen.append(v)
        return torch.stack(seen)


NEURONS: dict[str, nn.Module] = {
    "leaky integrator": LI(0.9),
    "LIF": LIF(0.9),
    "current-based LIF": CubaLIF(),
    "gated integrator": GatedIntegrator(),
}
SIZES = [(T, lanes) for T in (256, 2048, 16384) for lanes in (1, 8, 64, 512)]
SIZES += [(65536, 1), (65536, 8)]
QUICK_SIZES = [(64, 1), (128, 8)]
# Lanes of all chunks together, of which the cuts follow.
WIDTHS = (64, 512, 4096)
SHORTEST_CHUNK = 8
# Passes over all sizes, of which the quietest counts for each case.
PASSES = 3


def program_of(model: nn.Module) -> NeuronProgram:
    """Return the program of a layer, with what its scan runs."""
    fast = snncc.compile(model)
    (node,) = neuron_nodes(fast.specialize(torch.randn(5, 3).requires_grad_()).graph)
    program: NeuronProgram = node.target.program  # type: ignore[union-attr]
    made, restart = scan_programs(program), restart_of(program.forward)
    if isinstance(restart, Restart):
        program = with_backward_scan(replace(program, restart=restart))
    return replace(program, scan=made if isinstance(made, ScanPrograms) else None)


def training_step(layer: ScanNeuron, x: torch.Tensor, cut: int | None) -> Callable[[], object]:
    """Return a function that runs a layer forward and backward; no cut is fused time."""
    cotangent = torch.randn(x.shape)

    def step() -> None:
        layer.chunk, x.grad = cut, None
        outputs = layer.serial.run((x,), None) if cut is None else layer.run((x,), None)
        torch.autograd.backward(outputs[0], cotangent)

    return step


def reset_step(layer: ParallelResetNeuron, x: torch.Tensor) -> Callable[[], object]:
    """Return a function that runs a layer forward, by chunks from guesses, and backward."""
    cotangent = torch.randn(x.shape)

    def step() -> None:
        x.grad = None
        torch.autograd.backward(layer.run((x,), None)[0], cotangent)

    return step


def reset_layers(
    program: NeuronProgram, sizes: Sizes, x: torch.Tensor
) -> dict[str, ParallelResetNeuron]:
    """Return the layers that run chunks from guesses, where the sizes allow any."""
    if program.restart is None or reset_work(program, sizes) is None:
        return {}
    layers = {"parallel reset": reset_layer(program, {})}
    scanned = reset_layer(program, {}, scans=True)
    if scanned.is_scanned((x,), None):
        layers["parallel reset, backward scan"] = scanned
    return layers


def work_of_reset(program: NeuronProgram, sizes: Sizes, *, scans: bool) -> Work:
    """Return the work of a training step by chunks from guesses."""
    work = reset_work(program, sizes, keeping=scans)
    assert work is not None
    if not scans:
        return work
    assert program.scan is not None
    assert program.scan.backward is not None
    prices = prices_of("c")
    assert prices is not None
    back, steps, lanes = program.scan.backward, sizes.steps, sizes.lanes
    cut, _ = best_cut(back, steps, lanes, sizes.threads, prices)
    return work + scan_work(back, steps, lanes, sizes.threads, cut)


def training_work(program: NeuronProgram, T: int, lanes: int, cut: Cut | None) -> Work:
    """Return the work of a training step as the model of costs counts it."""
    threads, scan = torch.get_num_threads(), program.scan
    if cut is None:
        return fused_work(program, T, lanes, threads, training=True)
    assert scan is not None
    assert scan.backward is not None
    assert scan.keeping is not None
    back = scan_work(scan.backward, T, lanes, threads, cut)
    if scan.training is not None:
        return back + scan_work(scan.training, T, lanes, threads, cut)
    return back + kernel_work(step_work(scan.keeping), T, 1, lanes, threads)


def cuts_of(T: int, lanes: int) -> Iterator[Cut]:
    """Yield the cuts that are measured at one size."""
    seen = set()
    for width in WIDTHS:
        chunks = width // lanes
        cut = cut_into(T, T // chunks) if chunks > 1 and T // chunks >= SHORTEST_CHUNK else None
        if cut is not None and cut.length not in seen:
            seen.add(cut.length)
            yield cut


def measure(T: int, lanes: int, budget: harness.Budget) -> list[Record]:
    """Time all neurons and cuts at one size."""
    records: list[Record] = []
    for name, model in NEURONS.items():
        program = program_of(model)
        layer = ScanNeuron(program)
        x = torch.randn(T, lanes, requires_grad=True)
        choices = {"fused time": None} | {f"{c.chunks} chunks": c for c in cuts_of(T, lanes)}
        variants = {
            variant: training_step(layer, x, None if cut is None else cut.length)
            for variant, cut in choices.items()
        }
        works = {name: training_work(program, T, lanes, cut) for name, cut in choices.items()}
        sizes = Sizes(T, lanes, torch.get_num_threads(), training=True)
        resets = reset_layers(program, sizes, x)
        variants |= {variant: reset_step(layer, x) for variant, layer in resets.items()}
        seconds = harness.interleave(variants, budget)
        for variant, reset in resets.items():
            again = replace(sizes, **run_again(reset.chunks, T))
            works[variant] = work_of_reset(program, again, scans=variant != "parallel reset")
        for variant in variants:
            row: Record = {"case": f"{name}, T={T}, lanes={lanes}", "variant": variant}
            row |= harness.summarize(seconds[variant])
            row["work"] = asdict(works[variant])
            records.append(row)
        fused = records[-len(variants)]["median_ms"]
        for row in records[-len(variants) :]:
            row["fused_over_this"] = fused / row["median_ms"]
    return records


def quieter(first: Sequence[Record], second: Sequence[Record]) -> list[Record]:
    """Return of each case the pass in which it took less: what disturbs a run only adds to it."""
    passes: dict[str, list[list[Record]]] = {}
    for records in (first, second):
        for case in dict.fromkeys(r["case"] for r in records):
            passes.setdefault(case, []).append([r for r in records if r["case"] == case])
    # All variants of a case took turns, so that they are kept together.
    kept = (min(each, key=_typical) for each in passes.values())
    return [row for rows in kept for row in rows]


def _typical(records: Sequence[Record]) -> float:
    """Return the logarithm of the times of a case, on average."""
    return sum(math.log(r["median_ms"]) for r in records) / len(records)


def fit(records: Sequence[Record]) -> dict[str, float]:
    """Return the price of each kind of work, in seconds, at least zero.

    Errors are relative, so that short calls count as much as long ones.  A price that would be
    negative is zero, and the others are fitted again.
    """
    names = [field.name for field in fields(Work)]
    measured = torch.tensor([r["median_ms"] * 1e-3 for r in records], dtype=torch.float64)
    work = torch.tensor([[r["work"][n] for n in names] for r in records], dtype=torch.float64)
    shares = work / measured[:, None]
    sizes = shares.norm(dim=0).clamp(min=1e-300)
    kept = [n for n, size in enumerate(shares.norm(dim=0)) if size > 0]
    while True:
        part = (shares / sizes)[:, kept]
        found = torch.linalg.lstsq(part, torch.ones(len(records), 1, dtype=torch.float64))
        prices = found.solution[:, 0]
        if bool((prices >= 0).all()):
            break
        del kept[int(prices.argmin())]
    values = dict(zip(kept, (prices / sizes[kept]).tolist(), strict=True))
    return {name: values.get(n, 0.0) for n, name in enumerate(names)}


def estimated(record: Record, prices: Mapping[str, float]) -> float:
    """Return the milliseconds that prices say a record takes."""
    return Work(**record["work"]).seconds(prices) * 1e3


def judge(records: Sequence[Record], prices: Mapping[str, float]) -> Record:
    """Return how good prices are: typical error, and what choosing by them costs."""
    errors = [abs(math.log(estimated(r, prices) / r["median_ms"])) for r in records]
    losses = []
    for case in dict.fromkeys(r["case"] for r in records):
        rows = [r for r in records if r["case"] == case]
        chosen = min(rows, key=partial(estimated, prices=prices))
        losses.append(chosen["median_ms"] / min(r["median_ms"] for r in rows))
    return {
        "typical_factor": math.exp(sorted(errors)[len(errors) // 2]),
        "worst_factor": math.exp(max(errors)),
        "chosen_over_best_mean": math.exp(sum(map(math.log, losses)) / len(losses)),
        "chosen_over_best_worst": max(losses),
    }


COLUMNS = {
    "variant": "", "median_ms": ".3f", "min_ms": ".3f", "estimated_ms": ".3f",
    "fused_over_this": ".2f",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables, write the results, and the prices with ``--fit``."""
    parser = harness.parser("Forms of time against each other.")
    parser.add_argument("--fit", action="store_true", help="write the prices that are found")
    arguments = parser.parse_args(argv)
    sizes = QUICK_SIZES if arguments.quick else SIZES
    records: list[Record] = []
    for _ in range(1 if arguments.quick else PASSES):
        found = [
            row
            for number, (T, lanes) in enumerate(sizes)
            if arguments.case in (None, number)
            for row in measure(T, lanes, harness.budget(arguments))
        ]
        records = quieter(records, found)
    prices = fit(records)
    for record in records:
        record["estimated_ms"] = estimated(record, prices)
    for case in dict.fromkeys(r["case"] for r in records):
        harness.show(case, [r for r in records if r["case"] == case], COLUMNS)
    quality = judge(records, prices)
    print(json.dumps({"prices": prices, **quality}, indent=1))
    if arguments.fit:
        known = json.loads(PRICES.read_text()) if PRICES.exists() else {}
        known["c"] = prices
        PRICES.write_text(json.dumps(known, indent=1) + "\n")
    choice = {"case": "all", "variant": "choice by estimates", "prices": prices, **quality}
    stem = harness.write("forms", [*records, choice], arguments)
    print(f"results: {stem.with_suffix('.json')}")
    return records


if __name__ == "__main__":
    main()
