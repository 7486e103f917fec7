"""One layer of leaky integrate-and-fire neurons, forward and backward, against its peers.

Every variant computes ``h = decay v + x``, ``s = h >= 1`` and a reset on ``x`` [T, B, 512], with
the arctangent surrogate (alpha 2) and the reset inside the gradient. A peer that cannot do the same
maths is skipped with the reason. snnTorch fires above the threshold, not from it on: potentials
that meet the threshold exactly do occur among millions, so a few of its spikes differ, and the
gradients around them. How much each variant differs from eager is in its record.

The bandwidth of a copy of ``x`` is measured in the same rounds and, like snncc, right after a run
of eager mode, which leaves other data in the caches. "of copy" is the time that the unavoidable
bytes take at that bandwidth, over the time of the variant; per neuron-step these are five numbers
for training (x, s, then gs, x, gx) and two for inference (x, s). "copy again" follows a copy: it
shows how much of ``x`` the caches hold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import snncc
from benchmarks import harness
from benchmarks.harness import Record, Skipped
from snncc.nn import ATan

CHANNELS = 512


@dataclass(frozen=True)
class Case:
    """One row of the benchmark."""

    T: int
    neurons: int
    soft_reset: bool = False
    learnable: bool = False
    dtype: torch.dtype = torch.float32
    training: bool = True

    @property
    def name(self) -> str:
        """The case in words."""
        return (
            f"T={self.T} N={self.neurons} {'soft' if self.soft_reset else 'hard'} reset"
            f"{', learnable decay per channel' if self.learnable else ''}"
            f"{', float64' if self.dtype == torch.float64 else ''}"
            f"{'' if self.training else ', inference'}"
        )

    @property
    def bytes_moved(self) -> int:
        """Bytes that any implementation moves: 20 per neuron-step in fp32 training."""
        return (5 if self.training else 2) * self.dtype.itemsize * self.T * self.neurons


CASES = (
    Case(128, 2**14),
    Case(32, 2**18),
    Case(32, 2**20),
    Case(32, 2**18, soft_reset=True),
    Case(32, 2**18, learnable=True),
    Case(32, 2**18, dtype=torch.float64),
    Case(32, 2**18, training=False),
)
QUICK_CASES = (
    Case(16, 2**13),
    Case(16, 2**13, soft_reset=True),
    Case(16, 2**13, learnable=True),
    Case(16, 2**13, training=False),
)


class SerialLIF(nn.Module):
    """The serial code: what the compiler gets and what eager mode runs."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.soft_reset = case.soft_reset
        self.spike = ATan(2.0)
        self.weight: nn.Parameter | None = None
        if case.learnable:
            self.weight = nn.Parameter(torch.zeros(CHANNELS, dtype=case.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of ``x`` [T, B, C]."""
        decay = 0.5 if self.weight is None else torch.sigmoid(self.weight)
        v = torch.zeros_like(x[0])
        spikes = []
        for t in range(x.shape[0]):
            h = decay * v + x[t]
            s = self.spike(h - 1.0)
            v = h - s if self.soft_reset else h * (1.0 - s)
            spikes.append(s)
        return torch.stack(spikes)


def spikingjelly_lif(case: Case) -> Callable[[Tensor], Tensor] | Skipped:
    """LIFNode of SpikingJelly in multi-step mode: with tau 2 and no input decay the same maths."""
    if case.learnable:
        return Skipped("its learnable decay is one scalar")
    try:
        from spikingjelly.activation_based import functional, neuron, surrogate
    except ImportError as error:
        return Skipped(f"not importable: {error}")
    node = neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        v_reset=None if case.soft_reset else 0.0,
        surrogate_function=surrogate.ATan(2.0),
        step_mode="m",
    )

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        spikes: Tensor = node(x)
        return spikes

    return run


def snntorch_leaky(case: Case) -> nn.Module | Skipped:
    """Leaky of snnTorch in a loop; it fires above the threshold, not at it."""
    if case.dtype == torch.float64:
        return Skipped("its spikes are float32 for float64 input")
    try:
        import snntorch
    except ImportError as error:
        return Skipped(f"not importable: {error}")

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaky = snntorch.Leaky(
                beta=torch.full((CHANNELS,), 0.5) if case.learnable else 0.5,
                learn_beta=case.learnable,
                spike_grad=snntorch.surrogate.atan(2.0),
                reset_mechanism="subtract" if case.soft_reset else "zero",
                reset_delay=False,
            )

        def forward(self, x: Tensor) -> Tensor:
            v = torch.zeros_like(x[0])
            spikes = []
            for t in range(x.shape[0]):
                s, v = self.leaky(x[t], v)
                spikes.append(s)
            return torch.stack(spikes)

    return Loop()


def make_variants(case: Case, *, inductor: bool) -> dict[str, Callable[[Tensor], Tensor] | Skipped]:
    """Return everything that is compared, eager first."""
    return {
        "eager": SerialLIF(case),
        "snncc": snncc.compile(SerialLIF(case)),
        "spikingjelly": spikingjelly_lif(case),
        "snntorch": snntorch_leaky(case),
        "torch.compile": torch.compile(SerialLIF(case))
        if inductor
        else Skipped("needs --inductor; its first call is slow"),
    }


def training_step(
    model: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Run forward and backward and return spikes and gradient; nothing is left for the next run.

    Each variant so frees what it allocated, in its own time.
    """
    spikes = model(x)
    spikes.backward(grad)
    gradient, x.grad = x.grad, None
    for parameter in model.parameters() if isinstance(model, nn.Module) else ():
        parameter.grad = None
    return spikes.detach(), gradient


def agreement(case: Case, model: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Record:
    """Compare one variant with eager: spikes that differ, largest difference of input gradients."""
    with torch.set_grad_enabled(case.training):
        run = training_step if case.training else lambda f, x, _: (f(x), None)
        reference, reference_gradient = run(SerialLIF(case), x, grad)
        spikes, gradient = run(model, x, grad)
    record: Record = {"spikes_differ": int((spikes != reference).sum())}
    if gradient is not None and reference_gradient is not None:
        record["gradient_difference"] = float((gradient - reference_gradient).abs().max())
    return record


def measure(case: Case, budget: harness.Budget, *, inductor: bool) -> list[Record]:
    """Time all variants of a case and the copy, and compare each with eager."""
    torch.manual_seed(0)
    x = torch.rand(case.T, case.neurons // CHANNELS, CHANNELS, dtype=case.dtype) * 1.5
    grad = torch.randn_like(x)
    x.requires_grad_(case.training)
    variants = make_variants(case, inductor=inductor)
    models = {name: model for name, model in variants.items() if not isinstance(model, Skipped)}
    agreements = {name: agreement(case, model, x, grad) for name, model in models.items()}

    target = torch.empty_like(x)
    source = x.detach()
    runs = {name: bind(case, model, x, grad) for name, model in models.items()}
    runs["copy"] = runs["copy again"] = lambda: target.copy_(source)
    seconds = harness.interleave(runs, budget, before={"copy": runs["eager"]})

    copy_ms = harness.summarize(seconds["copy"])["median_ms"]
    bandwidth = 2 * x.nbytes / copy_ms  # bytes per millisecond, read and write
    records: list[Record] = []
    for name in ("copy", "copy again"):
        row = harness.summarize(seconds[name])
        row["gigabytes_per_second"] = 2 * x.nbytes / row["median_ms"] / 1e6
        records.append({"case": case.name, "variant": name} | row)
    eager_ms = harness.summarize(seconds["eager"])["median_ms"]
    for name, model in variants.items():
        record: Record = {"case": case.name, "variant": name}
        if isinstance(model, Skipped):
            record["skipped"] = model.reason
        else:
            record |= harness.summarize(seconds[name]) | agreements[name]
            record["eager_over_this"] = eager_ms / record["median_ms"]
            record["of_copy"] = case.bytes_moved / bandwidth / record["median_ms"]
        records.append(record)
    return records


def bind(
    case: Case, model: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor
) -> Callable[[], object]:
    """Return what one timed run of a model does."""
    if case.training:
        return lambda: training_step(model, x, grad)

    def infer() -> None:
        with torch.no_grad():
            model(x)

    return infer


COLUMNS = {
    "variant": "",
    "median_ms": ".2f",
    "min_ms": ".2f",
    "eager_over_this": ".2f",
    "of_copy": ".1%",
    "gigabytes_per_second": ".1f",
    "spikes_differ": "d",
    "gradient_difference": ".1e",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    parser: argparse.ArgumentParser = harness.parser(
        "One LIF layer against its peers and against the copy bandwidth."
    )
    parser.add_argument("--inductor", action="store_true", help="also torch.compile the loop")
    arguments = parser.parse_args(argv)
    cases = QUICK_CASES if arguments.quick else CASES
    if arguments.case is not None:
        budget = harness.budget(arguments)
        rows = measure(cases[arguments.case], budget, inductor=arguments.inductor)
        print(json.dumps({"records": rows}))
        return rows
    records: list[Record] = []
    for number, case in enumerate(cases):
        rows = harness.run_case("benchmarks.neuron", number, arguments)
        harness.show(case.name, rows, COLUMNS)
        records += rows
    stem = harness.write("neuron", records, arguments)
    picture = harness.plot_bars(records, stem, "median_ms")
    print(f"results: {stem.with_suffix('.json')}, {picture}")
    return records


if __name__ == "__main__":
    main()
