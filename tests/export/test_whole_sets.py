"""Trained networks as C programs give the answers of PyTorch on every sample of a test set."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.nn import HDLIF, ATan
from tests.export.toolchains import DEVICE

PROGRAM = DEVICE.parents[2] / "examples" / "recognise.c"
SPIKE = ATan()
T = 8


class Convolutional(nn.Module):
    """The same picture at each step; a norm that is folded into the convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.out = nn.Linear(128, 10)

    def forward(self, x):  # [T, B, 64]
        v, total = torch.zeros(x.shape[1], 8, 8, 8), torch.zeros(x.shape[1], 10)
        y = self.norm(self.conv(x.reshape(-1, 1, 8, 8))).unflatten(0, x.shape[:2])
        for t in range(x.shape[0]):
            h = 0.75 * v + y[t]
            s = SPIKE(h - 1.0)
            v = h - s
            total = total + self.out(nn.functional.avg_pool2d(s, 2).flatten(1))
        return total


class Recurrent(nn.Module):
    """A row of the picture at each step, and weights on the neurons' own spikes."""

    def __init__(self):
        super().__init__()
        self.into, self.back, self.out = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        v, s = torch.zeros(x.shape[1], 64), torch.zeros(x.shape[1], 64)
        y = torch.zeros(x.shape[1], 10)
        for t in range(x.shape[0]):
            h = 0.9 * v * (1 - s) + self.into(x[t]) + self.back(s)
            s = SPIKE(h - 1.0)
            v = h
            y = 0.95 * y + self.out(s)
        return y


class Layered(nn.Module):
    """A row at each step, and neurons of a given kind."""

    def __init__(self, neuron):
        super().__init__()
        self.into, self.neuron, self.out = nn.Linear(8, 64), neuron, nn.Linear(64, 10)

    def forward(self, x):
        return self.out(self.neuron(self.into(x))).sum(0)


def hd_lif():
    return Layered(HDLIF(T, 64, mem_bn=True))


def rows(pictures: Tensor) -> Tensor:
    return pictures.transpose(0, 1)


def whole(pictures: Tensor) -> Tensor:
    return pictures.flatten(1).expand(T, -1, -1)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pictures [N, 8, 8] and labels of a training and of a test set."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with it")
    pictures, labels = (torch.tensor(a) for a in datasets.load_digits(return_X_y=True))
    pictures = pictures.float().reshape(-1, 8, 8) / 16
    return pictures[:1400], labels[:1400], pictures[1400:], labels[1400:]


def train(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(3):
        for chosen in torch.randperm(len(labels)).split(100):
            loss = nn.functional.cross_entropy(model(x[:, chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def answers(bundle: snncc.Bundle, samples: list[Tensor], folder: Path) -> Tensor:
    """Build a program with a library, give it all samples, and return what it recognises."""
    files = [PROGRAM, bundle.folder / "net.c", bundle.folder / "net_weights.c"]
    flags = ["-std=c11", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    command = ["cc", *flags, f"-I{bundle.folder}", *map(str, files), "-o", str(folder / "main")]
    subprocess.run([*command, "-lm"], check=True)
    given = b"".join(struct.pack("<I", T) + x.contiguous().numpy().tobytes() for x in samples)
    ran = subprocess.run([str(folder / "main")], input=given, capture_output=True, check=True)
    return torch.tensor([int(line) for line in ran.stdout.split()])


@pytest.mark.parametrize(
    ("make", "arrange", "quantized"),
    [
        (Convolutional, whole, True),
        (Recurrent, rows, True),
        (hd_lif, rows, True),
    ],
)
def test_every_answer_is_that_of_pytorch(tmp_path, make, arrange, quantized):
    """In floats all but a sample whose potential rounds across a threshold; in 8 bits most."""
    pictures, labels, test, right = digits()
    torch.manual_seed(0)
    model = make()
    train(model, arrange(pictures), labels)
    model.eval()
    x = arrange(test)
    with torch.no_grad():
        expected = model(x).argmax(-1)
    samples = [x[:, i : i + 1] for i in range(x.shape[1])]
    fast = snncc.compile(model, **({"fallback": "serial"} if make is Recurrent else {}))
    eight = snncc.Quantization("int8", [(s,) for s in samples[1:20]])
    for choice, least in [("float", 0.99), (eight, 0.95)][: 1 + quantized]:
        bundle = snncc.export(
            fast, tmp_path / "b", example_inputs=(samples[0],), name="net", arithmetic=choice
        )
        same = float((answers(bundle, samples, tmp_path) == expected).float().mean())

        assert len(samples) == 397
        assert same >= least, (choice, same)
    assert float((expected == right).float().mean()) > 0.3
