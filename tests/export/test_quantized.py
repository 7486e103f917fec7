"""Libraries in whole numbers compute what the reference computes, bit for bit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import snncc
from snncc.errors import OptionError, UnsupportedError
from tests.export.networks import NETWORKS, prepared
from tests.export.quantized_networks import QUANTIZED

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow", "-Wvla")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CC = shutil.which("cc") or "cc"
CASES = [(name, arithmetic) for name in QUANTIZED for arithmetic in ("int8", "int16")]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Export a network once in an arithmetic."""
    folder = tmp_path_factory.mktemp("bundles")
    made: dict[tuple[str, str], snncc.Bundle] = {}

    def get(name: str, arithmetic: str) -> snncc.Bundle:
        if (name, arithmetic) not in made:
            case = QUANTIZED[name]
            model, x = prepared(case)
            made[name, arithmetic] = snncc.export(
                snncc.compile(model, **case.options),
                folder / f"{name}-{arithmetic}",
                example_inputs=(x,),
                name=f"net_{name}",
                arithmetic=arithmetic,
            )
        return made[name, arithmetic]

    return get


@pytest.mark.parametrize(("name", "arithmetic"), CASES)
def test_library_is_the_reference(bundles, name, arithmetic):
    """It compiles without a warning, overflows nowhere, and no number differs."""
    widest = f"-DNET_{name.upper()}_VECTOR=64"
    flags = ("-O1", widest, *STRICT, *SANITIZED)
    report = snncc.verify_bundle(bundles(name, arithmetic).folder, flags)

    assert report.ok, report
    assert re.findall(r", (\d+) differ", report.text) == ["0"] * report.text.count("differ,")


@pytest.mark.parametrize("name", QUANTIZED)
def test_wide_numbers_are_the_model(bundles, name):
    """With weights of eighths 16 bits lose no spike, and outputs no more than roundings."""
    found = bundles(name, "int16").manifest["mismatch"]

    assert found["differing_spikes"] == 0
    for output, largest in found["output_largest"].items():
        assert found["output_difference"][output] <= 1e-5 * max(largest, 1.0)


def test_numbers_that_fit_are_exact(bundles):
    """Where a decay of a half needs no more bits than there are, 8 bits are exact as well."""
    found = bundles("recurrent", "int8").manifest["mismatch"]

    assert (found["spikes"], found["differing_spikes"]) == (162, 0)
    assert found["output_difference"] == {"y": 0.0}


class Decay(nn.Module):
    """A potential that starts at one and decays."""

    def forward(self, x):
        v = torch.zeros(x.shape[1:])
        out = []
        for t in range(x.shape[0]):
            v = 0.8125 * v + x[t]
            out.append(v)
        return torch.stack(out)


def test_decay_is_a_multiplier_and_a_shift(tmp_path):
    """The semantics by hand: 0.8125 is 13 / 16, products are rounded to the nearest, halves up."""
    x = torch.zeros(6, 1, 1)
    x[0] = 1.0
    bundle = snncc.export(
        snncc.compile(Decay()), tmp_path / "b", example_inputs=(x,), name="net", arithmetic="int8"
    )
    source = (bundle.folder / "net.c").read_text()
    numbers = bytes((bundle.folder / "test_vector.bin").read_bytes())[4 + 12 :]
    got = [int.from_bytes(numbers[i : i + 2], "little", signed=True) for i in range(0, 12, 2)]
    fraction = bundle.manifest["fractions"]["y"]
    expected, v = [], 0
    for t in range(6):
        v = (v * 13 + 8 >> 4) + (1 << fraction if t == 0 else 0)
        expected.append(v)

    assert re.search(r"right32\(v\w* \* 13, 4\)", source), source
    assert fraction == 13
    assert expected == got


class Saturating(nn.Module):
    """A sum without a decay."""

    def forward(self, x):
        v = torch.zeros(x.shape[1:])
        for t in range(x.shape[0]):
            v = v + x[t] * 0.75
        return v


def test_states_saturate(tmp_path):
    """What exceeds the examples by far is limited to the range of a state, on both sides."""
    x = torch.full((10, 1, 2), 0.25)
    fast = snncc.compile(Saturating())
    bundle = snncc.export(fast, tmp_path / "b", example_inputs=(x,), name="net", arithmetic="int8")
    (tmp_path / "main.c").write_text(
        """
#include "net.h"
int main(void)
{
  static struct net net;
  int16_t x[2] = {32767, -32768}, y[2] = {0, 0};
  net_init(&net, net_weights);
  for (int i = 0; i < 100; i++) {
    net_step(&net, x, y);
  }
  return y[0] == 32767 && y[1] == -32768 ? 0 : 1;
}
"""
    )
    sources = [str(bundle.folder / n) for n in ("net.c", "net_weights.c")]
    command = [CC, "-std=c11", *SANITIZED, f"-I{bundle.folder}", "main.c", *sources, "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)

    assert subprocess.run([str(tmp_path / "main")]).returncode == 0


def test_examples_and_labels_are_measured(tmp_path):
    """More examples decide the scales; answers are compared with the model's and the labels."""
    model, x = prepared(NETWORKS["dense"])
    model = model.eval()
    more = [(torch.rand(n, 2, 150) * 4,) for n in (5, 12)]
    labels = [model(e).sum(0).argmax(-1) for e in (x, *(a for (a,) in more))]
    labels[0] = (labels[0] + 1) % 5
    one, three = (
        snncc.export(
            snncc.compile(model),
            tmp_path / "b",
            example_inputs=(x,),
            arithmetic=choice,
        )
        for choice in ("int16", snncc.Quantization("int16", more, labels))
    )
    found = three.manifest["mismatch"]

    assert three.manifest["fractions"]["x"] == one.manifest["fractions"]["x"] - 1
    assert (found["examples"], found["answers"], found["same_answers"]) == (3, 6, 6)
    assert (found["accuracy"], found["accuracy_quantized"]) == (4 / 6, 4 / 6)
    assert snncc.verify_bundle(three.folder).ok


@pytest.mark.parametrize("name", ["attending", "gated"])
def test_other_operators_are_refused(tmp_path, name):
    """What has no form in whole numbers is refused with the line, and nothing is written."""
    case = NETWORKS[name]
    model, x = prepared(case)

    with pytest.raises(UnsupportedError, match="whole numbers") as caught:
        snncc.export(
            snncc.compile(model, **case.options),
            tmp_path / "b",
            example_inputs=(x,),
            arithmetic="int8",
        )
    assert caught.value.code == "unsupported.quantized"
    assert caught.value.location is not None
    assert not (tmp_path / "b").exists()


class Exponential(nn.Module):
    """A charge that is an exponential of the potential."""

    def forward(self, x):
        v = torch.zeros(x.shape[1:])
        for t in range(x.shape[0]):
            v = torch.exp(v * 0.5) - 1.0 + x[t]
            s = (v > 1.0).float()
            v = v * (1 - s)
        return v


def test_transcendental_functions_are_refused(tmp_path):
    """A function that no whole number has is named."""
    with pytest.raises(UnsupportedError, match="'exp'"):
        snncc.export(
            snncc.compile(Exponential()),
            tmp_path / "b",
            example_inputs=(torch.rand(4, 1, 3),),
            arithmetic="int8",
        )


@pytest.mark.parametrize(
    ("arithmetic", "format", "text"),
    [
        ("int4", "c", "no value 'int4'"),
        ("int8", "onnx", "no 'int8' in the format 'onnx'"),
        ({"labels": [1, 2]}, "c", "2 labels for 1 examples"),
        ({"labels": [[1, 0, 1]]}, "c", "3 labels for the 2 answers"),
        ({"examples": [(torch.rand(3, 5, 6),)]}, "c", r"\(3, 5, 6\) beside \(2, 6\)"),
        ({"examples": [(torch.rand(3, 5, 6).double(),)]}, "c", "arguments of other types"),
        ({"examples": [(torch.rand(3, 5, 6), 2)]}, "c", "has other arguments"),
    ],
)
def test_wrong_choices_are_refused(tmp_path, arithmetic, format, text):
    """A choice that cannot be is refused before anything is written."""
    model, x = prepared(NETWORKS["static"])

    def export():
        given = arithmetic if isinstance(arithmetic, str) else snncc.Quantization(**arithmetic)
        snncc.export(fast, tmp_path / "b", example_inputs=(x,), format=format, arithmetic=given)

    fast = snncc.compile(model)
    with pytest.raises(OptionError, match=text) as caught:
        export()
    assert caught.value.code == "option.arithmetic"
    assert not (tmp_path / "b").exists()


def test_weights_of_another_network_are_refused(bundles, tmp_path):
    """Sums are proven for one set of weights; a file with others of the same size is refused."""
    bundle = bundles("recurrent", "int8")
    model, x = prepared(QUANTIZED["recurrent"])
    model.into.weight.data.neg_()
    other = snncc.export(
        snncc.compile(model, fallback="serial"),
        tmp_path / "b",
        example_inputs=(x,),
        name="net_recurrent",
        arithmetic="int8",
    )
    sources = [bundle.folder / n for n in ("net_recurrent.c", "net_recurrent_weights.c", "main.c")]
    command = [CC, "-std=c11", *map(str, sources), "-o", str(tmp_path / "main"), "-lm"]
    subprocess.run(command, check=True)
    vector = str(bundle.folder / "test_vector.bin")

    def run(weights: Path) -> int:
        return subprocess.run([str(tmp_path / "main"), vector, str(weights)]).returncode

    assert run(bundle.folder / "net_recurrent.weights") == 0
    assert run(other.folder / "net_recurrent.weights") == 2
