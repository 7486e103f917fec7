"""Neurons, layers and containers of SpikingJelly 2.0 in single-step and multi-step mode.

It fires at the threshold, not above it, and keeps states in the module until `reset_net`.
In multi-step mode its neurons are one operator over all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from tests.compatibility.case import WIDTH, Expected, Group
from tests.compatibility.imports import quietly

functional = quietly("spikingjelly.activation_based.functional")
layer = quietly("spikingjelly.activation_based.layer")
neuron = quietly("spikingjelly.activation_based.neuron")
surrogate = quietly("spikingjelly.activation_based.surrogate")
spikformer = quietly("spikingjelly.activation_based.model.spikformer")

library = Group("spikingjelly")
CASES = library.cases

# The first call finds numbers in the place of states, the later ones tensors.
STATES = {"programs": 2}


class SingleStep(nn.Module):
    """A loop over time of the user's around a neuron in step mode 's'."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH, bias=False)
        self.node = node

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        functional.reset_net(self)
        out = []
        for t in range(x.shape[0]):
            y = self.node(self.fc(x[t]))
            out.append(torch.cat(y, 1) if isinstance(y, list | tuple) else y)
        return torch.stack(out), self.node.v


class MultiStep(nn.Module):
    """A neuron in step mode 'm': it is given the whole sequence."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.fc = layer.Linear(WIDTH, WIDTH)
        self.node = node
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Any:
        functional.reset_net(self)
        y = self.node(self.fc(x))
        seen = [getattr(self.node, name, None) for name in ("v_seq", "v")]
        return (y, *(v for v in seen if isinstance(v, Tensor)))


def strong(T: int, B: int) -> tuple[Any, ...]:
    return ((torch.randn(T, B, WIDTH) * 5.0).requires_grad_(),)


def node(
    name: str, notes: str, make: Callable[[], nn.Module], modes: str = "sm", **facts: Any
) -> None:
    """Add cases of a neuron in the step modes that it has."""
    for mode in modes:
        how = {"s": "step by step", "m": "all steps at once"}[mode]
        wrapped = {"s": SingleStep, "m": MultiStep}[mode]
        given = {"inputs": strong, **STATES, **facts}
        library(name=f"{name}_{mode}", notes=f"{notes}, {how}.", **given)(
            lambda wrapped=wrapped: wrapped(make())
        )


atan = surrogate.ATan()
node("IF", "Integrate and fire", neuron.IFNode)
node(
    "IF_soft", "Integrate and fire with a soft, detached reset",
    lambda: neuron.IFNode(v_reset=None, detach_reset=True, surrogate_function=atan),
)  # fmt: skip
node("SimpleIF", "Integrate and fire in plain methods", neuron.SimpleIFNode)
node("HalfThresholdIF", "It begins at half the threshold", neuron.HalfThresholdIFNode)
node(
    "ActivationAwareIF", "Thresholds and offsets for each channel",
    lambda: neuron.ActivationAwareIFNode(torch.rand(WIDTH) + 0.5, torch.rand(WIDTH) * 0.1),
)  # fmt: skip
node("LIF", "Leaky integrate and fire", neuron.LIFNode)
node(
    "LIF_detached", "A leaky neuron that records its potential",
    lambda: neuron.LIFNode(3.0, detach_reset=True, store_v_seq=True, v_reset=-0.2),
)  # fmt: skip
node(
    "LIF_undecayed", "The input is not decayed, the reset is soft",
    lambda: neuron.LIFNode(decay_input=False, v_reset=None),
)  # fmt: skip
node("SimpleLIF", "A leaky neuron in plain methods", lambda: neuron.SimpleLIFNode(2.0, True))


class Overridden(neuron.LIFNode):
    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + 8.0 * x


class SimpleOverridden(neuron.SimpleLIFNode):
    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + 0.5 * x


node("LIF_overridden", "A subclass whose own charge the library ignores", Overridden, modes="s")
node(
    "SimpleLIF_overridden", "A subclass whose own charge is used",
    lambda: SimpleOverridden(2.0, True), modes="s",
)  # fmt: skip
node("PLIF", "A learnable time constant", neuron.ParametricLIFNode)
node(
    "PLIF_undecayed", "A learnable time constant, soft reset",
    lambda: neuron.ParametricLIFNode(decay_input=False, v_reset=None, detach_reset=True),
)  # fmt: skip
node("QIF", "Quadratic integrate and fire", neuron.QIFNode)
node("EIF", "Exponential integrate and fire", neuron.EIFNode)
node("Izhikevich", "With a recovery variable", lambda: neuron.IzhikevichNode(a=0.1, b=0.2))
node("KLIF", "A learnable slope", neuron.KLIFNode)
node(
    "KLIF_scaled", "A learnable slope, reset scaled",
    lambda: neuron.KLIFNode(scale_reset=True, decay_input=False, v_reset=None),
)  # fmt: skip
node("CLIF", "With a complementary potential", neuron.ComplementaryLIFNode)
node("CUBALIF", "A synaptic current and a potential", neuron.CUBALIFNode)
node("LIAF", "Analog values instead of spikes", lambda: neuron.LIAFNode(torch.relu, True), "s")
node("ILIF", "Integer spikes", neuron.ILIFNode)
node("TernaryIF", "Spikes of either sign", neuron.TernaryIFNode)
node("TernaryLIF", "Leaky, spikes of either sign", lambda: neuron.TernaryLIFNode(v_reset=None))
node("RAF", "A resonator", neuron.RAFNode)
node(
    "MPBNLIF_threshold", "A learnable threshold for each neuron",
    lambda: neuron.MPBNLIFNode(out_features=WIDTH, mpbn=False, learnable_vth=True),
)  # fmt: skip
node(
    "MPBNLIF", "The potential is normalised over the batch", lambda: neuron.MPBNLIFNode(
        out_features=WIDTH), "s", neurons=0,
)  # fmt: skip
node("OTTT", "Online training: no gradient through time, a trace beside", neuron.OTTTLIFNode, "s")
node(
    "SLTT", "Online training: no gradient through time",
    lambda: neuron.SLTTLIFNode(surrogate_function=atan), "s",
)  # fmt: skip
node("OTTT_evaluated", "An online neuron in evaluation", neuron.OTTTLIFNode, "s", training=False)


def spiking(name: str, function: nn.Module) -> None:
    """Add a case of a surrogate."""
    notes = f"The surrogate `{name}`, all steps at once."
    library(name=name, notes=notes, inputs=strong, **STATES)(
        lambda: MultiStep(neuron.LIFNode(surrogate_function=function))
    )


for surrogate_name in (
    "DeterministicPass", "Erf", "FakeNumericalGradient", "LeakyKReLU", "LogTailedReLU",
    "NonzeroSignLogAbs", "PiecewiseExp", "PiecewiseLeakyReLU", "PiecewiseQuadratic", "QPseudoSpike",
    "Rect", "S2NN", "SoftSign", "SquarewaveFourierSeries", "SuperSpike",
):  # fmt: skip
    spiking(surrogate_name, getattr(surrogate, surrogate_name)())


class Inference(nn.Module):
    """A neuron without gradients."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.node = neuron.STBIFNode(0.3, 8, step_mode=mode)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        functional.reset_net(self)
        single = self.node.step_mode == "s"
        return torch.stack([self.node(x_t) for x_t in x]) if single else self.node(x), self.node.q


def plain(T: int, B: int) -> tuple[Any, ...]:
    return (torch.randn(T, B, WIDTH),)


for step_mode in "sm":
    library(
        name=f"STBIF_{step_mode}",
        notes=f"Spikes of either sign that sum to a quantised value, mode '{step_mode}'.",
        inputs=plain,
        differentiable=False,
        double=False,
        free=False,
        **STATES,
    )(lambda step_mode=step_mode: Inference(step_mode))


def images(T: int, B: int) -> tuple[Any, ...]:
    return ((torch.randn(T, B, 2, 6, 6) * 2.0).requires_grad_(),)


class Gated(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = layer.Conv2d(2, 3, 3, step_mode="m")
        numpy.random.seed(0)  # it draws its parameters there
        self.node = neuron.GatedLIFNode(7, **options)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.node(self.conv(x))


SAME_LENGTH = {"sizes": ((7, 3), (7, 2)), "double": False, **STATES}
library(
    name="GatedLIF", notes="Gates for each channel, a conductance for each step.", inputs=images,
    **SAME_LENGTH,
)(lambda: Gated(inplane=3))  # fmt: skip
library(
    name="GatedLIF_scalar", notes="Gates for the layer, a conductance for each step.",
    inputs=images, **SAME_LENGTH,
)(Gated)  # fmt: skip


class Decoder(nn.Module):
    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.fc = layer.Linear(WIDTH, WIDTH, step_mode="m")
        self.node = node

    def forward(self, x: Tensor) -> Any:
        return self.node(self.fc(x))


for decode in ("max-mem", "max-abs-mem", "mean-mem", "last_mem"):
    library(
        name=f"NonSpiking_{decode.replace('-', '_')}",
        notes=f"A readout without spikes, decoded by '{decode}'.",
        **STATES,
    )(lambda decode=decode: Decoder(neuron.NonSpikingLIFNode(decode=decode)))


class Network(nn.Module):
    """Convolutions, norms, neurons, pooling and dropout of the library, in one sequence."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1, bias=False),
            layer.BatchNorm2d(4),
            neuron.IFNode(surrogate_function=surrogate.ATan()),
            layer.MaxPool2d(2),
            layer.Flatten(),
            layer.Dropout(0.3),
            layer.Linear(36, 5),
            neuron.LIFNode(detach_reset=True),
        )
        functional.set_step_mode(self, mode)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        if self.net[0].step_mode == "m":
            return self.net(x).mean(0)
        total = 0.0
        for t in range(x.shape[0]):
            total += self.net(x[t])
        return total / x.shape[0]


for step_mode, how in (("s", "step by step"), ("m", "all steps at once")):
    # Step by step in training, the norm counts its batches in a loop of its own.
    for training in (True, False) if step_mode == "m" else (False,):
        purpose = "training" if training else "evaluation"
        library(
            name=f"Network_{purpose}_{step_mode}",
            notes=f"A network of its layers and neurons in {purpose}, {how}.",
            inputs=images,
            neurons=2,
            training=training,
            **STATES,
        )(lambda step_mode=step_mode: Network(step_mode))


@library(inputs=images, neurons=2, **STATES)
class Containers(nn.Module):
    """`SeqToANNContainer` and `MultiStepContainer` around modules of one step."""

    def __init__(self) -> None:
        super().__init__()
        self.stateless = layer.SeqToANNContainer(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.AvgPool2d(2)
        )
        self.stateful = layer.MultiStepContainer(
            neuron.LIFNode(), nn.Flatten(), nn.Linear(36, 5), neuron.IFNode()
        )

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.stateful(self.stateless(x))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.inner(x)


def wrapped(
    name: str,
    notes: str,
    make: Callable[[], nn.Module],
    expect: Expected = "compiled",
    **facts: Any,
) -> None:
    """Add a case of a module that is given the whole sequence."""
    given = {"inputs": strong, **STATES, **facts}
    library(name=name, notes=notes, expect=expect, **given)(lambda: Wrapped(make()))


wrapped("SynapseFilter", "A leaky synapse.", lambda: layer.SynapseFilter(10.0, True), free=False)
wrapped(
    "ElementWiseRecurrent", "The last spikes are added to the input.",
    lambda: layer.ElementWiseRecurrentContainer(neuron.LIFNode(), lambda x, y: x + y),
)  # fmt: skip
wrapped(
    "LinearRecurrent", "The last spikes and the input go through a matrix.",
    lambda: layer.LinearRecurrentContainer(neuron.LIFNode(), WIDTH, WIDTH),
    neurons=0,
)  # fmt: skip
wrapped(
    "ThresholdDependentNorm", "A norm over all steps, scaled by the threshold.",
    lambda: nn.Sequential(
        layer.Conv2d(2, 3, 3, bias=False),
        layer.ThresholdDependentBatchNorm2d(1.0, 1.0, 3),
        neuron.IFNode(),
    ),
    inputs=images,
)  # fmt: skip
wrapped(
    "TemporalEffectiveNorm", "A norm over all steps, scaled for each step.",
    lambda: nn.Sequential(
        layer.Conv2d(2, 3, 3, bias=False),
        layer.TemporalEffectiveBatchNorm2d(7, 3),
        neuron.IFNode(),
    ),
    inputs=images, sizes=((7, 3), (7, 2)),
)  # fmt: skip


@library(inputs=strong, programs=3, free=False)
class Persistent(nn.Module):
    """Nobody resets: the state goes on in the next sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = layer.Linear(WIDTH, WIDTH, step_mode="m")
        self.node = neuron.LIFNode(step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        return self.node(self.fc(x))


class Residual(nn.Module):
    """A block of a residual network: the sum is before the neuron, or of spikes."""

    def __init__(self, width: int, *, of_spikes: bool) -> None:
        super().__init__()
        self.of_spikes = of_spikes
        self.conv1 = layer.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = layer.BatchNorm2d(width)
        self.node1 = neuron.IFNode(detach_reset=True)
        self.conv2 = layer.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = layer.BatchNorm2d(width)
        self.node2 = neuron.IFNode(detach_reset=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.node1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.of_spikes:
            return self.node2(y) + x
        y += x
        return self.node2(y)


for of_spikes in (False, True):
    wrapped(
        "ResNet_spikes" if of_spikes else "ResNet",
        f"Residual blocks that add {'spikes' if of_spikes else 'currents'}.",
        lambda of_spikes=of_spikes: nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4), neuron.IFNode(),
            layer.MaxPool2d(2), Residual(4, of_spikes=of_spikes), Residual(4, of_spikes=of_spikes),
            layer.AdaptiveAvgPool2d((1, 1)), layer.Flatten(), layer.Linear(4, 3),
        ),
        inputs=images, neurons=5,
    )  # fmt: skip


@library(
    inputs=lambda T, B: (torch.rand(B, 3, 16, 16).requires_grad_(),),
    sizes=((4, 3), (4, 2)),
    neurons=10,
    free=False,
    **STATES,
)
class Spikformer(nn.Module):
    """The library's own spiking transformer, on an image that is repeated over time."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"img_size_h": 16, "img_size_w": 16, "patch_size": 4, "num_classes": 5}
        self.net = spikformer.Spikformer(4, **sizes, embed_dims=16, num_heads=2, depths=1)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return self.net(x).mean(0)
