"""Online training step by step: a gradient after each step, states taken as constants.

A step is the forward pass of the network, the cross entropy of its last layer, and the backward
pass; there is no optimizer in it.  The serial code detaches its states, which is what the compiled
model computes in mode ``"online"``: as a stream, step by step, and all steps of the sequence in one
call, with the same gradients.  SpikingJelly's SLTT neurons and snnTorch's Leaky with detached
potentials are the same kind of network with neurons of their own.  OTTT adds traces to that.

The memory is the most that autograd kept for backward at once, without parameters, as hooks on
saved tensors count it.  Under hooks a stream runs the program itself; a recorded step keeps its
values, and those of its gradient, in memory of its own, of which two take turns.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snncc
from benchmarks import harness
from benchmarks.harness import Record, Skipped
from snncc.nn import ATan

WIDTHS = (700, 128, 128, 20)
IMAGE = (2, 16, 16)
CHANNELS, CLASSES = 8, 20
INPUT_RATE = 0.05
STEPS, QUICK_STEPS = 100, 10

State = Sequence[Tensor]
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A network and how many samples it sees at once."""

    kind: str
    B: int

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.kind} B={self.B}"


CASES = (*(Case(kind, B) for kind, B in itertools.product(("dense", "convolution"), (1, 32))),)


def layers_of(kind: str) -> list[nn.Module]:
    """Return what is in front of each layer of neurons."""
    if kind == "dense":
        return [nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS)]
    flat = CHANNELS * (IMAGE[1] // 2) * (IMAGE[2] // 2)
    return [
        nn.Conv2d(IMAGE[0], CHANNELS, 3, padding=1),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(flat, CLASSES)),
    ]


class Network(nn.Module):
    """LIF layers; a step is a method, so that the serial code can be trained step by step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers_of(kind))
        self.spike = ATan()
        dense = [WIDTHS[i + 1 : i + 2] for i in range(len(self.layers))]
        self.shapes = dense if kind == "dense" else [(CHANNELS, *IMAGE[1:]), (CLASSES,)]

    def start(self, batch: int) -> list[Tensor]:
        """Return the potentials before the first step."""
        return [torch.zeros(batch, *shape) for shape in self.shapes]

    def step(self, x: Tensor, v: State) -> tuple[Tensor, list[Tensor]]:
        """Take one step from the potentials ``v``; the last layer gives its potential."""
        after = []
        for layer, old in zip(self.layers, v, strict=True):
            h = 0.9 * old + layer(x)
            x = self.spike(h - 1.0)
            after.append(h * (1.0 - x))
        return h, after

    def forward(self, x: Tensor) -> Tensor:
        """Return the potentials [T, B, classes] of the last layer."""
        v, out = self.start(x.shape[1]), []
        for t in range(x.shape[0]):
            y, v = self.step(x[t], v)
            out.append(y)
        return torch.stack(out)


@dataclass(frozen=True)
class Trained:
    """A way to train: a model, and what leaves its gradients for a sequence.

    Attributes:
        model: What has the parameters.
        run: Runs forward and backward for all steps.
    """

    model: nn.Module
    run: Callable[[], object]


def make_input(case: Case, steps: int) -> tuple[Tensor, Tensor]:
    """Return spikes [T, B, *] and labels [B]."""
    shape = WIDTHS[:1] if case.kind == "dense" else IMAGE
    x = (torch.rand(steps, case.B, *shape) < INPUT_RATE).float()
    return x, torch.randint(CLASSES, (case.B,))


def eager(case: Case, x: Tensor, labels: Tensor) -> Trained:
    """Return the serial code, every state detached."""
    model = Network(case.kind)

    def run() -> None:
        model.zero_grad()
        v: State = model.start(case.B)
        for x_t in x:
            y, v = model.step(x_t, [state.detach() for state in v])
            cross_entropy(y, labels).backward()

    return Trained(model, run)


def stream(case: Case, x: Tensor, labels: Tensor) -> Trained:
    """Return the compiled model, step by step."""
    model = Network(case.kind)
    fast = snncc.compile(model, mode="online")
    step = fast.stream(x)

    def run() -> None:
        model.zero_grad()
        step.reset()
        for x_t in x:
            cross_entropy(step(x_t), labels).backward()

    return Trained(model, run)


def at_once(case: Case, x: Tensor, labels: Tensor) -> Trained:
    """Return the compiled model, all steps in one call."""
    model = Network(case.kind)
    fast = snncc.compile(model, mode="online")

    def run() -> None:
        model.zero_grad()
        loss = cross_entropy(fast(x).flatten(0, 1), labels.repeat(len(x)), reduction="sum")
        (loss / case.B).backward()

    return Trained(model, run)


def snntorch(case: Case, x: Tensor, labels: Tensor) -> Trained | Skipped:
    """Return snnTorch's neurons, their potentials detached after each step."""
    try:
        from snntorch import Leaky
    except ImportError as error:
        return Skipped(f"not importable: {error}")
    layers = nn.ModuleList(layers_of(case.kind))
    neurons = nn.ModuleList(Leaky(beta=0.9, reset_mechanism="zero") for _ in layers)

    def run() -> None:
        layers.zero_grad()
        v = [neuron.init_leaky() for neuron in neurons]
        for x_t in x:
            s = x_t
            for i, (layer, neuron) in enumerate(zip(layers, neurons, strict=True)):
                s, after = neuron(layer(s), v[i].detach())
                v[i] = after
            cross_entropy(after, labels).backward()

    return Trained(layers, run)


def spikingjelly(kind: str, case: Case, x: Tensor, labels: Tensor) -> Trained | Skipped:
    """Return SpikingJelly's neurons for online training; the last layer gives its spikes."""
    try:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate
    except ImportError as error:
        return Skipped(f"not importable: {error}")
    made = getattr(neuron, f"{kind}LIFNode", None)
    if made is None:
        return Skipped(f"this version has no {kind}LIFNode")

    def neurons() -> nn.Module:
        found: nn.Module = made(
            tau=10.0, decay_input=False, v_reset=0.0, surrogate_function=surrogate.ATan()
        )
        return found

    parts = [part for each in layers_of(case.kind) for part in (each, neurons())]
    parts = [p for part in parts for p in (part if isinstance(part, nn.Sequential) else [part])]
    model: Any = (layer.OTTTSequential if kind == "OTTT" else nn.Sequential)(*parts)

    def run() -> None:
        model.zero_grad()
        functional.reset_net(model)
        for x_t in x:
            y = model(x_t)
            cross_entropy(y[0] if isinstance(y, list) else y, labels).backward()

    return Trained(model, run)


VARIANTS: dict[str, Callable[[Case, Tensor, Tensor], Trained | Skipped]] = {
    "eager": eager,
    "snncc stream": stream,
    "snncc at once": at_once,
    "snnTorch": snntorch,
    "SpikingJelly SLTT": partial(spikingjelly, "SLTT"),
    "SpikingJelly OTTT": partial(spikingjelly, "OTTT"),
}
COMPARED = ("eager", "snncc stream", "snncc at once")  # the same network


def gradients(trained: Trained) -> list[Tensor]:
    """Return the gradients that a run leaves."""
    trained.run()
    return [p.grad.clone() for p in trained.model.parameters() if p.grad is not None]


class Kept:
    """A tensor that autograd keeps; counts as long as it is kept."""

    now = most = 0

    def __init__(self, tensor: Tensor, size: int) -> None:
        self.tensor, self.size = tensor, size
        Kept.now += size
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self) -> None:
        Kept.now -= self.size


def most_bytes(trained: Trained) -> int:
    """Return the most bytes that autograd kept at once in a sequence, without parameters."""
    own = {p.data_ptr() for p in trained.model.parameters()}
    Kept.now = Kept.most = 0

    def pack(x: Tensor) -> Kept:
        return Kept(x, 0 if x.data_ptr() in own else x.nbytes)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        trained.run()
    return Kept.most


def measure(case: Case, steps: int, budget: harness.Budget) -> list[Record]:
    """Time and compare all variants of a case."""
    made: dict[str, Trained | Skipped] = {}
    for name, make in VARIANTS.items():
        torch.manual_seed(0)
        x, labels = make_input(case, steps)
        made[name] = make(case, x, labels)
    runs = {name: each for name, each in made.items() if isinstance(each, Trained)}
    found = {name: gradients(runs[name]) for name in COMPARED}
    seconds = harness.interleave({name: each.run for name, each in runs.items()}, budget)
    records: list[Record] = []
    for name, each in made.items():
        record: Record = {"case": case.name, "variant": name}
        if isinstance(each, Skipped):
            records.append(record | {"skipped": each.reason})
            continue
        record["step_us"] = 1e3 * harness.summarize(seconds[name])["median_ms"] / steps
        record["eager_over_this"] = (records or [record])[0]["step_us"] / record["step_us"]
        record["kept_kib"] = most_bytes(each) / 1024
        if name in found:
            pairs = zip(found["eager"], found[name], strict=True)
            record["gradient_difference"] = max(
                float((a - b).abs().max() / a.abs().max()) for a, b in pairs
            )
        records.append(record)
    return records


COLUMNS = {
    "variant": "",
    "step_us": ".1f",
    "eager_over_this": ".2f",
    "kept_kib": ",.0f",
    "gradient_difference": ".0e",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark."""
    parser: argparse.ArgumentParser = harness.parser(__doc__.splitlines()[0])
    arguments = parser.parse_args(argv)
    budget, steps = harness.budget(arguments), QUICK_STEPS if arguments.quick else STEPS
    parts = [partial(measure, case, steps, budget) for case in CASES]
    return harness.run_parts("online", parts, arguments, COLUMNS)


if __name__ == "__main__":
    main()
