"""Graphs that other libraries write are read as the networks that they were."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import nir
import pytest
import torch
from torch import Tensor, nn

import snncc


def full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value)


def leaky(*shape: int, beta: float = 0.9, threshold: float = 0.4) -> nn.Module:
    """Return neurons of snnTorch with the one reset that their exporter writes."""
    snn = pytest.importorskip("snntorch")
    return snn.Leaky(
        full(beta, *shape),
        threshold=full(threshold, *shape),
        init_hidden=True,
        reset_mechanism="zero",
        reset_delay=False,
    )


def recurrent(**weights: Any) -> nn.Module:
    """Return recurrent neurons of snnTorch."""
    snn = pytest.importorskip("snntorch")
    made: nn.Module = snn.RLeaky(
        0.9,
        threshold=0.4,
        init_hidden=True,
        reset_mechanism="zero",
        reset_delay=False,
        **weights,
    )
    return made


def synaptic(n: int) -> nn.Module:
    """Return neurons of snnTorch with a current, each with constants of its own."""
    snn = pytest.importorskip("snntorch")
    return snn.Synaptic(
        torch.rand(n) / 2,
        torch.rand(n),
        threshold=torch.rand(n) + 0.5,
        init_hidden=True,
        reset_mechanism="zero",
        reset_delay=False,
    )


SNNTORCH: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layers": (
        lambda: nn.Sequential(nn.Linear(5, 8), leaky(8), nn.Linear(8, 4, bias=False), leaky(4)),
        (5,),
    ),
    "neurons first": (lambda: nn.Sequential(leaky(5), nn.Linear(5, 3), leaky(3)), (5,)),
    "currents": (
        lambda: nn.Sequential(nn.Linear(5, 8), synaptic(8)),
        (5,),
    ),
    "recurrent": (
        lambda: nn.Sequential(
            nn.Linear(5, 8), recurrent(linear_features=8), nn.Linear(8, 4), leaky(4)
        ),
        (5,),
    ),
    "one to one": (
        lambda: nn.Sequential(nn.Linear(5, 8), recurrent(V=torch.randn(8), all_to_all=False)),
        (5,),
    ),
    "images": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 3, 3, bias=False), leaky(3, 6, 6, threshold=0.2), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(27, 4), leaky(4, threshold=0.02)),
        ),
        (2, 8, 8),
    ),
}


@pytest.mark.parametrize("name", SNNTORCH)
def test_snntorch(name, tmp_path):
    """What snnTorch exports spikes as the model that it came from, through a file too."""
    exporter = pytest.importorskip("snntorch.export_nir")
    make, shape = SNNTORCH[name]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.rand(30, 3, *shape)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for parameter in model.parameters():
            parameter.mul_(2)
        graph = exporter.export_to_nir(model, x[0, :1], ignore_dims=[0])
        for module in model.modules():  # the exporter ran the model
            if hasattr(module, "reset_mem"):
                module.reset_mem()
        expected = torch.stack([model(x_t) for x_t in x])
    nir.write(tmp_path / "net.nir", graph)
    again = snncc.from_nir(tmp_path / "net.nir", dt=1e-4)

    assert torch.equal(again(x), expected)
    assert torch.equal(snncc.compile(snncc.from_nir(graph, dt=1e-4))(x), expected)
    assert 0.005 < expected.mean() < 0.98


def box(**values: Any) -> nn.Module:
    """Return neurons of Norse without a current."""
    norse = pytest.importorskip("norse.torch")
    tensors = {name: torch.as_tensor(value) for name, value in values.items()}
    made: nn.Module = norse.LIFBoxCell(norse.LIFBoxParameters(**tensors))
    return made


NORSE: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "one number a layer": (
        lambda: [
            *(nn.Linear(5, 8), box(tau_mem_inv=100.0, v_th=0.2)),
            *(nn.Linear(8, 4, bias=False), box(tau_mem_inv=200.0, v_th=0.05)),
        ],
        (5,),
    ),
    "neurons first": (lambda: [box(v_th=0.1), nn.Linear(5, 4)], (5,)),
    "one a neuron": (
        lambda: [
            nn.Linear(5, 8),
            box(
                tau_mem_inv=torch.rand(8) * 100 + 50, v_th=torch.rand(8) * 0.3, v_leak=full(0.0, 8)
            ),
            *(nn.Linear(8, 4), pytest.importorskip("norse.torch").LIBoxCell()),
        ],
        (5,),
    ),
    "images": (lambda: [nn.Conv2d(2, 3, 3), box(v_th=0.1)], (2, 8, 8)),
}


@pytest.mark.parametrize("name", NORSE)
def test_norse(name):
    """What Norse exports means the same; with a step of 1 its time constants are seconds."""
    norse = pytest.importorskip("norse.torch")
    make, shape = NORSE[name]
    torch.manual_seed(0)
    model = norse.SequentialState(*make()).eval()
    x = torch.rand(30, 3, *shape)
    state, outputs = None, []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in model.parameters():
            parameter.mul_(3)
        graph = norse.to_nir(model, x[0, :1], dt=1.0)
        for x_t in x:
            y, state = model(x_t, state)
            outputs.append(y)
    expected = torch.stack(outputs)
    again = snncc.compile(snncc.from_nir(graph, dt=1e-3))

    torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-6)  # spikes are 1 apart
    assert expected.abs().mean() > 0.02
