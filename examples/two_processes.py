"""Train one network in two processes, each with half of the time steps, and in one.

Handwritten digits, row by row, each row for eight steps.  The two processes hand the states of the
neurons over, their gradients back, and add up the gradients of the weights; the losses are those
of the one process, up to what the order of additions changes.

Run it with ``python examples/two_processes.py [--updates N]``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, multiprocessing, nn

import snncc
from snncc.nn import ATan

BATCH, HIDDEN, CLASSES = 128, 128, 10
ROW, SHOWN = 8, 8  # pixels at a step, and steps for which a row is shown


class Network(nn.Module):
    """Two layers of LIF neurons and a leaky readout, written step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Linear(ROW, HIDDEN)
        self.layer2 = nn.Linear(HIDDEN, HIDDEN)
        self.readout = nn.Linear(HIDDEN, CLASSES)
        self.decay = nn.Parameter(torch.full((HIDDEN,), 3.0))
        self.spike = ATan()

    def forward(self, x: Tensor) -> Tensor:
        """Return the potentials of the readout after the last step."""
        v1 = v2 = torch.zeros(x.shape[1], HIDDEN)
        y = torch.zeros(x.shape[1], CLASSES)
        for t in range(x.shape[0]):
            v1 = torch.sigmoid(self.decay) * v1 + self.layer1(x[t])
            s1 = self.spike(v1 - 1.0)
            v1 = v1 - s1
            v2 = 0.9 * v2 + self.layer2(s1)
            s2 = self.spike(v2 - 1.0)
            v2 = v2 - s2
            y = 0.95 * y + self.readout(s2)
        return y


@dataclass(frozen=True)
class Run:
    """How a training went.

    Attributes:
        losses: The loss at each update.
        accuracy: On the last batches.
        seconds: Time of an update.
    """

    losses: list[float]
    accuracy: float
    seconds: float


def batches(updates: int) -> list[tuple[Tensor, Tensor]]:
    """Return sequences [64, B, 8] and labels [B]."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    chosen = [order.roll(-i * BATCH)[:BATCH] for i in range(updates)]
    rows = x.reshape(-1, ROW, ROW).transpose(0, 1).repeat_interleave(SHOWN, 0)
    return [(rows[:, i], y[i]) for i in chosen]


def train(updates: int, group: dist.ProcessGroup | None) -> Run:
    """Train in one process, or as a rank of a group on a part of the steps."""
    torch.manual_seed(0)
    fast: nn.Module = snncc.compile(Network())
    if group is not None:
        fast = snncc.distribute(fast, group)
    optimizer = torch.optim.Adam(fast.parameters(), lr=1e-2)
    losses, right, seconds = [], [], []
    for x, labels in batches(updates):
        start = time.perf_counter()
        own = x if group is None else x.tensor_split(group.size())[group.rank()]
        logits = fast(own)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        if group is not None:
            fast.sum_gradients()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        right.append((logits.argmax(1) == labels).float().mean().item())
    last = right[-5:]
    return Run(losses, sum(last) / len(last), sorted(seconds)[len(seconds) // 2])


def rank(number: int, ranks: int, updates: int, folder: str) -> None:
    """Train as one of several processes, and write down how it went."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=number, world_size=ranks)
    run = train(updates, dist.group.WORLD)
    Path(folder, f"{number}.json").write_text(json.dumps(asdict(run)))
    dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> dict[str, Run]:
    """Train both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=40)
    updates = parser.parse_args(argv).updates
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = {"one process": train(updates, None)}
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(rank, (2, updates, folder), nprocs=2)
        texts = [Path(folder, f"{number}.json").read_text() for number in range(2)]
    runs |= {f"rank {i} of two": Run(**json.loads(text)) for i, text in enumerate(texts)}
    for name, run in runs.items():
        print(
            f"{name:15} loss {run.losses[0]:.4f} -> {run.losses[-1]:.4f}, accuracy"
            f" {run.accuracy:.1%}, {run.seconds * 1e3:.1f} ms an update"
        )
    return runs


if __name__ == "__main__":
    main()
