"""Train one model twice from the same seed, serial and compiled, and report how they differ.

Shared by the examples. The two runs alternate epoch by epoch, so that whatever else the machine
does slows both of them alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snncc

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

Batch = tuple[tuple[Tensor, ...], Tensor]  # the arguments of the model, and the labels


@dataclass(frozen=True)
class Settings:
    """What the command line of an example decides."""

    epochs: int
    seed: int
    out: Path


@dataclass(frozen=True)
class Task:
    """One example: its model, its data and a name for the report."""

    name: str
    make_model: Callable[[], nn.Module]
    train: Callable[[torch.Generator], Iterable[Batch]]
    test: Callable[[], Iterable[Batch]]
    learning_rate: float


@dataclass
class Run:
    """One of the two trainings while it goes on."""

    label: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What an example found; times are medians per epoch, in seconds."""

    accuracy_eager: float
    accuracy_compiled: float
    loss_difference: float
    first_loss: float
    last_loss: float
    seconds_eager: float
    seconds_compiled: float
    first_epoch_compiled: float
    pictures: tuple[Path, ...]

    @property
    def speedup(self) -> float:
        """How many times faster an epoch of the compiled model is."""
        return self.seconds_eager / self.seconds_compiled


def parse(description: str, epochs: int, argv: Sequence[str] | None) -> Settings:
    """Read the command line that all examples share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--epochs", type=int, default=epochs, help="passes over the training set")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batch order")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the pictures")
    arguments = parser.parse_args(argv)
    return Settings(arguments.epochs, arguments.seed, arguments.out)


def compare(
    task: Task, settings: Settings, layers: Callable[[nn.Module], dict[str, Tensor]]
) -> Result:
    """Train serial and compiled, print the plan and the table, and draw the pictures.

    Args:
        task: The example.
        settings: Epochs, seed and output folder.
        layers: From the trained model, the spikes [T, N] of each layer for one sample.

    Returns:
        The measurements.
    """
    console = Console()
    load = os.getloadavg()[0]
    eager = start_run("eager", task, settings.seed, compiled=False)
    fast = start_run("compiled", task, settings.seed, compiled=True)
    train(task, (eager, fast), settings, console)
    console.print(str(fast.model), highlight=False, markup=False, soft_wrap=True)
    settings.out.mkdir(parents=True, exist_ok=True)
    pictures = (settings.out / "raster.png", settings.out / "loss.png")
    draw_raster(layers(eager.model), pictures[0])
    draw_losses((eager, fast), pictures[1])
    result = Result(
        accuracy_eager=accuracy(eager.model, task.test()),
        accuracy_compiled=accuracy(fast.model, task.test()),
        loss_difference=max(abs(a - b) for a, b in zip(eager.losses, fast.losses, strict=True)),
        first_loss=fast.losses[0],
        last_loss=fast.losses[-1],
        seconds_eager=statistics.median(eager.epoch_seconds),
        seconds_compiled=statistics.median(fast.epoch_seconds),
        first_epoch_compiled=fast.epoch_seconds[0],
        pictures=pictures,
    )
    console.print(tabulate(task.name, result))
    if load > 0.25 * (os.cpu_count() or 1):
        console.print(f"The machine was busy (load {load:.1f}): do not trust the times.")
    console.print(f"pictures: {', '.join(map(str, pictures))}", highlight=False)
    return result


def start_run(label: str, task: Task, seed: int, *, compiled: bool) -> Run:
    """Make a model from the seed, compiled or not, with its own optimizer."""
    torch.manual_seed(seed)
    model = task.make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
    return Run(label, snncc.compile(model) if compiled else model, optimizer)


def train(task: Task, runs: Sequence[Run], settings: Settings, console: Console) -> None:
    """Train the runs side by side, each on the same batches in the same order."""
    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = [
            progress.add_task(run.label, total=settings.epochs, loss=float("nan")) for run in runs
        ]
        for epoch in range(settings.epochs):
            for run, bar in zip(runs, bars, strict=True):
                order = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
                train_epoch(run, task.train(order))
                progress.update(bar, advance=1, loss=run.losses[-1])


def train_epoch(run: Run, batches: Iterable[Batch]) -> None:
    """Take one optimizer step per batch; record the losses and the time."""
    run.model.train()
    start = time.perf_counter()
    for arguments, labels in batches:
        loss = cross_entropy(run.model(*arguments), labels)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.losses.append(loss.item())
    run.epoch_seconds.append(time.perf_counter() - start)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the share of samples whose largest logit is the label."""
    model.eval()
    correct = total = 0
    for arguments, labels in batches:
        correct += int((model(*arguments).argmax(1) == labels).sum())
        total += len(labels)
    return correct / total


def tabulate(name: str, result: Result) -> Table:
    """Lay out the measurements for the terminal."""
    table = Table(title=name)
    table.add_column("")
    table.add_column("eager", justify="right")
    table.add_column("compiled", justify="right")
    table.add_row(
        "test accuracy", f"{result.accuracy_eager:.1%}", f"{result.accuracy_compiled:.1%}"
    )
    table.add_row(
        "median time per epoch",
        f"{result.seconds_eager * 1e3:.1f} ms",
        f"{result.seconds_compiled * 1e3:.1f} ms",
    )
    table.add_row(
        "first epoch, with compilation", "", f"{result.first_epoch_compiled * 1e3:.1f} ms"
    )
    table.add_row("eager / compiled", "", f"{result.speedup:.2f}")
    table.add_row("largest difference of the losses", "", f"{result.loss_difference:.3g}")
    return table


def draw_raster(layers: dict[str, Tensor], path: Path) -> None:
    """Draw a dot per spike: one panel a layer, steps to the right, neurons upwards."""
    figure, axes = plt.subplots(
        len(layers), 1, figsize=(7, 1 + 2 * len(layers)), sharex=True, squeeze=False
    )
    for axis, (name, spikes) in zip(axes[:, 0], layers.items(), strict=True):
        steps, neurons = spikes.nonzero(as_tuple=True)
        axis.scatter(steps, neurons, s=4, c="black", marker="|")
        axis.set_ylabel("neuron")
        axis.set_title(f"{name}: {spikes.mean():.1%} of neuron-steps fire", fontsize=10)
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1, 0].set_xlabel("time step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_losses(runs: Sequence[Run], path: Path) -> None:
    """Draw the training loss of each run over the batches."""
    figure, axis = plt.subplots(figsize=(7, 4))
    for run, style in zip(runs, ("-", "--"), strict=True):
        axis.plot(run.losses, style, label=run.label, linewidth=1)
    axis.set_xlabel("batch")
    axis.set_ylabel("cross entropy")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
