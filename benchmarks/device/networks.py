"""Parts of the GPU benchmark that are about whole networks: a step of training, end to end.

Each network is written once, over sequences [T, B, *], and takes its layers of neurons from
outside: serial code for snncc, which compiles the whole, or SpikingJelly's own layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

import snncc
from benchmarks.device import layers
from benchmarks.device.clock import Case, Clock, Record, Run, in_graphs, reason, with_ratios

Neuron = Callable[[], nn.Module]


class Once(nn.Module):
    """A layer without state, applied to all steps of a sequence [T, B, *] at once."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values of all steps."""
        y: Tensor = self.inner(x.flatten(0, 1))
        return y.unflatten(0, x.shape[:2])


def convolution(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> Once:
    """Return a convolution and its norm."""
    inner = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return Once(inner, nn.BatchNorm2d(outputs))


class SEWBlock(nn.Module):
    """A residual block whose shortcut adds spikes. Source: Fang et al. 2021, SEW-ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int, neuron: Neuron) -> None:
        super().__init__()
        self.first = nn.Sequential(convolution(inputs, outputs, stride), neuron())
        self.second = nn.Sequential(convolution(outputs, outputs), neuron())
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, stride, 1), neuron())

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums of spikes."""
        y: Tensor = self.second(self.first(x)) + self.shortcut(x)
        return y


class SEWResNet18(nn.Module):
    """SEW-ResNet-18 for images of 3 channels; ``width`` scales its channels."""

    def __init__(self, neuron: Neuron, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        stem = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.stem = nn.Sequential(Once(stem, nn.BatchNorm2d(width)), neuron())
        self.pool = Once(nn.MaxPool2d(3, 2, 1))
        blocks, inputs = [], width
        for stage, channels in enumerate(width * 2**k for k in range(4)):
            for number in range(2):
                stride = 2 if stage and not number else 1
                blocks.append(SEWBlock(inputs, channels, stride, neuron))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.mean = Once(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores [B, classes] of ``x`` [T, B, 3, H, W]."""
        y = self.mean(self.blocks(self.pool(self.stem(x))))
        scores: Tensor = self.head(y.mean(0))
        return scores


class VGG(nn.Module):
    """The network of eight layers that is used for CIFAR10-DVS, with 2 channels of input."""

    def __init__(self, neuron: Neuron, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        widths = [width, 2 * width, "pool", 4 * width, 4 * width, "pool", *[8 * width] * 2, "pool"]
        parts: list[nn.Module] = []
        inputs = 2
        for channels in (*widths, 8 * width, 8 * width, "pool"):
            if channels == "pool":
                parts.append(Once(nn.AvgPool2d(2)))
            else:
                parts += [convolution(inputs, int(channels)), neuron()]
                inputs = int(channels)
        self.features = nn.Sequential(*parts)
        self.head = nn.LazyLinear(classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores [B, classes] of ``x`` [T, B, 2, H, W]."""
        scores: Tensor = self.head(self.features(x).flatten(2).mean(0))
        return scores


class SmallConvolutional(nn.Module):
    """Two convolutions with norm and neurons, and a linear layer: D3."""

    def __init__(self, neuron: Neuron, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(3, width), neuron(), Once(nn.MaxPool2d(2)),
            convolution(width, width), neuron(), Once(nn.MaxPool2d(2)), Once(nn.Flatten()),
        )  # fmt: skip
        self.head = nn.LazyLinear(1024)
        self.last = neuron()

    def forward(self, x: Tensor) -> Tensor:
        """Return rates [B, 1024] of ``x`` [T, B, 3, H, W]."""
        rates: Tensor = self.last(self.head(self.features(x))).mean(0)
        return rates


class LinearNetwork(nn.Sequential):
    """Three linear layers with neurons."""

    def __init__(self, neuron: Neuron, neurons: int) -> None:
        super().__init__(*(LinearNeurons(neuron, neurons) for _ in range(3)))


class LinearNeurons(nn.Module):
    """A linear layer and its neurons: D1."""

    def __init__(self, neuron: Neuron, neurons: int = 4096) -> None:
        super().__init__()
        self.layer, self.neuron = nn.Linear(neurons, neurons), neuron()

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of ``x`` [T, B, N]."""
        spikes: Tensor = self.neuron(self.layer(x))
        return spikes


def _jelly_neuron() -> nn.Module:
    try:
        from spikingjelly.activation_based import neuron, surrogate
    except ImportError as error:
        raise layers.Missing(f"SpikingJelly is not importable: {error}") from error
    node = neuron.LIFNode(2.0, False, 1.0, 0.0, surrogate.ATan(layers.ALPHA), step_mode="m")
    return layers.SpikingJelly(node)


Network = Callable[[Neuron], nn.Module]


@dataclass(frozen=True)
class Way:
    """How a network runs.

    Attributes:
        neuron: Makes its layers of neurons.
        wrap: Makes what runs of the network.
        layout: How parameters and the images of a sequence lie in memory.
    """

    neuron: Neuron
    wrap: Callable[[nn.Module], nn.Module]
    layout: torch.memory_format = torch.contiguous_format


def _own(net: nn.Module) -> nn.Module:
    return snncc.compile(net, target="triton")


def _itself(net: nn.Module) -> nn.Module:
    return net


WAYS = {"snncc": Way(layers.lif, _own), "spikingjelly": Way(_jelly_neuron, _itself)}
CHANNELS_LAST = {
    f"{name}, channels last": replace(way, layout=torch.channels_last) for name, way in WAYS.items()
}


@dataclass(frozen=True)
class Setup:
    """What is compared.

    Attributes:
        make: Makes the network of its layers of neurons.
        sizes: Those of its input.
        rate: The share of the input that is spikes; None for numbers.
        half: Whether parameters, inputs and spikes are bfloat16.
        profiled: Whether kernels are added up, too.
    """

    make: Network
    sizes: Sequence[int]
    rate: float | None = None
    half: bool = False
    profiled: bool = False


def resnet(clock: Clock) -> Iterator[Case]:
    """Yield training steps of SEW-ResNet-18 in bfloat16, in both layouts of memory."""
    for steps, batch in ((4, 32),) if clock.tiny else ((4, 32), (16, 8)):
        sizes = (3, 2, 3, 16, 16) if clock.tiny else (steps, batch, 3, 224, 224)
        make: Network = partial(SEWResNet18, width=1 if clock.tiny else 64)
        setup = Setup(make, sizes, half=True, profiled=True)
        run = partial(compare, setup=setup, ways=WAYS | CHANNELS_LAST)
        yield Case(f"SEW-ResNet-18, T={steps}, B={batch}", 4.0, run, graphs=True)


def kept(clock: Clock) -> Iterator[Case]:
    """Yield training steps of networks that keep spikes as values and as bits."""
    ways = {
        f"snncc, {kind}": Way(layers.lif, partial(snncc.compile, target="triton", keep_spikes=kind))
        for kind in ("values", "bits")
    }
    sizes = (6, 2, 32) if clock.tiny else (64, 256, 2048)
    linear = Setup(partial(LinearNetwork, neurons=sizes[-1]), sizes, rate=0.1)
    run = partial(compare, setup=linear, ways=ways)
    yield Case("3 linear layers of 2048 neurons, T=64, B=256", 2.0, run)
    run = partial(compare, setup=small_convolutional(clock), ways=ways)
    yield Case("two convolutions, [16, 64, 3, 64, 64]", 2.0, run, large=True)


def small_convolutional(clock: Clock) -> Setup:
    """Return the network of D3."""
    sizes = (3, 2, 3, 8, 8) if clock.tiny else (16, 64, 3, 64, 64)
    return Setup(partial(SmallConvolutional, width=1 if clock.tiny else 64), sizes)


def compare(clock: Clock, setup: Setup, ways: Mapping[str, Way] = WAYS) -> Iterator[Record]:
    """Yield the times of a training step of each way to run a network; weights are equal."""
    dtype = torch.bfloat16 if setup.half else torch.float32
    x = torch.rand(*setup.sizes, device=clock.device)
    x = (x if setup.rate is None else x < setup.rate).to(dtype)
    runs: dict[str, Run] = {}
    more: dict[str, Record] = {}
    weights: dict[str, Tensor] = {}
    for variant, way in ways.items():
        try:
            net = setup.make(way.neuron).to(clock.device, dtype)
            _initialize(net, x)
            weights = weights or {k: v.clone() for k, v in net.state_dict().items()}
            net.load_state_dict(weights, strict=False)
            net = net.to(memory_format=way.layout)
            run = _step(way.wrap(net), net, _arranged(x, way.layout))
            more[variant] = {"prepared_call_ms": clock.once(run) * 1e3}
            more[variant]["peak_mib"] = clock.memory(run)
            runs[variant] = run
        except Exception as error:
            yield {"variant": variant, "skipped": reason(error)}
    if clock.graphs:
        yield from in_graphs(clock, runs)
        return
    times = clock.measure(runs)
    if setup.profiled and clock.rounds > 1:
        for variant, run in runs.items():
            times[variant]["kernels_ms"] = clock.kernels(run)
    for record in with_ratios(times):
        yield record | more[record["variant"]]


def _arranged(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Return a sequence whose images, all steps in one batch, lie in memory as asked for."""
    if layout == torch.contiguous_format:
        return x
    return x.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, x.shape[:2])


def _initialize(net: nn.Module, x: Tensor) -> None:
    """Give lazy layers their sizes, and forget what the run left in norms and neurons."""
    with torch.no_grad():
        net(x[:2])
    _reset(net)


def _reset(net: nn.Module) -> None:
    if any(hasattr(m, "_memories") for m in net.modules()):
        from spikingjelly.activation_based import functional

        functional.reset_net(net)


def _step(run: Callable[[Tensor], Tensor], net: nn.Module, x: Tensor) -> Run:
    def step() -> None:
        _reset(net)
        run(x).float().square().mean().backward()
        for parameter in net.parameters():
            parameter.grad = None

    return step
