"""One training step of a spiking network written serially: eager, compiled, and a lower bound.

The network is 700-128-128-128-20 with leaky integrate-and-fire neurons, written as one loop over
time with the linear layers inside. A step is the forward pass, the cross entropy of the readout
summed over time, and the backward pass; there is no optimizer in it. "products alone" runs the same
linear layers over all T*B rows at once, forward and backward, on random spikes of the rates that
the network has, with nothing in the place of the neurons: what is left when neurons cost nothing.

Peak memory is the median of fresh processes, each above what it used before its first step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import re
import resource
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snncc
from benchmarks import harness
from benchmarks.harness import Record
from snncc.nn import ATan

INPUTS, HIDDEN, CLASSES = 700, 128, 20
INPUT_RATE = 0.03
SIZES = ((100, 32), (250, 64), (100, 256))
QUICK_SIZES = ((25, 16),)
MEMORY_STEPS = 3
PROCESSES = 3  # memory of equal processes was seen to differ by a quarter: take the median


class SpikingNet(nn.Module):
    """Three hidden layers of LIF neurons with hard reset; the readout is summed over time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Linear(INPUTS, HIDDEN)
        self.layer2 = nn.Linear(HIDDEN, HIDDEN)
        self.layer3 = nn.Linear(HIDDEN, HIDDEN)
        self.readout = nn.Linear(HIDDEN, CLASSES)
        self.spike = ATan(2.0)
        # Larger than the default, so that spikes reach the last layer of an untrained network.
        for layer in (self.layer1, self.layer2, self.layer3):
            nn.init.normal_(layer.weight, std=2.5 * layer.in_features**-0.5)

    def neuron(self, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One step of a layer: charge, fire, reset to zero."""
        h = 0.9 * v + x
        s = self.spike(h - 1.0)
        return s, h * (1.0 - s)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of spikes ``x`` [T, B, inputs]."""
        T, B, _ = x.shape
        v1 = torch.zeros(B, HIDDEN)
        v2 = torch.zeros(B, HIDDEN)
        v3 = torch.zeros(B, HIDDEN)
        total = torch.zeros(B, CLASSES)
        for t in range(T):
            s1, v1 = self.neuron(v1, self.layer1(x[t]))
            s2, v2 = self.neuron(v2, self.layer2(s1))
            s3, v3 = self.neuron(v3, self.layer3(s2))
            total = total + self.readout(s3)
        return total


@torch.no_grad()
def firing_rates(model: SpikingNet, x: Tensor) -> list[float]:
    """Return the share of neuron-steps that fire, per hidden layer."""
    layers = (model.layer1, model.layer2, model.layer3)
    v = [torch.zeros(x.shape[1], HIDDEN) for _ in layers]
    fired = [0.0] * len(layers)
    for s in x:
        for number, layer in enumerate(layers):
            s, v[number] = model.neuron(v[number], layer(s))
            fired[number] += float(s.mean())
    return [count / x.shape[0] for count in fired]


def spikes(rows: int, columns: int, rate: float) -> Tensor:
    """Return random spikes of a given rate."""
    return (torch.rand(rows, columns) < rate).float()


def training_step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return one step: gradients from nothing, forward, loss, backward."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        cross_entropy(model(x), labels).backward()

    return run


def products_alone(model: SpikingNet, rows: int, rates: Sequence[float]) -> Callable[[], object]:
    """Return the matrix products of one step over all rows, forward and backward."""
    layers = (model.layer1, model.layer2, model.layer3, model.readout)
    inputs = [
        # The gradient of the input of the network is not needed, that of every other layer is.
        spikes(rows, layer.in_features, rate).requires_grad_(number > 0)
        for number, (layer, rate) in enumerate(zip(layers, (INPUT_RATE, *rates), strict=True))
    ]
    grads = [torch.randn(rows, layer.out_features) for layer in layers]

    def run() -> None:
        model.zero_grad(set_to_none=True)
        for x in inputs:
            x.grad = None
        outputs = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
        torch.autograd.backward(outputs, grads)

    return run


def make_model(T: int, B: int) -> tuple[SpikingNet, Tensor, Tensor]:
    """Return the network, its input and the labels, always the same for the same sizes."""
    torch.manual_seed(0)
    model = SpikingNet()
    x = spikes(T * B, INPUTS, INPUT_RATE).reshape(T, B, INPUTS)
    return model, x, torch.randint(CLASSES, (B,))


def measure(T: int, B: int, budget: harness.Budget) -> list[Record]:
    """Time the three variants of a case."""
    model, x, labels = make_model(T, B)
    twin, _, _ = make_model(T, B)
    rates = firing_rates(model, x)
    compiled = snncc.compile(twin)
    runs = {
        "eager": training_step(model, x, labels),
        "snncc": training_step(compiled, x, labels),
        "products alone": products_alone(make_model(T, B)[0], T * B, rates),
    }
    seconds = harness.interleave(runs, budget)
    eager_ms = harness.summarize(seconds["eager"])["median_ms"]
    products_ms = harness.summarize(seconds["products alone"])["median_ms"]
    records = []
    for name in runs:
        record: Record = {"case": f"T={T} B={B}", "variant": name, "firing_rates": rates}
        record |= harness.summarize(seconds[name])
        record["eager_over_this"] = eager_ms / record["median_ms"]
        record["over_products"] = record["median_ms"] / products_ms
        records.append(record)
    return records


def measure_child_memory(variant: str, case: int, *, quick: bool) -> Record:
    """Measure the memory of a variant in fresh processes with the default allocator."""
    command = ["--case", str(case), "--memory", variant, *(["--quick"] if quick else [])]
    children = [harness.run_child("benchmarks.network", *command) for _ in range(PROCESSES)]
    return {key: statistics.median(child[key] for child in children) for key in children[0]}


def measure_memory(variant: str, T: int, B: int) -> Record:
    """Return the peak memory of the first step and of later ones, above the start, in MiB."""
    model, x, labels = make_model(T, B)
    step = training_step(snncc.compile(model) if variant == "snncc" else model, x, labels)
    start = settle()
    step()
    first = peak_bytes() - start
    settle()
    for _ in range(MEMORY_STEPS):
        step()
    return {"first_step_mib": first / 2**20, "peak_mib": (peak_bytes() - start) / 2**20}


def settle() -> int:
    """Give freed memory back, restart the peak where the system can, and return bytes in use."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak restarts from the present size
        return status_bytes("VmRSS")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the largest resident size so far, since ``settle`` where the system can restart it."""
    if Path("/proc/self/status").exists():
        return status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def status_bytes(key: str) -> int:
    """Return one size that Linux keeps for this process."""
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no '{key}'.")
    return int(match[1]) * 1024


COLUMNS = {
    "variant": "",
    "median_ms": ".1f",
    "min_ms": ".1f",
    "eager_over_this": ".2f",
    "over_products": ".2f",
    "peak_mib": ".0f",
    "first_step_mib": ".0f",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    parser: argparse.ArgumentParser = harness.parser("Training step of a spiking network.")
    parser.add_argument("--memory", choices=("eager", "snncc"), help="only the memory of one")
    arguments = parser.parse_args(argv)
    sizes = QUICK_SIZES if arguments.quick else SIZES
    if arguments.case is not None:
        T, B = sizes[arguments.case]
        if arguments.memory:
            print(json.dumps(measure_memory(arguments.memory, T, B)))
            return []
        rows = measure(T, B, harness.budget(arguments))
        print(json.dumps({"records": rows}))
        return rows
    records: list[Record] = []
    for number in range(len(sizes)):
        rows = harness.run_case("benchmarks.network", number, arguments)
        for row in rows:
            if row["variant"] in ("eager", "snncc"):
                row |= measure_child_memory(row["variant"], number, quick=arguments.quick)
        rates = ", ".join(f"{rate:.1%}" for rate in rows[0]["firing_rates"])
        harness.show(f"{rows[0]['case']}, firing rates {rates}", rows, COLUMNS)
        records += rows
    stem = harness.write("network", records, arguments)
    picture = harness.plot_bars(records, stem, "median_ms")
    print(f"results: {stem.with_suffix('.json')}, {picture}")
    return records


if __name__ == "__main__":
    main()
