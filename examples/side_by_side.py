"""Train one network with several kinds of neurons and report them side by side.

Shared by the examples about parallel modes.  The trainings alternate epoch by epoch, so that
whatever else the machine does slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snncc
from snncc.nn import LIF, PSN, ATan

Batch = tuple[Tensor, Tensor, Tensor]  # x [T, B, inputs], mask [T, B], labels [B]


@dataclass(frozen=True)
class Task:
    """A data set, and what a network for it looks like.

    Attributes:
        name: Title of the table.
        inputs: Values at each step.
        steps: T, the same for all batches: a PSN has a weight for each pair of steps.
        classes: How many labels there are.
        decay: Decay of the LIF neurons, and the start of dynamic decays.
        train: The training set in an order that a generator draws.
        test: The test set.
        hidden: Neurons of a layer.
        learning_rate: Of Adam.
    """

    name: str
    inputs: int
    steps: int
    classes: int
    decay: float
    train: Callable[[torch.Generator], Iterable[Batch]]
    test: Callable[[], Iterable[Batch]]
    hidden: int = 64
    learning_rate: float = 5e-3


class Network(nn.Module):
    """Two spiking layers; the logits are read from the mean of the spikes of the second."""

    def __init__(self, task: Task, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layer1, self.neuron1 = nn.Linear(task.inputs, task.hidden), neuron()
        self.layer2, self.neuron2 = nn.Linear(task.hidden, task.hidden), neuron()
        self.readout = nn.Linear(task.hidden, task.classes)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, classes], and the share of neurons that fire at a step."""
        s1 = self.neuron1(self.layer1(x))
        s2 = self.neuron2(self.layer2(s1))
        inside, steps = mask.unsqueeze(2), mask.sum(0).unsqueeze(1)
        total1, total2 = (s1 * inside).sum(0), (s2 * inside).sum(0)
        rate = (total1 + total2).sum() / (2 * total1.shape[1] * steps.sum())
        return self.readout(total2 / steps), rate


@dataclass
class Run:
    """The training of one kind of neuron while it goes on."""

    label: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """What was found of one kind of neuron; ``seconds`` is the median of an epoch."""

    label: str
    accuracy: float
    rate: float
    seconds: float
    first_loss: float
    last_loss: float


def parser_of(description: str, epochs: int) -> argparse.ArgumentParser:
    """Return the command line that the examples share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--epochs", type=int, default=epochs, help="passes over the training set")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batch order")
    return parser


def compare(task: Task, epochs: int, seed: int) -> list[Row]:
    """Train every kind of neuron on a task, print the table and return its rows."""
    console = Console()
    runs = start(task, seed)
    for epoch in track(range(epochs), task.name, console=console):
        for run in runs:
            order = torch.Generator().manual_seed(seed * 100_003 + epoch)
            train_epoch(run, task.train(order))
    rows = [evaluate(run, task.test()) for run in runs]
    console.print(tabulate(task, rows))
    return rows


def start(task: Task, seed: int) -> list[Run]:
    """Return the networks, compiled, each from the same seed."""

    def lif() -> nn.Module:
        return LIF(task.decay, v_reset=None, surrogate=ATan(4.0))

    def psn() -> nn.Module:
        return PSN(task.steps, surrogate=ATan(4.0))

    x, mask, _ = next(iter(task.test()))
    ways: list[tuple[str, Callable[[], nn.Module], dict[str, object]]] = [
        ("LIF", lif, {"mode": "fused"}),
        ("LIF, 3 soft sweeps", lif, {"mode": "fpt", "sweeps": 3}),
        ("dynamic decay", lif, {"mode": "dynamic_decay", "example_inputs": (x, mask)}),
        ("PSN", psn, {}),
    ]
    runs = []
    for label, neuron, options in ways:
        torch.manual_seed(seed)
        model: nn.Module = Network(task, neuron)
        if options:  # a PSN is a product over time: there is no loop to compile
            model = snncc.compile(model, **options)
        optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
        runs.append(Run(label, model, optimizer))
    return runs


def train_epoch(run: Run, batches: Iterable[Batch]) -> None:
    """Take one optimizer step per batch; record the losses and the time."""
    run.model.train()
    begin = time.perf_counter()
    for x, mask, labels in batches:
        logits, _ = run.model(x, mask)
        loss = cross_entropy(logits, labels)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.losses.append(loss.item())
    run.seconds.append(time.perf_counter() - begin)


@torch.no_grad()
def evaluate(run: Run, batches: Iterable[Batch]) -> Row:
    """Return accuracy and firing rate on the test set, and what the training took."""
    run.model.eval()
    correct = total = fired = 0.0
    for x, mask, labels in batches:
        logits, rate = run.model(x, mask)
        correct += float((logits.argmax(1) == labels).sum())
        fired += float(rate) * len(labels)
        total += len(labels)
    seconds = statistics.median(run.seconds)
    losses = run.losses
    return Row(run.label, correct / total, fired / total, seconds, losses[0], losses[-1])


def tabulate(task: Task, rows: Sequence[Row]) -> Table:
    """Lay out the rows for the terminal."""
    title = f"{task.name}: {task.steps} steps, 2 x {task.hidden} neurons, decay {task.decay}"
    table = Table(title=title)
    for column in ("neurons", "test accuracy", "firing rate", "time per epoch", "loss"):
        table.add_column(column, justify="left" if column == "neurons" else "right")
    for row in rows:
        table.add_row(
            row.label,
            f"{row.accuracy:.1%}",
            f"{row.rate:.1%}",
            f"{row.seconds * 1e3:.0f} ms",
            f"{row.first_loss:.2f} to {row.last_loss:.2f}",
        )
    return table
