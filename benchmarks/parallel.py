"""Neurons without reset against the length of the sequence: dynamic decay, PSN, sliding PSN.

Forward and backward of one layer.  A PSN multiplies by a [T, T] matrix over time, so its cost per
step grows with T; the others have a state, and are compiled to one kernel, or to chunks of time
side by side.  Serial dynamic decay is run at short lengths only, and a PSN where its matrix and the
gradient of it fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

import snncc
from benchmarks import harness
from benchmarks.harness import Record
from snncc.nn import PSN, DynamicDecay, SlidingPSN

LENGTHS = (256, 1024, 4096, 16384, 65536)
QUICK_LENGTHS = (64, 128)
FIRST_LENGTHS = (8, 12)  # recorded; after two of them the number of steps is free
LONGEST_SERIAL = 1024
LONGEST_PSN = 16384
BATCH, CHANNELS = 1, 64


def training_step(layer: Callable[..., torch.Tensor], T: int) -> Callable[[], object]:
    """Return a function that runs a layer forward and backward on one sequence."""
    torch.manual_seed(0)
    x = torch.randn(T, BATCH, CHANNELS, requires_grad=True)
    cotangent = torch.randn(T, BATCH, CHANNELS)

    def step() -> None:
        x.grad = None
        layer(x).backward(cotangent)

    return step


def measure(T: int, budget: harness.Budget) -> list[Record]:
    """Time the layers at one length."""
    torch.manual_seed(0)
    serial = DynamicDecay(CHANNELS)
    layers: dict[str, nn.Module] = {"PSN": PSN(T)} if T <= LONGEST_PSN else {}
    layers |= {
        "sliding PSN, snncc": compiled(SlidingPSN(4)),
        "dynamic decay, snncc": compiled(serial),
        "dynamic decay, chunks": compiled(serial, mode="scan"),
    }
    if T <= LONGEST_SERIAL:
        layers["dynamic decay, serial"] = serial
    variants = {name: training_step(layer, T) for name, layer in layers.items()}
    seconds = harness.interleave(variants, budget)
    records: list[Record] = [
        {"case": f"T={T}", "variant": name, **harness.summarize(s)} for name, s in seconds.items()
    ]
    for record in records:
        record["ns_per_neuron_step"] = record["median_ms"] * 1e6 / (T * BATCH * CHANNELS)
        if "PSN" in layers:
            record["psn_over_this"] = records[0]["median_ms"] / record["median_ms"]
    return records


def compiled(layer: nn.Module, **options: str) -> nn.Module:
    """Return a compiled layer for sequences of any length."""
    fast = snncc.compile(layer, **options)
    for length in FIRST_LENGTHS:
        fast(torch.zeros(length, BATCH, CHANNELS, requires_grad=True))
    return fast


COLUMNS = {
    "variant": "",
    "median_ms": ".2f",
    "min_ms": ".2f",
    "ns_per_neuron_step": ".2f",
    "psn_over_this": ".2f",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    arguments = harness.parser("Neurons without reset against T.").parse_args(argv)
    lengths = QUICK_LENGTHS if arguments.quick else LENGTHS
    parts = [partial(measure, length, harness.budget(arguments)) for length in lengths]
    return harness.run_parts("parallel", parts, arguments, COLUMNS)


if __name__ == "__main__":
    main()
