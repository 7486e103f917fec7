"""A character-level language model of dynamic-decay neurons on Python's own standard library.

It is trained on sequences of 2,000 characters and then run over 30,000, in two ways: all steps at
once, with one kernel for each layer of neurons, and step after step by a stream, which keeps the
potentials and the last inputs.

Within a neuron the two do the same operations in the same order.  What may differ is the order in
which a product sums the inputs of a row, and with it the last bits of a potential: a spike flips
where these bits decide.  So both are compared once more in float64, where they hardly ever do.

Run it with ``python examples/language.py [--steps N] [--length T] [--seed S]``.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import snncc
from snncc.nn import DynamicDecay

SYMBOLS = [*map(chr, range(32, 127)), "\n", "\t"]
OTHER = len(SYMBOLS)  # stands for every other character
TRAIN_STEPS = 2_000
BATCH = 4
FIRST_LENGTHS = (8, 12)  # recorded; after two of them the number of steps is free
# Of the logits, while no spike differs: products that sum in another order.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}


@dataclass(frozen=True)
class Agreement:
    """How far the steps of a stream are from the parallel form.

    Attributes:
        length: Steps of the sequence.
        flips: Spikes that differ, of ``spikes``.
        spikes: Neuron-steps that were compared.
        difference: Largest difference of the logits.
        bits: Bits for each character, by the parallel form.
        seconds: Of the parallel form and of the stream.
    """

    length: int
    flips: int
    spikes: int
    difference: float
    bits: float
    seconds: tuple[float, float]


@dataclass(frozen=True)
class Result:
    """Bits for each character before and after training, and the agreement by type."""

    bits_before: float
    bits_after: float
    agreement: dict[torch.dtype, Agreement]


class LanguageModel(nn.Module):
    """Two layers of neurons whose decay depends on what was read; integer spikes, no reset."""

    def __init__(self, hidden: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(SYMBOLS) + 1, hidden)
        self.neuron1 = DynamicDecay(hidden)
        self.layer2 = nn.Linear(hidden, hidden)
        self.neuron2 = DynamicDecay(hidden)
        self.head = nn.Linear(2 * hidden, len(SYMBOLS) + 1)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [T, B, symbols] of the next symbols of ``text`` [T, B], and all spikes."""
        s1 = self.neuron1(self.embedding(text))
        s2 = self.neuron2(self.layer2(s1))
        spikes = torch.cat([s1, s2], 2)
        return self.head(spikes), spikes


def read_text(limit: int) -> tuple[Tensor, Tensor]:
    """Return the sources of the standard library as symbols: to train on, and the rest."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in sources)[:limit]
    numbers = {symbol: number for number, symbol in enumerate(SYMBOLS)}
    symbols = torch.tensor([numbers.get(symbol, OTHER) for symbol in text])
    held_out = len(symbols) // 10
    return symbols[:-held_out], symbols[-held_out:]


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean number of bits that a symbol costs."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten()) / math.log(2.0)


def train(model: nn.Module, text: Tensor, steps: int, seed: int, console: Console) -> list[float]:
    """Train on random pieces of the text; return the bits for each character."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(seed)
    history = []
    for _ in track(range(steps), f"training on {TRAIN_STEPS} steps", console=console):
        starts = torch.randint(len(text) - TRAIN_STEPS, (BATCH,), generator=order).tolist()
        piece = torch.stack([text[s : s + TRAIN_STEPS + 1] for s in starts], 1)
        loss = bits(model(piece[:-1])[0], piece[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


@torch.no_grad()
def agree(model: nn.Module, text: Tensor) -> Agreement:
    """Run a text [T + 1] all at once and step by step, and compare."""
    x, targets = text[:-1].unsqueeze(1), text[1:].unsqueeze(1)
    for length in FIRST_LENGTHS:
        model(x[:length])
    begin = time.perf_counter()
    logits, spikes = model(x)
    parallel = time.perf_counter() - begin
    stream = model.stream(x[: FIRST_LENGTHS[0]])
    begin = time.perf_counter()
    flips, difference = 0, 0.0
    for t in range(len(x)):
        logits_t, spikes_t = stream(x[t])
        flips += int((spikes_t != spikes[t]).sum())
        difference = max(difference, float((logits_t - logits[t]).abs().max()))
    serial = time.perf_counter() - begin
    cost = bits(logits, targets).item()
    return Agreement(len(x), flips, spikes.numel(), difference, cost, (parallel, serial))


def tabulate(result: Result) -> Table:
    """Lay out the result for the terminal."""
    table = Table(title="parallel form and stream")
    for column in ("", "steps", "bits", "spikes that differ", "logits", "parallel", "stream"):
        table.add_column(column, justify="right")
    for dtype, found in result.agreement.items():
        table.add_row(
            str(dtype).removeprefix("torch."),
            f"{found.length}",
            f"{found.bits:.3f}",
            f"{found.flips} of {found.spikes}",
            f"within {found.difference:.1e}",
            f"{found.seconds[0]:.2f} s",
            f"{found.seconds[1]:.2f} s",
        )
    return table


def main(argv: Sequence[str] | None = None) -> Result:
    """Train, run long sequences both ways, and report."""
    parser = argparse.ArgumentParser(description="A language model of dynamic-decay neurons.")
    parser.add_argument("--steps", type=int, default=150, help="steps of the optimiser")
    parser.add_argument("--length", type=int, default=30_000, help="steps of the evaluation")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    settings = parser.parse_args(argv)
    console = Console()
    torch.manual_seed(settings.seed)
    text, held_out = read_text(2_000_000)
    model = snncc.compile(LanguageModel())
    for length in FIRST_LENGTHS:
        model(text[: length * BATCH].reshape(length, BATCH))
    history = train(model, text, settings.steps, settings.seed, console)
    model.eval()
    agreement = {}
    for dtype in TOLERANCE:
        model.to(dtype)
        agreement[dtype] = agree(model, held_out[: settings.length + 1])
    result = Result(history[0], history[-1], agreement)
    console.print(f"{settings.steps} steps of training on {BATCH} x {TRAIN_STEPS} characters:")
    console.print(
        f"{result.bits_before:.2f} bits a character before, {result.bits_after:.2f} after"
    )
    console.print(tabulate(result))
    return result


if __name__ == "__main__":
    main()
