"""Networks that run as queues of spikes, against the layered network and the reference.

A chain of four layers of leaky integrate-and-fire neurons with random weights: forward, and a
training step.  *Layered* is fused time, which takes all neurons of a layer at all steps; *async*
delivers so many spikes at a time, and its kernels cost what these reach; *reference* is the same
network in torch operators on all neurons, by which the kernels are checked before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import snncc
from benchmarks import harness
from benchmarks.harness import Record
from snncc.nn import LIF, ATan

SIZES = ((20, 16, 128),)  # T, samples, neurons of a layer
QUICK_SIZES = ((3, 2, 16),)
GROUPS = (8, 1)


class Chain(nn.Module):
    """Linear layers and neurons one after another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.neurons = nn.ModuleList(
            LIF(0.9, v_threshold=0.5, v_reset=None, surrogate=ATan(4.0)) for _ in self.layers
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of the last layer."""
        return self.spikes(x)[-1]

    def spikes(self, x: Tensor) -> list[Tensor]:
        """Return the spikes of all layers."""
        seen = []
        for layer, neuron in zip(self.layers, self.neurons, strict=True):
            x = neuron(layer(x))
            seen.append(x)
        return seen


def timed(T: int, samples: int, width: int, budget: harness.Budget) -> list[Record]:
    """Time a network forward, and in a training step."""
    torch.manual_seed(0)
    model, x = Chain(width), 2 * torch.rand(T, samples, width)
    runs: dict[str, Any] = {"layered": snncc.compile(model)}
    for size in GROUPS:
        for name, target in (("async", "c"), ("reference", "torch")):
            options = {"mode": "async", "group_size": size, "target": target}
            runs[f"{name}, {size} at a time"] = snncc.compile(model, **options)
    for size in GROUPS:
        pair = [runs[f"{name}, {size} at a time"](x) for name in ("async", "reference")]
        if not torch.equal(*pair):
            raise SystemExit(f"wrong spikes of {width} neurons, {size} at a time")
    with torch.no_grad():
        layered = float(sum(s.sum() for s in model.spikes(x)))
    jobs = {
        "forward": {name: partial(_forward, run, x) for name, run in runs.items()},
        "training step": {name: partial(_step, model, run, x) for name, run in runs.items()},
    }
    records = []
    for job, variants in jobs.items():
        for name, seconds in harness.interleave(variants, budget).items():
            row = {"case": f"T={T} B={samples} 4 x {width}, {job}", "variant": name}
            row |= harness.summarize(seconds)
            records.append(row | _happened(runs[name], row["median_ms"], layered / samples))
    return records


@torch.no_grad()
def _forward(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return run(x)


def _step(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> object:
    return torch.autograd.grad(run(x).sum(), [*model.parameters()])


def _happened(run: Any, milliseconds: float, layered: float) -> Record:
    """Return what happened in the last call, for each sample."""
    seen = {name: float(counts.double().mean()) for name, counts in run.last_events.items()}
    if not seen:
        return {"spikes": layered}
    events = float(run.last_events["events"].sum())
    return {
        "spikes": seen["spikes"],
        "forward_steps": seen["forward_steps"],
        "events_per_second": events / milliseconds * 1e3,
    }


COLUMNS = {
    "variant": "",
    "median_ms": ".2f",
    "spikes": ".1f",
    "forward_steps": ".1f",
    "events_per_second": ".3g",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    arguments = harness.parser("Queues of spikes against layers.").parse_args(argv)
    sizes = QUICK_SIZES if arguments.quick else SIZES
    parts = [partial(timed, *size, harness.budget(arguments)) for size in sizes]
    return harness.run_parts("asynchronous", parts, arguments, COLUMNS)


if __name__ == "__main__":
    main()
