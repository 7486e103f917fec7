"""Exports of models that take or return lists over time, or count their steps in Python."""

from __future__ import annotations

import subprocess

import pytest
import torch
from torch import nn

import snncc
from snncc.errors import UnsupportedError
from tests.export.networks import SPIKE


class Lists(nn.Module):
    """Takes pairs of a frame and a gain; gives lists, and a mean over the steps that it counted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, frames):
        v, total, count, spikes, seen = torch.zeros(1, 5), 0.0, 0, [], []
        for frame, gain in frames:
            v = 0.5 * v + self.norm(self.layer(frame)) * gain
            s = SPIKE(v - 0.25)
            v, total, count = v - s, total + s, count + 1
            spikes.append((s, v))
            seen.append(v)
        return {
            "spikes": tuple(spikes),
            "seen": seen,
            "mean": total / count,
            "rate": total * (1 / count),
        }


def frames(steps):
    """Return pairs of eighths."""
    torch.manual_seed(1)
    return [(torch.rand(1, 4).mul(8).round().div(8), torch.ones(1, 5)) for _ in range(steps)]


def exported(model, folder, steps, **options):
    fast = snncc.compile(model)
    return snncc.export(fast, folder, example_inputs=(frames(steps),), name="net", **options)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Lists().eval()
    for parameter in model.layer.parameters():
        parameter.data.mul_(16).round_().div_(8)
    return model


@pytest.mark.parametrize("options", [{"format": "onnx"}, {"arithmetic": "int8"}, {"format": "pt2"}])
def test_lists_over_time_are_sequences(model, tmp_path, options):
    """What has an item for each step comes step by step; the others come once."""
    if "arithmetic" in options:
        options = {"arithmetic": snncc.Quantization("int8", examples=[(frames(7),)])}

    bundle = exported(model, tmp_path / "net", 5, **options)

    assert snncc.verify_bundle(bundle.folder).ok


def test_a_library_counts_the_steps(model, tmp_path):
    """A library of an example of five steps gives what the model gives for eight."""
    five, eight = (exported(model, tmp_path / str(n), n) for n in (5, 8))
    assert five.manifest["every_step"] == [True, True, True, False, False]
    assert snncc.verify_bundle(five.folder).ok
    subprocess.run(["make", "-s", "main"], cwd=five.folder, check=True, capture_output=True)

    result = subprocess.run(
        [str(five.folder / "main"), str(eight.folder / "test_vector.bin")],
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stdout + result.stderr


def states(x):
    v, out = torch.zeros_like(x[0]), []
    for x_t in x:
        v = 0.5 * v + x_t
        v = v - SPIKE(v - 1.0)
        out.append(v)
    return out


@pytest.mark.parametrize(
    ("end", "reason", "remedy"),
    [
        (lambda out: torch.stack(out).sum(0).max(1), "asks where the extremes are", "format='pt2'"),
        (lambda out: torch.stack(out).argmax(0), "of torch.int64", "truth values"),
        (lambda out: torch.stack(out).cumsum(0), "'cumsum' has no form", "format='pt2'"),
        (lambda out: sum(out) / (len(out) - 1), "'1 \\* steps -1'", "other operators"),
        (lambda out: out[::-1], "by their numbers", "Return all steps"),
    ],
)
def test_what_no_library_has_is_refused_at_its_line(tmp_path, end, reason, remedy):
    """The error shows the line, and says why and what to do."""
    fast = snncc.compile(lambda x: end(states(x)))

    with pytest.raises(UnsupportedError, match=reason) as refusal:
        snncc.export(fast, tmp_path / "net", example_inputs=(torch.rand(6, 2, 3),))

    assert refusal.value.location.file == __file__
    assert any(remedy in hint for hint in refusal.value.hints)
