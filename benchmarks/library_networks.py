"""Networks made of the neurons and layers of SpikingJelly and snnTorch.

SpikingJelly's own residual networks import torchvision; these are the same architectures from its
layers, for images of 32 x 32: a first convolution of 3 x 3 with stride 1 and no pooling behind it.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def quietly(name: str) -> Any:
    """Import a module whose own import warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


functional = quietly("spikingjelly.activation_based.functional")
layer = quietly("spikingjelly.activation_based.layer")
neuron = quietly("spikingjelly.activation_based.neuron")
surrogate = quietly("spikingjelly.activation_based.surrogate")
spikformer = quietly("spikingjelly.activation_based.model.spikformer")
snntorch = quietly("snntorch")

CLASSES = 10
WIDTHS = (64, 128, 256, 512)


def integrate() -> nn.Module:
    """Return the neuron that SpikingJelly's examples train its residual networks with."""
    node: nn.Module = neuron.IFNode(surrogate_function=surrogate.ATan(), detach_reset=True)
    return node


def convolution(before: int, after: int, size: int, stride: int = 1) -> list[nn.Module]:
    """Return a convolution without bias and the norm behind it."""
    conv = layer.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    return [conv, layer.BatchNorm2d(after)]


class Block(nn.Module):
    """Two convolutions and a shortcut: of currents, or as in SEW-ResNet of spikes."""

    def __init__(self, before: int, after: int, stride: int, *, of_spikes: bool) -> None:
        super().__init__()
        self.of_spikes = of_spikes
        self.first = nn.Sequential(*convolution(before, after, 3, stride), integrate())
        self.second = nn.Sequential(*convolution(after, after, 3))
        self.node = integrate()
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            spiking = [integrate()] if of_spikes else []
            self.shortcut = nn.Sequential(*convolution(before, after, 1, stride), *spiking)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions give to the input, before the last neuron or behind it."""
        y = self.second(self.first(x))
        result: Tensor
        if self.of_spikes:
            result = self.node(y) + self.shortcut(x)
        else:
            result = self.node(y + self.shortcut(x))
        return result


class ResNet18(nn.Module):
    """Spiking ResNet-18 (Fang et al. 2021, section 3.2) or SEW-ResNet-18 with addition (3.3)."""

    def __init__(self, *, of_spikes: bool, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for number in range(2):
                stride = 2 if stage and not number else 1
                blocks.append(Block(before, width, stride, of_spikes=of_spikes))
                before = width
        self.stem = nn.Sequential(*convolution(3, widths[0], 3), integrate())
        self.blocks = nn.Sequential(*blocks)
        self.pool = layer.AdaptiveAvgPool2d((1, 1))
        self.flatten = layer.Flatten()
        self.fc = layer.Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of one step or of all, as the layers' step mode says."""
        logits: Tensor = self.fc(self.flatten(self.pool(self.blocks(self.stem(x)))))
        return logits


class StepByStep(nn.Module):
    """The loop over time that SpikingJelly's tutorials show, around modules of one step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        functional.set_step_mode(net, "s")

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the logits of all steps of ``x`` [T, B, *]."""
        functional.reset_net(self.net)
        total = torch.zeros(())
        for t in range(x.shape[0]):
            total = total + self.net(x[t])
        return total / x.shape[0]


class AllSteps(nn.Module):
    """The same network in SpikingJelly's multi-step mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        functional.set_step_mode(net, "m")

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the logits of all steps of ``x`` [T, B, *]."""
        functional.reset_net(self.net)
        logits: Tensor = self.net(x)
        return logits.mean(0)


class Spikformer(nn.Module):
    """SpikingJelly's spiking transformer, which repeats an image over time by itself."""

    def __init__(self, T: int, size: int, width: int, depths: int) -> None:
        super().__init__()
        sizes = {"img_size_h": size, "img_size_w": size, "patch_size": 4, "num_classes": CLASSES}
        self.net = spikformer.Spikformer(T, **sizes, embed_dims=width, num_heads=4, depths=depths)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the logits of all steps for images ``x`` [B, 3, *]."""
        functional.reset_net(self.net)
        logits: Tensor = self.net(x)
        return logits.mean(0)


class ConvolutionalTutorial(nn.Module):
    """The convolutional network of snnTorch's tutorial 6, with its loop."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        spike = quietly("snntorch.surrogate").fast_sigmoid(slope=25)
        leaky = {"beta": 0.5, "spike_grad": spike, "init_hidden": True}
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 5),
            nn.MaxPool2d(2),
            snntorch.Leaky(**leaky),
            nn.Conv2d(12, 64, 5),
            nn.MaxPool2d(2),
            snntorch.Leaky(**leaky),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, CLASSES),
            snntorch.Leaky(**leaky, output=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the output spikes of all steps for images ``x`` [B, 1, 28, 28]."""
        # `snntorch.utils.reset` would miss the neurons of copies: it keeps a list of those made.
        for node in self.net:
            if isinstance(node, snntorch.Leaky):
                node.reset_mem()
        spikes = []
        for _ in range(self.steps):
            spike, _ = self.net(x)
            spikes.append(spike)
        return torch.stack(spikes).sum(0)
