"""Setups that others have published, with both sides run here: D1 to D6."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.device import networks, neurons
from benchmarks.device.clock import Clock, Record


def published(clock: Clock) -> Iterator[Record]:
    """Yield the times of each setup; inputs are random."""
    yield from _linear(clock)
    yield from _sweep(clock)
    clock.require(8.0)
    sizes = (3, 2, 3, 8, 8) if clock.tiny else (16, 64, 3, 64, 64)
    case = f"D3: two convolutions, {list(sizes)}"
    width = 1 if clock.tiny else 64
    small: networks.Network = partial(networks.SmallConvolutional, width=width)
    yield from networks.compare(clock, case, small, torch.rand(sizes))
    yield from _flexsn(clock)
    clock.require(20.0)
    sizes = (3, 2, 3, 16, 16) if clock.tiny else (4, 112, 3, 224, 224)
    resnet: networks.Network = partial(networks.SEWResNet18, width=width)
    case = f"D5: SEW-ResNet-18, {list(sizes)}, bfloat16"
    yield from networks.compare(clock, case, resnet, torch.rand(sizes), half=True)
    clock.require(8.0)
    sizes = (3, 2, 2, 16, 16) if clock.tiny else (10, 8, 2, 48, 48)
    vgg: networks.Network = partial(networks.VGG, width=width)
    case = f"D6: VGG for CIFAR10-DVS, {list(sizes)}"
    yield from networks.compare(clock, case, vgg, torch.rand(sizes))


def _linear(clock: Clock) -> Iterator[Record]:
    """D1, open-neuromorphic/snn-library-benchmarks: a linear layer with its neurons."""
    for width in (32,) if clock.tiny else (4096, 16384):
        clock.require(6.0)
        steps, batch = (6, 2) if clock.tiny else (500, 16)
        make: networks.Network = partial(networks.LinearNeurons, neurons=width)
        x = (torch.rand(steps, batch, width) < 0.1).float()
        case = f"D1: linear layer and LIF, {width} neurons, T={steps}, B={batch}"
        yield from networks.compare(clock, case, make, x)


def _sweep(clock: Clock) -> Iterator[Record]:
    """D2, the documentation of SpikingJelly's Triton backend: LIF in float16, 64 x 65536."""
    for steps in clock.some((4, 16, 32)):
        clock.require(5.0)
        x = neurons.make_input(clock, steps, 64 * 65536, torch.float16)
        yield from neurons.against_peers(clock, "D2: lif, float16", x, neurons.peers("lif"))


def _flexsn(clock: Clock) -> Iterator[Record]:
    """D4, SpikingJelly's benchmark of FlexSN: 64 x 50176 neurons, 32 steps."""
    clock.require(8.0)
    x = neurons.make_input(clock, 32, 64 * 50176)
    yield from neurons.against_peers(clock, "D4: two states", x, neurons.custom_peers())
