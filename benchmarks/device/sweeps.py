"""The part of the GPU benchmark that is about sweeps: long sequences, few neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import snncc
from benchmarks.device.clock import Case, Clock, Record, Run, with_ratios
from snncc.nn import LIF, Sigmoid

# T and neurons.
CASES = ((512, 256), (512, 4096), (4096, 256), (4096, 4096))
DECAY = 0.5
FORMS: dict[str, dict[str, object]] = {
    "snncc": {"mode": "fpt"},
    "snncc, 3 soft sweeps": {"mode": "fpt", "sweeps": 3},
    "snncc, fused time": {},
}


def sweeps(clock: Clock) -> Iterator[Case]:
    """Yield training steps of one layer, step by step in PyTorch and compiled."""
    for T, neurons in clock.some(CASES):
        name = f"T={T}, {neurons} neurons"
        yield Case(name, 2.0 if T <= 512 else 8.0, partial(_compare, sizes=(T, neurons)))


def _compare(clock: Clock, sizes: tuple[int, int]) -> Iterator[Record]:
    sizes = (20, 8) if clock.tiny else sizes
    neuron = LIF(DECAY, v_reset=None, surrogate=Sigmoid(4.0))
    x = torch.randn(sizes, device=clock.device).mul_(0.5).add_(0.4).requires_grad_()
    g = torch.randn_like(x)
    layers: dict[str, Callable[[Tensor], Tensor]] = {
        name: snncc.compile(neuron, target="triton", **options) for name, options in FORMS.items()
    }
    runs = {name: _step(layer, x, g) for name, layer in {"serial": neuron, **layers}.items()}
    differing = int((layers["snncc"](x) != neuron(x)).sum())
    for record in with_ratios(clock.measure(runs)):
        own = {"spikes_differ": differing} if record["variant"] == "snncc" else {}
        yield record | own


def _step(layer: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Run:
    return lambda: torch.autograd.grad(layer(x), x, g)
