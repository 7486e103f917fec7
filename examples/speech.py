"""Recognise nine speakers from two Japanese vowels with three layers of spiking neurons.

The network is written the way most people first write one: a single loop over time that walks
through all layers, with a surrogate gradient of its own. ``snncc.compile`` takes it as it is.

The recordings have 7 to 29 steps. A batch is padded to its own longest sequence, so the number of
steps changes from batch to batch, and a mask keeps the padding out of the readout. The network is
causal, so what follows the end of a sequence cannot change what came before: with the mask the
result is that of each sequence alone. Batches of one exact length would need no mask but would hold
a dozen of the 270 sequences on average, and fewer at the rare lengths.

Run it with ``python examples/speech.py [--epochs N] [--seed S] [--out DIR]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from aeon.datasets import load_japanese_vowels
from comparison import Batch, Result, Task, compare, parse
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

CHANNELS = 12
SPEAKERS = 9
BATCH = 30


class Spike(torch.autograd.Function):
    """Fire at or above zero; pass the gradient of a fast sigmoid."""

    @staticmethod
    def forward(ctx, x):  # noqa: ANN001, ANN205, D102
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205, D102
        (x,) = ctx.saved_tensors
        return grad / (1 + 5 * x.abs()) ** 2


spike = Spike.apply


class SpeechNet(nn.Module):
    """Three hidden layers of leaky integrate-and-fire neurons and a linear readout."""

    def __init__(self, hidden: int = 128, decay: float = 0.8, v_threshold: float = 1.0) -> None:
        super().__init__()
        self.layer1 = nn.Linear(CHANNELS, hidden)
        self.layer2 = nn.Linear(hidden, hidden)
        self.layer3 = nn.Linear(hidden, hidden)
        self.readout = nn.Linear(hidden, SPEAKERS)
        self.decay = decay
        self.v_threshold = v_threshold

    def neuron(self, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One step of a layer: charge, fire, reset to zero."""
        h = self.decay * v + x
        s = spike(h - self.v_threshold)
        return s, h * (1 - s)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logits [B, speakers] of ``x`` [T, B, channels]; ``mask`` [T, B] is 1 inside."""
        T, B, _ = x.shape
        hidden = self.layer1.out_features
        v1 = torch.zeros(B, hidden)
        v2 = torch.zeros(B, hidden)
        v3 = torch.zeros(B, hidden)
        total = torch.zeros(B, SPEAKERS)
        for t in range(T):
            s1, v1 = self.neuron(v1, self.layer1(x[t]))
            s2, v2 = self.neuron(v2, self.layer2(s1))
            s3, v3 = self.neuron(v3, self.layer3(s2))
            total = total + self.readout(s3) * mask[t].unsqueeze(1)
        return total / mask.sum(0).unsqueeze(1)


@torch.no_grad()
def spikes_of(model: SpeechNet, x: Tensor) -> dict[str, Tensor]:
    """Return the spikes [T, N] of each hidden layer for one sequence ``x`` [T, channels]."""
    layers = (model.layer1, model.layer2, model.layer3)
    v = [torch.zeros(1, layer.out_features) for layer in layers]
    record: list[list[Tensor]] = [[] for _ in layers]
    for x_t in x:
        s = x_t.unsqueeze(0)
        for number, layer in enumerate(layers):
            s, v[number] = model.neuron(v[number], layer(s))
            record[number].append(s[0])
    return {f"layer {number + 1}": torch.stack(s) for number, s in enumerate(record)}


class Speech:
    """The recordings, each a tensor [T, channels] scaled by the statistics of the training set."""

    def __init__(self) -> None:
        self.train, self.train_labels = self._load("train")
        self.test, self.test_labels = self._load("test")
        steps = torch.cat(self.train)
        mean, deviation = steps.mean(0), steps.std(0)
        self.train = [(x - mean) / deviation for x in self.train]
        self.test = [(x - mean) / deviation for x in self.test]

    @staticmethod
    def _load(split: str) -> tuple[list[Tensor], Tensor]:
        recordings, speakers = load_japanese_vowels(split=split)
        sequences = [torch.tensor(x.T, dtype=torch.float32) for x in recordings]
        return sequences, torch.tensor([int(speaker) - 1 for speaker in speakers])

    def train_batches(self, order: torch.Generator) -> Iterator[Batch]:
        """Yield the training set once, in random order."""
        yield from pad_batches(
            self.train, self.train_labels, torch.randperm(len(self.train), generator=order)
        )

    def test_batches(self) -> Iterator[Batch]:
        """Yield the test set once, in order."""
        yield from pad_batches(self.test, self.test_labels, torch.arange(len(self.test)))


def pad_batches(sequences: list[Tensor], labels: Tensor, order: Tensor) -> Iterator[Batch]:
    """Yield batches ``((x [T, B, channels], mask [T, B]), labels [B])``, padded with zeros."""
    for chosen in order.split(BATCH):
        chunk = [sequences[i] for i in chosen.tolist()]
        x = pad_sequence(chunk)
        mask = pad_sequence([torch.ones(len(sequence)) for sequence in chunk])
        yield (x, mask), labels[chosen]


def main(argv: Sequence[str] | None = None) -> Result:
    """Train both ways and report."""
    settings = parse("Nine speakers, three spiking layers, one loop over time.", 30, argv)
    data = Speech()
    task = Task("speech", SpeechNet, data.train_batches, data.test_batches, learning_rate=2e-3)
    return compare(task, settings, lambda model: spikes_of(model, data.test[0]))


if __name__ == "__main__":
    main()
