"""Hard resets by chunks of time against one run over all steps: few neurons, long sequences.

Forward of one layer, and training steps.  With irregular input the guessed states of the chunks are
right, as they are for a neuron that never fires but forgets by its decay; with constant input a
neuron fires regularly, every phase lasts, and what was run by chunks is run again in serial order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import snncc
from benchmarks import harness
from benchmarks.harness import Record
from snncc.nn import LIF

DECAY = 0.9


@dataclass(frozen=True)
class Case:
    """A layer: its steps, its neurons, and what they are given."""

    T: int
    N: int
    drive: str = "irregular"
    trains: bool = False

    def __str__(self) -> str:
        return f"T={self.T}, N={self.N}, {self.drive} input{', training' if self.trains else ''}"

    def make_input(self) -> Tensor:
        """Return the input currents, at which a neuron with a threshold of 1 fires or does not."""
        torch.manual_seed(0)
        match self.drive:
            case "irregular":
                return 0.2 + 0.5 * torch.randn(self.T, self.N)
            case "weak":
                return 0.02 * torch.rand(self.T, self.N)
            case "constant":
                return torch.full((self.T, self.N), 0.2)
            case _:
                raise ValueError(self.drive)


CASES = (
    *(Case(T, N) for N in (1, 2, 4) for T in (16384, 65536, 262144)),
    Case(65536, 1, "weak"),
    Case(65536, 1, "constant"),
    *(Case(T, N, trains=True) for N in (1, 4, 64) for T in (16384, 65536)),
)
QUICK_CASES = (Case(17000, 1), Case(17000, 2, "constant"), Case(17000, 1, trains=True))
COLUMNS = {
    "variant": "",
    "median_ms": ".3f",
    "min_ms": ".3f",
    "fused_over_this": ".2f",
    "rate": ".2f",
    "again": "",
}


def measure(case: Case, budget: harness.Budget) -> list[Record]:
    """Time a layer in both modes."""
    x, neuron = case.make_input(), LIF(DECAY)
    x.requires_grad_(case.trains)
    fused = snncc.compile(neuron)
    chunked = snncc.compile(neuron, mode="parallel_reset")
    layers = {"fused, snncc": fused, "parallel reset, snncc": chunked}
    if case.trains:
        layers["backward scan, snncc"] = snncc.compile(neuron, mode="scan")
        layers["auto, snncc"] = snncc.compile(neuron, mode="auto")
    # Recorded with few steps, twice, so that their number is free.
    for fast in layers.values():
        fast(x[:64])
        fast(x[:80])
    spikes = fused(x).detach()
    assert all(torch.equal(fast(x), spikes) for fast in layers.values())
    seconds = harness.interleave({name: step(fast, x) for name, fast in layers.items()}, budget)
    chunks = chunked.chunks["neuron1"]
    records: list[Record] = [
        {"case": str(case), "variant": name, **harness.summarize(s)} for name, s in seconds.items()
    ]
    for record in records:
        record["fused_over_this"] = records[0]["median_ms"] / record["median_ms"]
    rate, again = float(spikes.mean()), f"{chunks.again} of {chunks.count} chunks"
    if chunks.serial > chunks.count:
        again += f", then {chunks.serial} steps"
    records[1] |= {"rate": rate, "again": again}
    return records


def step(fast: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a call of a layer, forward and backward where its input asks for a gradient."""
    cotangent = torch.randn(x.shape)
    if x.requires_grad:
        return lambda: torch.autograd.grad(fast(x), x, cotangent)
    return lambda: fast(x)


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    arguments = harness.parser("Hard resets by chunks of time.").parse_args(argv)
    cases = QUICK_CASES if arguments.quick else CASES
    parts = [partial(measure, case, harness.budget(arguments)) for case in cases]
    return harness.run_parts("hard_reset", parts, arguments, COLUMNS, apart="training")


if __name__ == "__main__":
    main()
