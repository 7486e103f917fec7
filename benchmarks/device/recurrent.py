"""The part of the GPU benchmark that is about recurrent loops, in and outside of CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import snncc
from benchmarks.device.clock import Case, Clock, Record, Run, in_graphs, with_ratios
from snncc.nn import ATan

# T, batch and neurons of a layer.
LAYERS = ((100, 64, 128), (100, 256, 512), (250, 64, 1024))


class Layer(nn.Module):
    """Neurons that read their own spikes of the step before through a linear layer."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.back = nn.Linear(neurons, neurons)
        self.fire = ATan()

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of ``x`` [T, B, C]."""
        v = s = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = 0.9 * v + x[t] + self.back(s)
            s = self.fire(v - 1.0)
            v = v * (1.0 - s)
            out.append(s)
        return torch.stack(out)


def recurrent(clock: Clock) -> Iterator[Case]:
    """Yield training steps of recurrent layers, serial and compiled, in graphs or not."""
    for sizes in clock.some(LAYERS):
        name = "T={}, batch {}, {} neurons".format(*sizes)
        yield Case(name, 3.0, partial(_compare, sizes=sizes), graphs=True)


def _compare(clock: Clock, sizes: tuple[int, int, int]) -> Iterator[Record]:
    sizes = (3, 2, 8) if clock.tiny else sizes
    model = Layer(sizes[-1]).to(clock.device)
    x = torch.randn(sizes, device=clock.device, requires_grad=True)
    g = torch.randn_like(x)
    layers = {
        "serial": model,
        "snncc": snncc.compile(model, target="triton"),
        "snncc, CUDA C++": snncc.compile(model, target="cuda"),
    }
    if clock.tiny:  # CUDA C++ has no interpreter
        del layers["snncc, CUDA C++"]
    runs = {name: _step(layer, x, g) for name, layer in layers.items()}
    if clock.graphs:
        yield from in_graphs(clock, runs)
        return
    differing = int((layers["snncc"](x) != model(x)).sum())
    for record in with_ratios(clock.measure(runs)):
        own = {"spikes_differ": differing} if record["variant"] == "snncc" else {}
        yield record | own


def _step(layer: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Run:
    parameters = list(layer.parameters()) if isinstance(layer, nn.Module) else []

    def run() -> None:
        torch.autograd.grad(layer(x), [x, *parameters], g)

    return run
