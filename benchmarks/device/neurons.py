"""Parts of the GPU benchmark that are about one layer: its bits, its bandwidth, its peers."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import snncc
from benchmarks.device import layers
from benchmarks.device.clock import (
    Case,
    Clock,
    Record,
    Run,
    in_graphs,
    reason,
    with_ratios,
)
from snncc import nn as neurons

# Bytes that no implementation can do without, for a neuron-step in float32: forward reads x and
# writes s, backward reads x and the cotangent and writes the gradient.
LEAST_BYTES = {"inference": 8, "forward": 8, "backward": 12}
LANES = 2**20
LENGTHS = (4, 8, 16, 32, 64, 128, 256, 512)


def make_input(clock: Clock, steps: int, lanes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random currents [T, B, C] for which a part of the neurons fires."""
    lanes = min(lanes, 2048) if clock.tiny else lanes
    steps = min(steps, 6) if clock.tiny else steps
    channels = layers.CHANNELS
    x = torch.rand(steps, lanes // channels, channels, device=clock.device) * 1.5
    return x.to(dtype).requires_grad_()


# Values

ZOO: dict[str, Callable[[], nn.Module]] = {
    "lif": layers.lif,
    "plif": layers.plif,
    "if": neurons.IF,
    "soft reset": lambda: neurons.LIF(v_reset=None, surrogate=neurons.Sigmoid()),
    "detached reset": lambda: neurons.LIF(detach_reset=True, surrogate=neurons.FastSigmoid()),
    "plif per channel": lambda: neurons.LIF(learnable=True, shape=(layers.CHANNELS,)),
    "integrator": lambda: neurons.LI(learnable=True, shape=(layers.CHANNELS,)),
    "current": lambda: neurons.CubaLIF(learnable=True, shape=(layers.CHANNELS,)),
    "adaptive": lambda: neurons.AdaptiveLIF(learnable=True),
    "two states": layers.TwoStates,
}


def values(clock: Clock) -> Iterator[Case]:
    """Yield for each neuron and type whether the device gives the bits of the serial code.

    The reference is the same Python, run eagerly on the same device and on the CPU.
    """
    for dtype in (torch.float32, torch.float64):
        for steps, lanes in ((37, 33 * 64), (5, 96)):
            for name in clock.some(ZOO):
                run = partial(_compare, name=name, sizes=(steps, lanes), dtype=dtype)
                yield Case(f"{name}, {str(dtype)[6:]}, T={steps}", 0.3, run)


def _compare(
    clock: Clock, name: str, sizes: tuple[int, int], dtype: torch.dtype
) -> Iterator[Record]:
    neuron, x = ZOO[name]().to(clock.device, dtype), make_input(clock, *sizes, dtype)
    fast = snncc.compile(neuron, target="triton")
    g = torch.randn_like(x)
    leaves = [x, *neuron.parameters()]
    spikes, serial, cpu = fast(x), neuron(x), _on_cpu(neuron, x)
    got = torch.autograd.grad(spikes, leaves, g)
    wanted = torch.autograd.grad(serial, leaves, g)
    again = torch.autograd.grad(fast(x), leaves, g)
    worst = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(got, wanted, strict=True)
    )
    yield {
        "variant": "snncc",
        "spikes_differ": int((spikes != serial).sum()),
        "differ_from_cpu": int((spikes.cpu() != cpu).sum()),
        "gradient_difference": worst,
        "deterministic": all(torch.equal(a, b) for a, b in zip(got, again, strict=True)),
    }


def _on_cpu(neuron: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():  # a copy: a module that moves gets other parameters
        spikes: Tensor = copy.deepcopy(neuron).to("cpu")(x.cpu())
    return spikes


# Bandwidth


def bandwidth(clock: Clock) -> Iterator[Case]:
    """Yield forward and backward against T, and a copy of the same input."""
    for name in ("lif", "two states"):
        for steps in clock.some(LENGTHS):
            case = f"{name}, T={steps}, {LANES} neurons"
            run = partial(_against_copy, name=name, steps=steps)
            yield Case(case, 0.7, run, large=steps >= 256)


def _against_copy(clock: Clock, name: str, steps: int) -> Iterator[Record]:
    neuron = layers.NEURONS[name]().to(clock.device)
    x = make_input(clock, steps, LANES)
    fast = snncc.compile(neuron, target="triton")
    g, leaves = torch.randn_like(x), [x, *neuron.parameters()]
    spikes, source, target = fast(x), x.detach(), torch.empty_like(x)
    times = clock.measure(
        {
            "copy": lambda: target.copy_(source),
            "inference": _without_gradient(fast, source),
            "forward": lambda: fast(x),
            "backward": lambda: torch.autograd.grad(spikes, leaves, g, retain_graph=True),
        }
    )
    rate = 2 * source.nbytes / times["copy"]["median_ms"]
    for variant, record in times.items():
        record = {"variant": variant} | record
        if variant == "copy":
            record["gigabytes_per_second"] = rate / 1e6
        else:
            least = LEAST_BYTES[variant] * x.numel()
            record["of_copy"] = least / rate / record["median_ms"]
        yield record


def _without_gradient(layer: layers.Layer, x: Tensor) -> Run:
    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


# Peers

# The first of them is what is measured if there is time for no more.
SIZES = ((16, 2**20), (4, 2**20), (64, 2**18), (128, 2**18))
# FlexSN's kernels are unrolled: one of 128 steps was not compiled when preparation was over.
CUSTOM_SIZES = ((16, 2**20), (4, 2**20), (32, 2**18))
GRAPHS_UNTIL = 16  # steps; the device takes so long for more that launches do not matter


def training(clock: Clock) -> Iterator[Case]:
    """Yield training steps of LIF and PLIF layers, SpikingJelly's in the same rounds."""
    for sizes in SIZES[: 1 if clock.tiny else None]:
        for name in ("lif", "plif"):
            for dtype in (torch.float32, torch.float16):
                yield against_peers(f"{name}, {str(dtype)[6:]}", sizes, peers(name), dtype)


def custom(clock: Clock) -> Iterator[Case]:
    """Yield training steps of a neuron with two states, FlexSN's in the same rounds."""
    for sizes in clock.some(CUSTOM_SIZES):
        yield against_peers("two states", sizes, custom_peers())


Makers = dict[str, Callable[[torch.device], layers.Layer]]


def custom_peers() -> Makers:
    """Return the variants of the neuron with two states."""
    return {
        "snncc": lambda d: snncc.compile(layers.TwoStates().to(d), target="triton"),
        "snncc, CUDA C++": lambda d: snncc.compile(layers.TwoStates().to(d), target="cuda"),
        "flexsn": layers.flexsn,
    }


def peers(name: str) -> Makers:
    """Return the variants of a neuron that SpikingJelly has by hand."""

    def jelly(device: torch.device) -> layers.Layer:
        return layers.spikingjelly(name, device)[0]

    def compiled(device: torch.device) -> layers.Layer:
        if device.type == "cpu":
            raise layers.Missing("torch.compile of its kernels needs a GPU")
        torch.compiler.reset()  # what it compiled before would make it compile for any size
        layer: layers.Layer = torch.compile(jelly(device))
        return layer

    return {
        "snncc": lambda d: snncc.compile(layers.NEURONS[name]().to(d), target="triton"),
        "snncc, CUDA C++": lambda d: snncc.compile(layers.NEURONS[name]().to(d), target="cuda"),
        "spikingjelly": jelly,
        "spikingjelly, torch.compile": compiled,
    }


def against_peers(
    what: str, sizes: tuple[int, int], makers: Makers, dtype: torch.dtype = torch.float32
) -> Case:
    """Return a training step of each variant as a case, and what each allocates."""
    name = "{}, T={}, {} neurons".format(what, *sizes)
    run = partial(_against_peers, sizes=sizes, makers=makers, dtype=dtype)
    return Case(name, 1.0, run, graphs=sizes[0] <= GRAPHS_UNTIL)


def _against_peers(
    clock: Clock, sizes: tuple[int, int], makers: Makers, dtype: torch.dtype
) -> Iterator[Record]:
    x = make_input(clock, *sizes, dtype)
    g = torch.randn_like(x)
    runs: dict[str, Run] = {}
    more: dict[str, Record] = {}
    for variant, make in makers.items():
        try:
            run = _training_step(make(clock.device), x, g)
            first = clock.once(run)
        except Exception as error:  # a peer that fails is left out, with what it said
            yield {"variant": variant, "skipped": reason(error)}
            continue
        runs[variant] = run
        more[variant] = {"prepared_call_ms": first * 1e3, "peak_mib": clock.memory(run)}
    if clock.graphs:
        yield from in_graphs(clock, runs)
        return
    for record in with_ratios(clock.measure(runs)):
        yield record | more[record["variant"]]


def _training_step(layer: layers.Layer, x: Tensor, g: Tensor) -> Run:
    leaves = [x]
    if isinstance(layer, nn.Module):
        leaves += list(layer.parameters())

    def run() -> None:
        torch.autograd.grad(layer(x), leaves, g)

    return run


# First call

LENGTHS_AND_BATCHES = (
    (16, 256), (17, 256), (20, 128), (24, 300), (32, 256), (33, 64), (48, 512), (64, 100),
    (100, 256), (128, 77),
)  # fmt: skip


def first_call(clock: Clock) -> Iterator[Case]:
    """Yield the calls of a new layer with a new length or batch each, from the first on.

    The caches on disk are empty at the start; a binary in Triton's is a compilation.  So few lanes
    that they do not fill the device are cut otherwise than many, by another kernel.
    """
    yield Case("calls of a new layer", 5.0, _first_calls)


def _first_calls(clock: Clock) -> Iterator[Record]:
    torch.zeros(1, device=clock.device).sum()
    neuron = layers.TwoStates(512 if not clock.tiny else 32).to(clock.device)
    fast = snncc.compile(neuron, target="triton")
    for number, (steps, batch) in enumerate(LENGTHS_AND_BATCHES):
        name = f"call {number + 1}: T={steps}, B={batch}"
        steps, batch = (3 + number % 4, 2 + number) if clock.tiny else (steps, batch)
        channels = neuron.decay.shape[0]
        x = torch.rand(steps, batch, channels, device=clock.device).requires_grad_()
        before = _binaries()
        seconds = clock.once(lambda x=x: fast(x).sum().backward())
        yield {
            "case": name,
            "variant": "snncc",
            "lanes": x[0].numel(),
            "first_call_ms": seconds * 1e3,
            "compiled": _binaries() - before,
        }


def _binaries() -> int:
    folder = os.environ.get("TRITON_CACHE_DIR")
    return len([*Path(folder).rglob("*.cubin")]) if folder else 0


# Host

SMALL = (4, 16, 64)  # T, batch, channels: the device takes a few microseconds


def host(clock: Clock) -> Iterator[Case]:
    """Yield small calls, whose time is what Python and the launches take."""
    for name, makers in {"lif": peers("lif"), "two states": custom_peers()}.items():
        chosen = {k: make for k, make in makers.items() if "torch.compile" not in k}
        chosen["eager"] = partial(_eager, name)
        for what in ("inference", "training"):
            run = partial(_small_calls, makers=chosen, training=what == "training")
            yield Case(f"{name}, {what}, {list(SMALL)}", 1.0, run)


def _eager(name: str, device: torch.device) -> layers.Layer:
    return layers.NEURONS[name]().to(device)


def _small_calls(clock: Clock, makers: Makers, training: bool) -> Iterator[Record]:
    x = torch.rand(SMALL, device=clock.device).requires_grad_()
    g = torch.randn_like(x)
    runs: dict[str, Run] = {}
    for variant, make in makers.items():
        try:
            layer = make(clock.device)
            run = _training_step(layer, x, g) if training else _without_gradient(layer, x)
            run()
        except Exception as error:
            yield {"variant": variant, "skipped": reason(error)}
            continue
        runs[variant] = run
    yield from with_ratios(clock.calls(runs))
