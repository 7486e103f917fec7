"""Hard resets by chunks of time against one run over all steps: few neurons, long sequences.

Forward of one layer.  With irregular input the guessed states of the chunks are right, as they are
for a neuron that never fires but forgets by its decay; with constant input a neuron fires
regularly, every phase lasts, and what was run by chunks is run again in serial order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def __str__(self) -> str:
        return f"T={self.T}, N={self.N}, {self.drive} input"

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
)
QUICK_CASES = (Case(17000, 1), Case(17000, 2, "constant"))
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
    fused = snncc.compile(neuron)
    chunked = snncc.compile(neuron, mode="parallel_reset")
    with torch.no_grad():
        # Recorded with few steps, twice, so that their number is free.
        for fast in (fused, chunked):
            fast(x[:64])
            fast(x[:80])
        spikes = fused(x)
        assert torch.equal(chunked(x), spikes)
        variants = {"fused, snncc": lambda: fused(x), "parallel reset, snncc": lambda: chunked(x)}
        seconds = harness.interleave(variants, budget)
    chunks = chunked.chunks["neuron1"]
    records: list[Record] = [
        {"case": str(case), "variant": name, **harness.summarize(s)} for name, s in seconds.items()
    ]
    for record in records:
        record["fused_over_this"] = records[0]["median_ms"] / record["median_ms"]
    rate, again = float(spikes.mean()), f"{chunks.again} of {chunks.count} chunks"
    if chunks.serial > chunks.count:
        again += f", then {chunks.serial} steps"
    records[-1] |= {"rate": rate, "again": again}
    return records


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    arguments = harness.parser("Hard resets by chunks of time.").parse_args(argv)
    cases = QUICK_CASES if arguments.quick else CASES
    if arguments.case is not None:
        rows = measure(cases[arguments.case], harness.budget(arguments))
        print(json.dumps({"records": rows}))
        return rows
    records: list[Record] = []
    for number in range(len(cases)):
        rows = harness.run_case("benchmarks.hard_reset", number, arguments)
        harness.show(rows[0]["case"], rows, COLUMNS)
        records += rows
    stem = harness.write("hard_reset", records, arguments)
    print(f"results: {stem.with_suffix('.json')}")
    return records


if __name__ == "__main__":
    main()
