"""One training step of networks made of library neurons: the library's paths, and compiled.

A step is the forward pass, the cross entropy, and the backward pass; there is no optimizer in it.

Variants. "step by step" is the library's single-step code, with a loop over time. "multi-step" is
SpikingJelly's own fastest path on a CPU: each operator takes all steps at once, the neurons loop
inside of an operator of its own. "snncc, step by step" and "snncc, multi-step" are the same two
modules compiled, unmodified. In training the two differ: a norm in the loop takes statistics of one
step, behind it of all steps. "products alone" runs the convolutions and linear layers over all
steps at once as torch does them, forward and backward, on the spikes that the network has, with
nothing in the place of all else; "products, skipping zeros" does the same as compiled code does.
The latter over the time of a compiled step is the share that products have in it.

Before anything is timed, each compiled module is compared with its eager twin in double precision,
where no rounding decides on a spike: outputs and all gradients must agree.  snnTorch's neurons know
single precision only; there ``snncc.verify`` must issue its certificate.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snncc
from benchmarks import harness
from benchmarks import library_networks as networks
from benchmarks.harness import Record
from snncc.runtime.products.convolution import convolve

# Sums in another order: a few roundings of double precision, relative to the largest value.
TOLERANCE = 1e-9
REFERENCE = "step by step"
SKIPPING = "products, skipping zeros"
PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Case:
    """A network, its sizes, and the modules that run it.

    Attributes:
        name: What is shown.
        network: Makes what the variants share.
        variants: For each path of the library, what makes a module of the network.
        shape: Of the input.
        double: Whether the library computes in double precision.
    """

    name: str
    network: Callable[[], nn.Module]
    variants: Mapping[str, Callable[[nn.Module], nn.Module]]
    shape: tuple[int, ...]
    double: bool = True


def _same(module: nn.Module) -> nn.Module:
    return module


PATHS = {REFERENCE: networks.StepByStep, "multi-step": networks.AllSteps}


def residual(name: str, T: int, B: int, *, size: int = 32, **options: Any) -> Case:
    """Return a case of a residual network."""
    network = partial(networks.ResNet18, **options)
    return Case(f"{name} T={T} B={B}", network, PATHS, (T, B, 3, size, size))


def transformer(T: int, B: int, size: int, width: int, depths: int) -> Case:
    """Return a case of SpikingJelly's Spikformer, which knows all steps at once only."""
    network = partial(networks.Spikformer, T, size, width, depths)
    return Case(f"Spikformer T={T} B={B}", network, {"multi-step": _same}, (B, 3, size, size))


def tutorial(T: int, B: int) -> Case:
    """Return a case of snnTorch's network, which knows single steps only."""
    network = partial(networks.ConvolutionalTutorial, T)
    return Case(
        f"snnTorch tutorial T={T} B={B}", network, {REFERENCE: _same}, (B, 1, 28, 28), False
    )


CASES = (
    residual("spiking ResNet-18", 4, 4, of_spikes=False),
    residual("spiking ResNet-18", 16, 2, of_spikes=False),
    residual("SEW-ResNet-18", 4, 4, of_spikes=True),
    residual("SEW-ResNet-18", 16, 2, of_spikes=True),
    transformer(4, 8, 32, 256, 2),
    transformer(16, 2, 32, 256, 2),
    tutorial(50, 32),
)
NARROW = (8, 8, 16, 16)
QUICK_CASES = (
    residual("spiking ResNet-18", 4, 2, size=16, of_spikes=False, widths=NARROW),
    residual("SEW-ResNet-18", 4, 2, size=16, of_spikes=True, widths=NARROW),
    transformer(4, 2, 16, 32, 1),
    tutorial(5, 2),
)


def training_step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return one step: gradients from nothing, forward, loss, backward."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        cross_entropy(model(x), labels).backward()

    return run


def require_certificate(model: nn.Module, x: Tensor) -> None:
    """Verify a compiled module.

    Raises:
        RuntimeError: It is not equivalent to the module.
    """
    report = snncc.verify(model, snncc.compile(copy.deepcopy(model)), x)
    if not report.ok:
        raise RuntimeError(str(report))


def require_equal(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    """Compare a module with its compiled twin in double precision.

    Raises:
        RuntimeError: An output or a gradient differs by more than sums in another order do.
    """
    eager, twin = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    compiled = snncc.compile(twin)
    x = x.double()
    expected, actual = eager(x), compiled(x)
    cross_entropy(expected, labels).backward()
    cross_entropy(actual, labels).backward()
    pairs = {"the output": (expected.detach(), actual.detach())}
    for (name, left), right in zip(eager.named_parameters(), twin.parameters(), strict=True):
        if left.grad is None or right.grad is None:
            raise RuntimeError(f"'{name}' has no gradient.")
        pairs[name] = (left.grad, right.grad)
    # A bias before a norm has a gradient of zero and roundings: compare with all gradients.
    largest = max(float(left.abs().max()) for left, _ in pairs.values())
    for name, (left, right) in pairs.items():
        difference = float((left - right).abs().max())
        if difference > TOLERANCE * largest:
            raise RuntimeError(f"{name} differs by {difference} where the largest is {largest}.")


@dataclass(frozen=True)
class Product:
    """A convolution or linear layer with everything that it was given in one forward pass."""

    layer: nn.Module
    x: Tensor

    def __call__(self, *, skip_zeros: bool) -> Tensor:
        """Return the product over all steps, as torch computes it or as compiled code does."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(self.x, layer.weight, layer.bias)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        # Compiled code tries it with spikes alone: an image is not counted.
        if not skip_zeros or not self.x.requires_grad:
            return layer._conv_forward(self.x, layer.weight, layer.bias)
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return convolve(self.x, layer.weight, layer.bias, *options)


def products_of(model: nn.Module, x: Tensor) -> list[Product]:
    """Run a module once and return its products, time folded into the batch."""
    seen: dict[nn.Module, list[Tensor]] = {}

    def note(layer: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        given = args[0].detach()
        calls = seen.setdefault(layer, [])
        # A layer that is given the same tensor at each step has one product to compute.
        if not any(given.data_ptr() == other.data_ptr() for other in calls):
            calls.append(given)

    layers = [m for m in model.modules() if isinstance(m, PRODUCTS)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    model(x)
    for handle in handles:
        handle.remove()
    return [Product(layer, _folded(layer, calls)) for layer, calls in seen.items()]


def _folded(layer: nn.Module, calls: list[Tensor]) -> Tensor:
    rank = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4}
    kind = next(kind for kind in PRODUCTS if isinstance(layer, kind))
    return torch.cat([x.flatten(0, x.dim() - rank[kind]) for x in calls])


def products_alone(
    products: Sequence[Product], x: Tensor, *, skip_zeros: bool
) -> Callable[[], object]:
    """Return the products of one step, forward and backward."""
    inputs = []
    for product in products:
        # The gradient of the input of the network is not needed, that of every other layer is.
        first = product.x.data_ptr() == x.data_ptr() or product is products[0]
        inputs.append(Product(product.layer, product.x.clone().requires_grad_(not first)))
    grads = [torch.randn_like(product(skip_zeros=False)) for product in inputs]

    def run() -> None:
        for product in inputs:
            product.x.grad = None
            product.layer.zero_grad(set_to_none=True)
        torch.autograd.backward([p(skip_zeros=skip_zeros) for p in inputs], grads)

    return run


def densities(products: Sequence[Product]) -> list[float]:
    """Return the share of values that are not zero in what each layer is given."""
    return [round(float((product.x != 0).double().mean()), 4) for product in products]


def measure(case: Case, budget: harness.Budget) -> list[Record]:
    """Compare, then time the variants of a case."""
    torch.manual_seed(0)
    network = case.network()
    x, labels = torch.randn(case.shape), torch.randint(networks.CLASSES, (batch(case),))
    runs: dict[str, Callable[[], object]] = {}
    products: list[Product] = []
    for name, make in case.variants.items():
        model = make(copy.deepcopy(network))
        if case.double:
            require_equal(model, x, labels)
        else:
            require_certificate(model, x)
        products = products_of(copy.deepcopy(model), x)
        runs[name] = training_step(copy.deepcopy(model), x, labels)
        runs[f"snncc, {name}"] = training_step(snncc.compile(model), x, labels)
    runs["products alone"] = products_alone(products, x, skip_zeros=False)
    runs[SKIPPING] = products_alone(products, x, skip_zeros=True)
    seconds = harness.interleave(runs, budget)
    medians = {name: harness.summarize(seconds[name])["median_ms"] for name in runs}
    fastest = min(medians[name] for name in case.variants)
    records = []
    for name in runs:
        record: Record = {"case": case.name, "variant": name}
        record |= harness.summarize(seconds[name])
        record["fastest_over_this"] = fastest / medians[name]
        record["over_products"] = medians[name] / medians["products alone"]
        if name.startswith("snncc"):
            record["products_share"] = medians[SKIPPING] / medians[name]
        records.append(record)
    records[0]["input_densities"] = densities(products)
    return records


def batch(case: Case) -> int:
    """Return the number of samples."""
    return case.shape[-4]


COLUMNS = {
    "variant": "",
    "median_ms": ".1f",
    "min_ms": ".1f",
    "fastest_over_this": ".2f",
    "over_products": ".2f",
    "products_share": ".0%",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    parser = harness.parser("Training step of library networks.")
    parser.add_argument("--only", type=int, help="measure this case, keep the stored others")
    arguments = parser.parse_args(argv)
    cases = QUICK_CASES if arguments.quick else CASES
    if arguments.case is not None:
        rows = measure(cases[arguments.case], harness.budget(arguments))
        print(json.dumps({"records": rows}))
        return rows
    measured: dict[str, list[Record]] = {}
    if arguments.only is not None:
        for record in harness.stored("libraries", arguments):
            measured.setdefault(record["case"], []).append(record)
    for number in range(len(cases)) if arguments.only is None else (arguments.only,):
        rows = harness.run_case("benchmarks.libraries", number, arguments)
        harness.show(rows[0]["case"], rows, COLUMNS)
        measured[rows[0]["case"]] = rows
    records = [row for case in cases for row in measured.get(case.name, ())]
    stem = harness.write("libraries", records, arguments)
    picture = harness.plot_bars(records, stem, "median_ms")
    print(f"results: {stem.with_suffix('.json')}, {picture}")
    return records


if __name__ == "__main__":
    main()
