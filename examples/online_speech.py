"""Train the speech network online: no gradient through time, a loss at each step of a recording.

The network of ``speech.py`` is trained in three ways, from the same weights and batches:

* through time: the gradient of the usual training;
* online, at once: the gradient of the last logits, but with each state a constant to its next step;
* online, by steps: the loss of the logits so far, differentiated after each time step, so that the
  memory for backward is that of one step, however long a recording is.

Run it with ``python examples/online_speech.py [--epochs N] [--seed S]``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from comparison import accuracy, parse
from rich.console import Console
from rich.table import Table
from speech import Speech, SpeechNet
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snncc

Backward = Callable[[Tensor, Tensor, Tensor], float]


@dataclass
class Row:
    """One way to train: what came of it.

    Attributes:
        label: The way.
        losses: The mean loss of each epoch.
        seconds: The time of each epoch.
        saved: The most bytes that were kept for backward at once, in the first batch.
        accuracy: Share of the test set that was recognised.
    """

    label: str
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    saved: int = 0
    accuracy: float = 0.0


class Saved:
    """Counts the bytes that are kept for backward while it is open, without those of parameters."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {p.data_ptr() for p in model.parameters()}
        self.most = self._now = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda x: x)

    def _keep(self, x: Tensor) -> Tensor:
        self._now += 0 if x.data_ptr() in self._own else x.nbytes
        self.most = max(self.most, self._now)
        return x

    def released(self) -> None:
        """Say that a backward pass has let go of what was kept."""
        self._now = 0

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)


def at_once(fast: snncc.CompiledModule, saved: Saved) -> Backward:
    """Return a pass over whole recordings that leaves gradients and returns the loss."""

    def run(x: Tensor, mask: Tensor, labels: Tensor) -> float:
        loss = cross_entropy(fast(x, mask), labels)
        loss.backward()
        saved.released()
        return loss.item()

    return run


def by_steps(fast: snncc.CompiledModule, saved: Saved) -> Backward:
    """Return a pass that differentiates after each step; a padded step has no part in the loss."""
    step: snncc.Stream | None = None

    def run(x: Tensor, mask: Tensor, labels: Tensor) -> float:
        nonlocal step
        step = step or fast.stream(x, mask)
        step.reset()
        total = 0.0
        for x_t, inside in zip(x, mask, strict=True):
            losses = cross_entropy(step(x_t, inside), labels, reduction="none")
            loss = (losses * inside).sum() / mask.sum()
            loss.backward()
            saved.released()
            total += loss.item()
        return total

    return run


WAYS = {
    "through time": ("fused", at_once),
    "online, at once": ("online", at_once),
    "online, by steps": ("online", by_steps),
}


def train(label: str, data: Speech, epochs: int, seed: int) -> Row:
    """Train one way and test it."""
    mode, made = WAYS[label]
    torch.manual_seed(seed)
    fast = snncc.compile(SpeechNet(), mode=mode)
    optimizer = torch.optim.Adam(fast.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(seed)
    row, saved = Row(label), Saved(fast)
    backward = made(fast, saved)
    for epoch in range(epochs):
        begin, losses = time.perf_counter(), []
        for (x, mask), labels in data.train_batches(order):
            optimizer.zero_grad()
            if epoch == 0 and not losses:
                with saved:
                    losses.append(backward(x, mask, labels))
            else:
                losses.append(backward(x, mask, labels))
            optimizer.step()
        row.seconds.append(time.perf_counter() - begin)
        row.losses.append(sum(losses) / len(losses))
    row.saved = saved.most
    row.accuracy = accuracy(fast, data.test_batches())
    return row


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Train in three ways and print a table."""
    settings = parse("Three layers of spiking neurons, trained online.", 30, argv)
    data = Speech()
    rows = [train(label, data, settings.epochs, settings.seed) for label in WAYS]
    table = Table(title="speech, online")
    for column in ("", "test accuracy", "time per epoch", "kept for backward"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        seconds = f"{median(row.seconds) * 1e3:.0f} ms"
        table.add_row(row.label, f"{row.accuracy:.1%}", seconds, f"{row.saved / 1024:,.0f} KiB")
    Console().print(table)
    return rows


if __name__ == "__main__":
    main()
