"""One training step of recurrent spiking networks: eager, compiled, torch.compile, a lower bound.

The network is 40-128-20: the 128 neurons of the hidden layer hear the input and, through a matrix,
their own spikes of the step before. It is written as one loop over time with all layers inside:
leaky neurons in plain PyTorch, or a recurrent layer of snnTorch or SpikingJelly, each compared with
itself in eager mode. A step is the forward pass, the cross entropy of the readout summed over time,
and the backward pass; there is no optimizer in it. "products alone" runs the matrix products of the
plain network over all T*B rows at once, forward and backward, on random spikes of the rate that it
has: a bound that a recurrence cannot reach with dense products, since it may not merge its steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snncc
from benchmarks import harness
from benchmarks.harness import Record, Skipped
from snncc.nn import ATan

INPUTS, HIDDEN, CLASSES = 40, 128, 20
INPUT_RATE = 0.2


@dataclass(frozen=True)
class Case:
    """One row of the benchmark: a kind of layer and its sizes."""

    kind: str
    T: int
    B: int
    training: bool = True

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.kind} T={self.T} B={self.B}{'' if self.training else ', inference'}"


CASES = (
    Case("plain", 100, 32),
    Case("plain", 100, 256),
    Case("plain", 100, 256, training=False),
    Case("snnTorch RLeaky", 100, 256),
    Case("SpikingJelly LinearRecurrentContainer", 100, 256),
)
QUICK_CASES = (Case("plain", 20, 16), Case("plain", 20, 16, training=False))


class PlainLayer(nn.Module):
    """Leaky neurons that are reset to zero and hear their last spikes through a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.spike = ATan(2.0)
        nn.init.normal_(self.back.weight, std=HIDDEN**-0.5)

    def start(self, B: int) -> tuple[Tensor, Tensor]:
        """Return what the first step starts from."""
        return torch.zeros(B, HIDDEN), torch.zeros(B, HIDDEN)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the spikes of one step and the state after it."""
        v, s = state
        h = 0.9 * v + x + self.back(s)
        s = self.spike(h - 1.0)
        return s, (h * (1.0 - s), s)


class RecurrentNet(nn.Module):
    """An input layer, a recurrent hidden layer and a readout, one step after another."""

    def __init__(self, hidden: Any) -> None:
        super().__init__()
        self.inputs = nn.Linear(INPUTS, HIDDEN)
        self.hidden = hidden
        self.readout = nn.Linear(HIDDEN, CLASSES)
        nn.init.normal_(self.inputs.weight, std=1.5 * INPUTS**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of spikes ``x`` [T, B, inputs]."""
        T, B, _ = x.shape
        state = self.hidden.start(B)
        total = torch.zeros(B, CLASSES)
        for t in range(T):
            s, state = self.hidden(self.inputs(x[t]), state)
            total = total + self.readout(s)
        return total


def snntorch_layer() -> nn.Module | Skipped:
    """Return RLeaky of snnTorch."""
    try:
        import snntorch
    except ImportError as error:
        return Skipped(f"not importable: {error}")

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaky = snntorch.RLeaky(beta=0.9, linear_features=HIDDEN)

        def start(self, _batch: int) -> Any:
            return self.leaky.init_rleaky()

        def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            s, v = self.leaky(x, *state)
            return s, (s, v)

    return Layer()


def spikingjelly_layer() -> nn.Module | Skipped:
    """Return LinearRecurrentContainer of SpikingJelly around its LIFNode."""
    try:
        from spikingjelly.activation_based import functional, layer, neuron
    except ImportError as error:
        return Skipped(f"not importable: {error}")

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neurons = layer.LinearRecurrentContainer(neuron.LIFNode(), HIDDEN, HIDDEN)
            # Larger than the default, so that an untrained network fires.
            for weight in (p for p in self.neurons.parameters() if p.dim() == 2):
                nn.init.normal_(weight, std=2.0 * HIDDEN**-0.5)

        def start(self, _batch: int) -> None:
            functional.reset_net(self.neurons)

        def forward(self, x: Tensor, _state: None) -> tuple[Tensor, None]:
            return self.neurons(x), None

    return Layer()


LAYERS: dict[str, Callable[[], nn.Module | Skipped]] = {
    "plain": PlainLayer,
    "snnTorch RLeaky": snntorch_layer,
    "SpikingJelly LinearRecurrentContainer": spikingjelly_layer,
}


def make_model(case: Case) -> tuple[RecurrentNet | Skipped, Tensor, Tensor]:
    """Return the network, its input and the labels, always the same for the same case."""
    torch.manual_seed(0)
    hidden = LAYERS[case.kind]()
    x = (torch.rand(case.T, case.B, INPUTS) < INPUT_RATE).float()
    labels = torch.randint(CLASSES, (case.B,))
    return hidden if isinstance(hidden, Skipped) else RecurrentNet(hidden), x, labels


@torch.no_grad()
def firing_rate(model: RecurrentNet, x: Tensor) -> float:
    """Return the share of neuron-steps of the hidden layer that fire."""
    state, fired = model.hidden.start(x.shape[1]), 0.0
    for x_t in x:
        s, state = model.hidden(model.inputs(x_t), state)
        fired += float(s.mean())
    return fired / x.shape[0]


def step_of(model: nn.Module, x: Tensor, labels: Tensor, *, training: bool) -> Callable[[], object]:
    """Return what one timed run of a model does."""

    def train() -> None:
        model.zero_grad(set_to_none=True)
        cross_entropy(model(x), labels).backward()

    def infer() -> None:
        with torch.no_grad():
            model(x)

    return train if training else infer


def products_alone(case: Case, rate: float) -> Callable[[], object]:
    """Return the matrix products of one step over all rows."""
    rows = case.T * case.B
    layers = [
        nn.Linear(INPUTS, HIDDEN),
        nn.Linear(HIDDEN, HIDDEN, bias=False),
        nn.Linear(HIDDEN, CLASSES),
    ]
    inputs = [
        # The gradient of the input of the network is not needed, that of every other layer is.
        (torch.rand(rows, layer.in_features) < share).float().requires_grad_(number > 0)
        for number, (layer, share) in enumerate(zip(layers, (INPUT_RATE, rate, rate), strict=True))
    ]
    grads = [torch.randn(rows, layer.out_features) for layer in layers]

    def train() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer.zero_grad(set_to_none=True)
            x.grad = None
        outputs = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
        torch.autograd.backward(outputs, grads)

    def infer() -> None:
        with torch.no_grad():
            for layer, x in zip(layers, inputs, strict=True):
                layer(x)

    return train if case.training else infer


def measure(case: Case, budget: harness.Budget, *, inductor: bool) -> list[Record]:
    """Time the variants of a case."""
    model, x, labels = make_model(case)
    if isinstance(model, Skipped):
        return [{"case": case.name, "variant": "eager", "skipped": model.reason}]
    rate = firing_rate(model, x)
    models: dict[str, Any] = {"eager": model, "snncc": snncc.compile(make_model(case)[0])}
    if inductor:
        models["torch.compile"] = torch.compile(make_model(case)[0])
    runs = {name: step_of(m, x, labels, training=case.training) for name, m in models.items()}
    runs["products alone"] = products_alone(case, rate)
    medians = {k: harness.summarize(s) for k, s in harness.interleave(runs, budget).items()}
    records = []
    for name, row in medians.items():
        record: Record = {"case": case.name, "variant": name, "firing_rate": rate} | row
        record["eager_over_this"] = medians["eager"]["median_ms"] / row["median_ms"]
        record["over_products"] = row["median_ms"] / medians["products alone"]["median_ms"]
        records.append(record)
    return records


COLUMNS = {
    "variant": "",
    "median_ms": ".1f",
    "min_ms": ".1f",
    "eager_over_this": ".2f",
    "over_products": ".2f",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    parser: argparse.ArgumentParser = harness.parser("Training step of recurrent networks.")
    parser.add_argument("--inductor", action="store_true", help="also torch.compile; takes minutes")
    arguments = parser.parse_args(argv)
    cases = QUICK_CASES if arguments.quick else CASES
    if arguments.case is not None:
        case, budget = cases[arguments.case], harness.budget(arguments)
        rows = measure(case, budget, inductor=arguments.inductor)
        print(json.dumps({"records": rows}))
        return rows
    records: list[Record] = []
    for number, case in enumerate(cases):
        rows = harness.run_case("benchmarks.recurrent", number, arguments)
        rate = rows[0].get("firing_rate")
        title = case.name if rate is None else f"{case.name}, firing rate {rate:.1%}"
        harness.show(title, rows, COLUMNS)
        records += rows
    stem = harness.write("recurrent", records, arguments)
    picture = harness.plot_bars(records, stem, "median_ms")
    print(f"results: {stem.with_suffix('.json')}, {picture}")
    return records


if __name__ == "__main__":
    main()
