"""C libraries of the same networks in floats and in whole numbers: the time of a step, and sizes.

The networks are the 700-128-128-20 LIF of `latency` and a convolutional one for images of 32 x 32,
at batch one on one thread, with values everywhere and with one input in twenty a spike.  Libraries
are built as their own makefile builds them and timed by their own test program; those of one
network take turns.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import snncc
from benchmarks import harness, latency
from benchmarks.harness import Record
from snncc.nn import LIF

ARITHMETICS = ("float", "int8", "int16")


class Images(nn.Module):
    """Two convolutions with pooling and a linear layer, LIF neurons after each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.last = nn.Linear(64 * 8 * 8, 10)
        self.neurons = nn.ModuleList(LIF() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes [T, B, 10] of images [T, B, 2, 32, 32]."""
        for layer, neuron in zip((self.first, self.second), self.neurons, strict=False):
            x = neuron(layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
            x = F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        y: Tensor = self.neurons[2](self.last(x.flatten(2)))
        return y


CASES = {
    f"{network}, {kind}": (network, density)
    for network in ("700-128-128-20", "convolutions")
    for kind, density in latency.DENSITIES.items()
}


def make(network: str, density: float) -> tuple[nn.Module, Tensor, int]:
    """Return a network, its input, and how often a program runs it for one time."""
    torch.manual_seed(0)
    model = (Images if network == "convolutions" else latency.Network)().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data.mul_(4.0)  # so that the layers of an untrained network fire
    if network != "convolutions":
        return model, latency.make_input(density), 20
    x = torch.rand(10, 1, 2, 32, 32)
    return model, x if density == 1.0 else (x < density).float(), 2


def measure(name: str, budget: harness.Budget) -> list[Record]:
    """Time one network with one kind of input in each arithmetic."""
    model, x, repeats = make(*CASES[name])
    with torch.no_grad():
        fast = snncc.compile(model)
        spikes = float(fast(x).mean())
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        for arithmetic in ARITHMETICS:
            bundle = snncc.export(
                fast, Path(folder) / arithmetic, example_inputs=(x,), arithmetic=arithmetic
            )
            command = ["make", "-C", str(bundle.folder), "main"]
            subprocess.run(command, check=True, capture_output=True)
            sizes = ("weight_bytes", "state_bytes", "work_bytes", "code_bytes")
            record = {size: bundle.manifest[size] for size in sizes}
            found = bundle.manifest.get("mismatch", {"spikes": 0, "differing_spikes": 0})
            record |= {"spikes": found["spikes"], "spikes_differ": found["differing_spikes"]}
            records.append({"case": name, "variant": arithmetic, "rate": spikes, **record})
        times: dict[str, list[float]] = {arithmetic: [] for arithmetic in ARITHMETICS}
        for _ in range(min(budget.rounds, 15)):
            for arithmetic, values in times.items():
                values.append(step_us(Path(folder) / arithmetic, repeats))
    for record in records:
        record["step_us"] = statistics.median(times[record["variant"]])
        record["float_over_this"] = statistics.median(times["float"]) / record["step_us"]
    return records


def step_us(folder: Path, repeats: int) -> float:
    """Return the microseconds of a step as the test program of a library measures it."""
    program = [str(folder / "main"), str(folder / "test_vector.bin"), "--time", str(repeats)]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    found = re.search(r"time: (\S+) us a step", done.stdout)
    assert found is not None
    return float(found[1])


COLUMNS = {
    "variant": "",
    "step_us": ".2f",
    "float_over_this": ".2f",
    "weight_bytes": "d",
    "state_bytes": "d",
    "work_bytes": "d",
    "code_bytes": "d",
    "spikes": "d",
    "spikes_differ": "d",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    arguments = harness.parser("C libraries in floats and in whole numbers.").parse_args(argv)
    parts = [partial(measure, name, harness.budget(arguments)) for name in CASES]
    return harness.run_parts("whole_numbers", parts, arguments, COLUMNS)


if __name__ == "__main__":
    main()
