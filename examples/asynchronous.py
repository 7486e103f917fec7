"""Read handwritten digits with spikes that nobody keeps in step.

In the layered network a layer waits for all spikes of the layer before it.  In mode ``async`` all
spikes of the network are in one queue, and the eight of the highest potential go next, wherever
they are, until none is left or until an output has fired.  That is another network: weights that
were trained layer by layer lose accuracy in it.  The table shows how much, and what comes of
weights that were trained in it, from the start or for some epochs more.  In training a neuron that
has fired may often fire again in the same time step: without that the queue was seen to learn less.

Run it with ``python examples/asynchronous.py [--epochs N] [--seed S]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import snncc
from snncc.nn import LIF, ATan

PIXELS, HIDDEN, DIGITS = 64, 64, 10
STEPS, BATCH = 4, 60
GROUP = 8  # spikes that go at a time
REFIRE = 0.8  # in training, with what chance a neuron that fired may fire again in the step


class Network(nn.Module):
    """Three hidden layers and one neuron for each digit; whichever fires most is the answer."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (PIXELS, HIDDEN, HIDDEN, HIDDEN, DIGITS)
        self.layers = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        self.neurons = nn.ModuleList(
            LIF(0.9, v_threshold=0.5, v_reset=None, surrogate=ATan(4.0)) for _ in self.layers
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes [T, B, digits] for currents ``x`` [T, B, pixels]."""
        for layer, neuron in zip(self.layers, self.neurons, strict=True):
            x = neuron(layer(x))
        return x


@dataclass(frozen=True)
class Row:
    """How trained weights do in one way to run them.

    Attributes:
        trained: How they were trained.
        run: How they are run.
        accuracy: On the test set.
        spikes: Of all neurons for one image.
        forward_steps: For one image; None in the layered network.
    """

    trained: str
    run: str
    accuracy: float
    spikes: float
    forward_steps: float | None


class Digits:
    """The images as currents [T, samples, pixels], the same at all steps; a fifth is for tests."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        train, test = order[len(y) // 5 :], order[: len(y) // 5]
        self.train, self.train_labels = self.over_time(x[train]), y[train]
        self.test, self.test_labels = self.over_time(x[test]), y[test]

    @staticmethod
    def over_time(images: Tensor) -> Tensor:
        """Show the images at every step."""
        return images.expand(STEPS, *images.shape)


def train(model: nn.Module, run: nn.Module, data: Digits, epochs: int) -> None:
    """Train a model in one way to run it, by the cross-entropy of its spike counts."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train_labels)).split(BATCH):
            counts = run(data.train[:, chosen]).sum(0)
            loss = F.cross_entropy(counts, data.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def layered_row(trained: str, model: Network, data: Digits) -> Row:
    """Run weights in the layered network."""
    spikes, x = 0.0, data.test
    for layer, neuron in zip(model.layers, model.neurons, strict=True):
        x = neuron(layer(x))
        spikes += float(x.sum())
    images = len(data.test_labels)
    return Row(trained, "layered", accuracy(x, data.test_labels), spikes / images, None)


@torch.no_grad()
def queue_row(trained: str, model: Network, data: Digits, stop: str | int) -> Row:
    """Run weights as a queue of spikes, until it is empty or an output fires."""
    fast = snncc.compile(model, mode="async", group_size=GROUP, stop=stop)
    score = accuracy(fast(data.test), data.test_labels)
    seen = {name: float(counts.double().mean()) for name, counts in fast.last_events.items()}
    run = "async" if stop == "quiet" else "async, until an output fires"
    return Row(trained, run, score, seen["spikes"], seen["forward_steps"])


def accuracy(spikes: Tensor, labels: Tensor) -> float:
    """Return the share of images whose digit fires most."""
    return float((spikes.sum(0).argmax(1) == labels).double().mean())


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Train layer by layer and as a queue, run each both ways, and print a table."""
    parser = argparse.ArgumentParser(description="Digits by an asynchronous network.")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(argv)
    data, rows = Digits(), []
    for trained in ("layered", "async", "layered, then async"):
        torch.manual_seed(settings.seed)
        model = Network()
        if trained != "async":
            train(model, snncc.compile(model), data, settings.epochs)
        if trained != "layered":
            options = {"group_size": GROUP, "refractory_dropout": REFIRE}
            queue = snncc.compile(model, mode="async", **options)
            train(model, queue, data, settings.epochs)
        model.eval()
        rows.append(layered_row(trained, model, data))
        rows += [queue_row(trained, model, data, stop) for stop in ("quiet", 0)]
    print(f"digits, {STEPS} steps, {settings.epochs} epochs, {GROUP} spikes at a time")
    print(f"{'trained':30}{'run':30}{'accuracy':>10}{'spikes':>9}{'forward steps':>15}")
    for row in rows:
        steps = "" if row.forward_steps is None else f"{row.forward_steps:.1f}"
        print(f"{row.trained:30}{row.run:30}{row.accuracy:10.3f}{row.spikes:9.1f}{steps:>15}")
    return rows


if __name__ == "__main__":
    main()
