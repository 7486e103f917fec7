"""Put a trained speech network into C, in floats and in eight bits, and recognise with that.

The network of ``speech.py`` is trained, exported twice, and each library is linked to
``recognise.c``, which is all the code that a device would need besides. Both programs get every
recording of the test set; their answers are compared with PyTorch's.

Run it with ``python examples/deploy_speech.py [--epochs N] [--seed S] [--out DIR]``; it needs a C
compiler.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from comparison import Run, Settings, Task, parse, start_run, train
from rich.console import Console
from rich.table import Table
from speech import Speech, SpeechNet
from torch import Tensor, nn

import snncc

PROGRAM = Path(__file__).with_name("recognise.c")
CALIBRATION = 60  # recordings of the training set that decide the scales of whole numbers


class OneRecording(nn.Module):
    """The network on recordings that need no padding, hence no mask."""

    def __init__(self, net: SpeechNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, speakers] of ``x`` [T, B, channels]."""
        return self.net(x, torch.ones(x.shape[0], x.shape[1]))


@dataclass(frozen=True)
class Deployed:
    """What a library makes of the test set, and its size in bytes."""

    label: str
    accuracy: float
    same_answers: int
    weights: int
    memory: int
    code: int


def main(argv: Sequence[str] | None = None) -> list[Deployed]:
    """Train, export, recognise and report; the first row is PyTorch."""
    settings = parse("A speech network in C, in floats and in eight bits.", 30, argv)
    data = Speech()
    model = OneRecording(trained(data, settings)).eval()
    sequences = [x.unsqueeze(1) for x in data.test]
    with torch.no_grad():
        answers = torch.cat([model(x).argmax(-1) for x in sequences])
    correct = float((answers == data.test_labels).float().mean())
    rows = [Deployed("PyTorch", correct, len(answers), 0, 0, 0)]
    examples = [(x.unsqueeze(1),) for x in data.train[:: len(data.train) // CALIBRATION]]
    fast = snncc.compile(model)
    for label, arithmetic in {
        "C, float": "float",
        "C, int8": snncc.Quantization("int8", examples[1:]),
    }.items():
        folder = settings.out / label.partition(", ")[2]
        bundle = snncc.export(
            fast, folder, example_inputs=examples[0], name="net", arithmetic=arithmetic
        )
        rows.append(deployed(label, bundle, sequences, answers, data.test_labels))
    Console().print(tabulate(rows, len(answers)))
    return rows


def trained(data: Speech, settings: Settings) -> SpeechNet:
    """Return the network after training, compiled while it trains."""
    task = Task("speech", SpeechNet, data.train_batches, data.test_batches, learning_rate=2e-3)
    run: Run = start_run("compiled", task, settings.seed, compiled=True)
    train(task, (run,), settings, Console())
    model: SpeechNet = run.model.original
    return model


def deployed(
    label: str, bundle: snncc.Bundle, sequences: list[Tensor], answers: Tensor, labels: Tensor
) -> Deployed:
    """Build a program with a library, give it all recordings and compare its answers."""
    program = bundle.folder.parent / f"recognise-{bundle.folder.name}"
    files = [PROGRAM, bundle.folder / "net.c", bundle.folder / "net_weights.c"]
    command = ["cc", "-std=c11", "-O2", "-ffp-contract=off"]
    command += [f"-I{bundle.folder}", *map(str, files), "-o", str(program), "-lm"]
    subprocess.run(command, check=True)
    recordings = b"".join(struct.pack("<I", len(x)) + x.numpy().tobytes() for x in sequences)
    printed = subprocess.run([str(program)], input=recordings, capture_output=True, check=True)
    theirs = torch.tensor([int(line) for line in printed.stdout.split()])
    facts = bundle.manifest
    return Deployed(
        label=label,
        accuracy=float((theirs == labels).float().mean()),
        same_answers=int((theirs == answers).sum()),
        weights=facts["weight_bytes"],
        memory=facts["state_bytes"] + facts["work_bytes"],
        code=facts["code_bytes"] or 0,
    )


def tabulate(rows: list[Deployed], count: int) -> Table:
    """Return the table of the report."""
    table = Table(title=f"{count} recordings")
    for column in ("", "accuracy", "answers of PyTorch", "weights", "memory", "code"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        sizes = (f"{n:,} B" if n else "" for n in (row.weights, row.memory, row.code))
        table.add_row(row.label, f"{row.accuracy:.2%}", f"{row.same_answers}", *sizes)
    return table


if __name__ == "__main__":
    main()
