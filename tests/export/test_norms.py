"""Exported networks have no norms: their weights are folded, in both formats."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import snncc
from snncc.nn import LI, LIF


class Normed(nn.Module):
    """A convolution for all steps at once, then a layer at each step, both with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm1, self.first = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), LIF(0.75)
        self.layer, self.norm2, self.last = nn.Linear(16, 5), nn.BatchNorm1d(5), LI(0.75)

    def forward(self, x):
        y = self.norm1(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        s = self.first(y).flatten(2)
        return self.last(torch.stack([self.norm2(self.layer(s_t)) for s_t in s]))


def networks():
    """Return a network with norms, and the same folded by torch."""
    torch.manual_seed(0)
    model = Normed().eval()
    for norm in (model.norm1, model.norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 2.0)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    folded = Normed().eval()
    folded.conv = fuse_conv_bn_eval(model.conv, model.norm1)
    folded.layer = fuse_linear_bn_eval(model.layer, model.norm2)
    folded.norm1 = folded.norm2 = nn.Identity()
    return model, folded


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Return for each format the bundles of both networks."""
    x = torch.randn(6, 2, 2, 4, 4)
    folder = tmp_path_factory.mktemp("norms")
    return {
        format: [
            snncc.export(
                snncc.compile(model), folder / f"{format}{i}", format=format, example_inputs=(x,)
            )
            for i, model in enumerate(networks())
        ]
        for format in ("c", "onnx")
    }


@pytest.mark.parametrize("format", ["c", "onnx"])
def test_bundles_of_norms_are_right(bundles, format):
    """The test vector is what the network with norms gives."""
    report = snncc.verify_bundle(bundles[format][0].folder)

    assert report.ok, report


def test_library_has_no_norm(bundles):
    """It has the same operations as the library of the network that torch folds."""
    sources = [(each.folder / "network.c").read_text() for each in bundles["c"]]
    ours, theirs = ([line.split("(")[0] for line in s.splitlines()] for s in sources)

    assert theirs == ours


@pytest.mark.parametrize("file", ["network.onnx", "network_step.onnx"])
def test_onnx_models_have_no_norm(bundles, file):
    """They have the same operators as those of the network that torch folds."""
    ours, theirs = (
        [node.op_type for node in onnx.load(each.folder / file).graph.node]
        for each in bundles["onnx"]
    )

    assert theirs == ours
