"""Read handwritten digits as a sequence: 8 rows of 8 pixels, and 64 single pixels.

The same network is trained with LIF neurons, with their reset solved by three soft sweeps, with
dynamic decays in their place, and with PSN neurons; accuracy, firing rate and time are printed side
by side.

Run it with ``python examples/sequential_digits.py [--epochs N] [--seed S] [--widths 8 1]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from side_by_side import Batch, Row, Task, compare, parser_of
from sklearn.datasets import load_digits
from torch import Tensor

DIGITS = 10
BATCH = 64
PIXELS = 64
# For each number of pixels at a step, the decay: more steps need a longer memory.
DECAYS = {8: 0.8, 1: 0.95}


def load(width: int) -> Task:
    """Return the task of reading ``width`` pixels at a step.

    A fifth of the images, chosen by a fixed seed, is the test set.
    """
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 16, dtype=torch.float32)
    x = pixels.reshape(-1, PIXELS // width, width).transpose(0, 1).contiguous()
    y = torch.tensor(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[len(y) // 5 :], order[: len(y) // 5]

    def batches(chosen: Tensor) -> Iterator[Batch]:
        for part in chosen.split(BATCH):
            yield x[:, part], torch.ones(len(x), len(part)), y[part]

    def shuffled(generator: torch.Generator) -> Iterator[Batch]:
        return batches(train[torch.randperm(len(train), generator=generator)])

    name = "digits, pixel by pixel" if width == 1 else "digits, row by row"
    steps, decay = PIXELS // width, DECAYS[width]
    return Task(name, width, steps, DIGITS, decay, shuffled, lambda: batches(test))


def main(argv: Sequence[str] | None = None) -> dict[int, list[Row]]:
    """Train all neurons on rows and on pixels, and report."""
    parser = parser_of("Digits as sequences, four kinds of neurons.", epochs=15)
    parser.add_argument("--widths", type=int, nargs="+", choices=DECAYS, default=[*DECAYS])
    settings = parser.parse_args(argv)
    return {
        width: compare(load(width), settings.epochs, settings.seed) for width in settings.widths
    }


if __name__ == "__main__":
    main()
