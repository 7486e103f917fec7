"""Setups that others have published, with both sides run here: D1 to D6."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.device import networks, neurons
from benchmarks.device.clock import Case, Clock


def published(clock: Clock) -> Iterator[Case]:
    """Yield the setups, networks first; inputs are random."""
    width = 1 if clock.tiny else 64
    run = partial(networks.compare, setup=networks.small_convolutional(clock))
    yield Case("D3: two convolutions, [16, 64, 3, 64, 64]", 2.0, run, large=True)
    sizes = (3, 2, 3, 16, 16) if clock.tiny else (4, 112, 3, 224, 224)
    resnet = networks.Setup(partial(networks.SEWResNet18, width=width), sizes, half=True)
    run = partial(networks.compare, setup=resnet)
    yield Case("D5: SEW-ResNet-18, [4, 112, 3, 224, 224], bfloat16", 4.0, run, large=True)
    sizes = (3, 2, 2, 16, 16) if clock.tiny else (10, 8, 2, 48, 48)
    vgg = networks.Setup(partial(networks.VGG, width=width), sizes)
    run = partial(networks.compare, setup=vgg)
    yield Case("D6: VGG for CIFAR10-DVS, [10, 8, 2, 48, 48]", 2.0, run)
    # D4, SpikingJelly's benchmark of FlexSN: 64 x 50176 neurons, 32 steps.
    yield neurons.against_peers("D4: two states", (32, 64 * 50176), neurons.custom_peers())
    yield _linear(clock, 4096)
    yield from _lif(clock)
    if not clock.tiny:
        yield _linear(clock, 16384)


def _linear(clock: Clock, width: int) -> Case:
    """D1, open-neuromorphic/snn-library-benchmarks: a linear layer with its neurons."""
    sizes = (6, 2, 32) if clock.tiny else (500, 16, width)
    make: networks.Network = partial(networks.LinearNeurons, neurons=sizes[-1])
    run = partial(networks.compare, setup=networks.Setup(make, sizes, rate=0.1))
    return Case(f"D1: linear layer and LIF, {width} neurons, T=500, B=16", 3.0, run)


def _lif(clock: Clock) -> Iterator[Case]:
    """D2, the documentation of SpikingJelly's Triton backend: LIF in float16, 64 x 65536."""
    for steps in (4,) if clock.tiny else (16, 32, 4):
        sizes = (steps, 64 * 65536)
        yield neurons.against_peers("D2: lif", sizes, neurons.peers("lif"), torch.float16)
