"""Sweeps of one layer: what they cost, how many it takes, and how far a few of them are off.

Three parts. *Time*: a training step by sweeps, in fused time and in plain PyTorch. *Extremes*: the
sweeps until no spike changes over all steps at once, and those of a chunk, for small and large
decays, thresholds and inputs; the results are the serial ones in every case, or the script stops.
*Schedules*: which share of the spikes is another after three soft sweeps, by schedule and decay.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import snncc
from benchmarks import harness
from benchmarks.harness import Record
from snncc.nn import LIF, Sigmoid

SIZES = ((512, 256), (4096, 256), (512, 2048))  # T and neurons
QUICK_SIZES = ((24, 8),)
DECAYS = (0.25, 0.5, 0.9, 0.99, 1.0)
THRESHOLDS, SCALES = (0.1, 1.0, 10.0), (0.1, 1.0, 100.0)
SCHEDULES = ((1, 3, 12), (3, 12, 12), (2, 6, 12), (1, 6, 12), (3, 9, 15))


def inputs(T: int, neurons: int, scale: float = 1.0) -> Tensor:
    """Return the currents of a layer: normal, with a mean that grows from neuron to neuron."""
    torch.manual_seed(0)
    return scale * (0.5 * torch.randn(T, neurons) + torch.linspace(-0.2, 1.0, neurons))


def timed(T: int, neurons: int, budget: harness.Budget) -> list[Record]:
    """Time a training step of one layer, at a decay of a half and at one of 0.9."""
    records: list[Record] = []
    for decay in (0.5, 0.9):
        neuron = LIF(decay, v_reset=None, surrogate=Sigmoid(4.0))
        layers = {
            "until stable": snncc.compile(neuron, mode="fpt"),
            "3 soft sweeps": snncc.compile(neuron, mode="fpt", sweeps=3),
            "3 soft sweeps, drawn": snncc.compile(neuron, mode="fpt", sweeps=3, spikes="bernoulli"),
            "fused time": snncc.compile(neuron),
            "eager": neuron,
        }
        x = inputs(T, neurons).requires_grad_()
        g = torch.randn_like(x)
        variants = {name: _step(layer, x, g) for name, layer in layers.items()}
        if not torch.equal(layers["until stable"](x), neuron(x)):
            raise SystemExit(f"wrong spikes at decay {decay}")
        times = harness.interleave(variants, budget)
        rows = [
            {"case": f"T={T}, {neurons} neurons, decay {decay}", "variant": name}
            | harness.summarize(seconds)
            for name, seconds in times.items()
        ]
        for row in rows:
            row["eager_over_this"] = rows[-1]["median_ms"] / row["median_ms"]
        rows[0]["sweeps_of_a_chunk"] = layers["until stable"].sweeps["neuron1"]
        records += rows
    return records


def _step(layer: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(layer(x), x, g)


def extremes(T: int, neurons: int) -> list[Record]:
    """Count the sweeps of a layer whose decay, threshold and input are small or large."""
    records: list[Record] = []
    for decay, threshold, scale in itertools.product(DECAYS, THRESHOLDS, SCALES):
        neuron, x = LIF(decay, v_threshold=threshold, v_reset=None), inputs(T, neurons, scale)
        fast = snncc.compile(neuron, mode="fpt")
        spikes = neuron(x)
        if not torch.equal(fast(x), spikes):
            raise SystemExit(f"wrong spikes: decay {decay}, threshold {threshold}, input {scale}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (found,) = snncc.convergence(neuron, x).neurons
        records.append(
            {
                "case": f"T={T}, {neurons} neurons",
                "variant": f"decay {decay}, threshold {threshold}, input x {scale}",
                "spike_rate": float(spikes.mean()),
                "sweeps_of_a_chunk": fast.sweeps["neuron1"],
                "sweeps_of_all_steps": found.sweeps,
                "wrong_after_3": found.mismatch[2],
            }
        )
    return records


def schedules(T: int, neurons: int) -> list[Record]:
    """Compare three soft sweeps with the serial spikes, for each schedule and decay."""
    records: list[Record] = []
    x = inputs(T, neurons)
    for schedule in (None, *SCHEDULES):
        row: Record = {
            "case": f"T={T}, {neurons} neurons",
            "variant": "thresholds" if schedule is None else f"schedule {list(schedule)}",
        }
        for decay in DECAYS:
            neuron = LIF(decay, v_reset=None)
            fast = snncc.compile(neuron, mode="fpt", sweeps=3, schedule=schedule)
            row[f"wrong_at_decay_{decay}"] = float((fast(x) != neuron(x)).double().mean())
        records.append(row)
    return records


COLUMNS = {
    "variant": "",
    "median_ms": ".3f",
    "eager_over_this": ".1f",
    "spike_rate": ".3f",
    "sweeps_of_a_chunk": "d",
    "sweeps_of_all_steps": "d",
    "wrong_after_3": ".3f",
    **{f"wrong_at_decay_{decay}": ".3f" for decay in DECAYS},
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    arguments = harness.parser("Sweeps until stable, and a few.").parse_args(argv)
    sizes = QUICK_SIZES if arguments.quick else SIZES
    parts: list[Callable[[], list[Record]]] = [
        *(partial(timed, *size, harness.budget(arguments)) for size in sizes),
        partial(extremes, *sizes[0]),
        partial(schedules, *sizes[0]),
    ]
    return harness.run_parts("sweeps", parts, arguments, COLUMNS)


if __name__ == "__main__":
    main()
