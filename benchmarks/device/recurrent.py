"""The part of the GPU benchmark that is about recurrent loops, in and outside of CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import snncc
from benchmarks.device.clock import Clock, Record, Run
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


def recurrent(clock: Clock) -> Iterator[Record]:
    """Yield times of a training step of recurrent layers, serial and compiled, in graphs or not."""
    for steps, batch, neurons in clock.some(LAYERS):
        clock.require(8.0)
        sizes = (3, 2, 8) if clock.tiny else (steps, batch, neurons)
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
        if clock.device.type == "cuda":
            runs |= {f"{name}, CUDA graph": _captured(run) for name, run in runs.items()}
        spikes = layers["snncc"](x)
        case = f"T={sizes[0]}, batch {sizes[1]}, {sizes[2]} neurons"
        times = clock.measure(runs)
        least = min(r["median_ms"] for name, r in times.items() if name.startswith("snncc"))
        for name, record in times.items():
            row = {"case": case, "variant": name} | record
            if name == "snncc":
                row["spikes_differ"] = int((spikes != model(x)).sum())
            if not name.startswith("snncc"):
                row["this_over_snncc"] = record["median_ms"] / least
            yield row


def _step(layer: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Run:
    parameters = list(layer.parameters()) if isinstance(layer, nn.Module) else []

    def run() -> None:
        torch.autograd.grad(layer(x), [x, *parameters], g)

    return run


def _captured(run: Run) -> Run:
    """Return a run as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
