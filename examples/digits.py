"""Read handwritten digits row by row: eight time steps of eight pixels.

The network is written layer by layer: each neuron of ``snncc.nn`` loops over the whole sequence
before the next layer starts, and the decays of the hidden neurons are learnt, one per neuron.

Run it with ``python examples/digits.py [--epochs N] [--seed S] [--out DIR]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from comparison import Batch, Result, Task, compare, parse
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snncc.nn import LI, LIF, ATan

PIXELS = 8
DIGITS = 10
BATCH = 60


def make_neuron(hidden: int) -> LIF:
    """Return neurons that remember most of the image, each with a decay of its own."""
    return LIF(0.9, learnable=True, shape=(hidden,), v_threshold=0.25, surrogate=ATan(4.0))


class DigitNet(nn.Module):
    """Two spiking layers and a leaky integrator whose last potential is the logit."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.layer1 = nn.Linear(PIXELS, hidden)
        self.neuron1 = make_neuron(hidden)
        self.layer2 = nn.Linear(hidden, hidden)
        self.neuron2 = make_neuron(hidden)
        self.layer3 = nn.Linear(hidden, DIGITS)
        self.readout = LI(0.95)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, digits] of images ``x`` [T, B, pixels], a row per step."""
        s1 = self.neuron1(self.layer1(x))
        s2 = self.neuron2(self.layer2(s1))
        return self.readout(self.layer3(s2))[-1]


@torch.no_grad()
def spikes_of(model: DigitNet, image: Tensor) -> dict[str, Tensor]:
    """Return the spikes [T, N] of each hidden layer for one image [T, pixels]."""
    s1 = model.neuron1(model.layer1(image.unsqueeze(1)))
    s2 = model.neuron2(model.layer2(s1))
    return {"layer 1": s1[:, 0], "layer 2": s2[:, 0]}


class Digits:
    """The images as sequences [T, samples, pixels] with values in 0..1.

    A fifth of them, chosen by a fixed seed, is the test set.
    """

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        rows = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, PIXELS, PIXELS)
        x = rows.transpose(0, 1).contiguous()
        y = torch.tensor(labels)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        train, test = order[len(y) // 5 :], order[: len(y) // 5]
        self.train, self.train_labels = x[:, train], y[train]
        self.test, self.test_labels = x[:, test], y[test]

    def train_batches(self, order: torch.Generator) -> Iterator[Batch]:
        """Yield the training set once, in random order."""
        for chosen in torch.randperm(len(self.train_labels), generator=order).split(BATCH):
            yield (self.train[:, chosen],), self.train_labels[chosen]

    def test_batches(self) -> Iterator[Batch]:
        """Yield the test set as one batch."""
        yield (self.test,), self.test_labels


def main(argv: Sequence[str] | None = None) -> Result:
    """Train both ways and report."""
    settings = parse("Digits, a row per time step, two spiking layers.", 30, argv)
    data = Digits()
    task = Task("digits", DigitNet, data.train_batches, data.test_batches, learning_rate=5e-3)
    return compare(task, settings, lambda model: spikes_of(model, data.test[:, 0]))


if __name__ == "__main__":
    main()
