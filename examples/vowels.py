"""Recognise nine speakers from two Japanese vowels with four kinds of neurons, side by side.

The recordings have 7 to 29 steps of 12 values.  All are padded to 29 steps, because a PSN has a
weight for each pair of steps; a mask keeps the padding out of the readout and of the firing rate.
The other neurons are causal: with the mask their results are those of each recording alone.

Run it with ``python examples/vowels.py [--epochs N] [--seed S]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from aeon.datasets import load_japanese_vowels
from side_by_side import Batch, Row, Task, compare, parser_of
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CHANNELS = 12
SPEAKERS = 9
STEPS = 29
BATCH = 30


def load() -> Task:
    """Return the task; values are scaled by the statistics of the training set."""
    train, train_labels = read("train")
    test, test_labels = read("test")
    steps = torch.cat(train)
    mean, deviation = steps.mean(0), steps.std(0)

    def batches(sequences: list[Tensor], labels: Tensor, order: Tensor) -> Iterator[Batch]:
        for part in order.split(BATCH):
            scaled = [(sequences[i] - mean) / deviation for i in part.tolist()]
            # A sequence of the full length among them decides the length of the batch.
            whole = pad_sequence([*scaled, torch.zeros(STEPS, CHANNELS)])[:, :-1]
            mask = pad_sequence([torch.ones(len(x)) for x in (*scaled, range(STEPS))])[:, :-1]
            yield whole, mask, labels[part]

    def shuffled(generator: torch.Generator) -> Iterator[Batch]:
        return batches(train, train_labels, torch.randperm(len(train), generator=generator))

    def in_order() -> Iterator[Batch]:
        return batches(test, test_labels, torch.arange(len(test)))

    return Task("vowels", CHANNELS, STEPS, SPEAKERS, 0.8, shuffled, in_order)


def read(split: str) -> tuple[list[Tensor], Tensor]:
    """Return the recordings [T, channels] of a split, and their speakers."""
    recordings, speakers = load_japanese_vowels(split=split)
    sequences = [torch.tensor(x.T, dtype=torch.float32) for x in recordings]
    return sequences, torch.tensor([int(speaker) - 1 for speaker in speakers])


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Train all neurons and report."""
    settings = parser_of("Nine speakers, four kinds of neurons.", epochs=20).parse_args(argv)
    return compare(load(), settings.epochs, settings.seed)


if __name__ == "__main__":
    main()
