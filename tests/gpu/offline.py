"""Kernels of a neuron, compiled for a GPU that is not there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import snncc
from snncc.ir.program import NeuronProgram
from snncc.nn import IF, LI, LIF, AdaptiveLIF, DynamicDecay, Rectangle
from snncc.passes.neurons import neuron_nodes
from snncc.runtime.backward import BackwardCall
from snncc.runtime.gpu.binaries import Binary, compile_offline, machine_of_arch
from snncc.runtime.gpu.calls import Call
from snncc.runtime.gpu.engine import GpuEngine
from snncc.runtime.operators import Neuron

C = 8
LEARNABLE = {"learnable": True, "shape": (C, 1, 1)}
# Neurons besides the plainest, which has tests of its own.
NEURONS = {
    "soft": LIF(v_reset=None, detach_reset=True),
    "rectangle": LIF(surrogate=Rectangle()),
    "plif": LIF(**LEARNABLE),
    "if": IF(),
    "integrator": LI(**LEARNABLE),
    "adaptive": AdaptiveLIF(**LEARNABLE),
    "dynamic decay": DynamicDecay(C),
}


@dataclass(frozen=True)
class Calls:
    """What a layer launches for inputs of some sizes and types."""

    inference: Call
    training: Call
    backward: Call

    def compile(self, arch: str) -> tuple[Binary, Binary, Binary]:
        """Compile the three kernels."""
        return tuple(
            compile_offline(call.kernel.source, call.variant, arch)
            for call in (self.inference, self.training, self.backward)
        )


def program_of(neuron: nn.Module, x: Tensor, **options: object) -> NeuronProgram:
    """Return the program that a GPU would run for a neuron."""
    fast = snncc.compile(neuron, target="triton", **options)
    (node,) = neuron_nodes(fast.specialize(x.requires_grad_()).graph)
    return node.target.program


def engine(program: NeuronProgram, arch: str = "sm_90", target: str = "triton") -> GpuEngine:
    """Return the GPU side of a layer."""
    return GpuEngine(program, Neuron(program, target=target).source, machine_of_arch(arch))


def calls_of(
    program: NeuronProgram,
    tensors: list[Tensor],
    cotangents: list[Tensor],
    arch: str = "sm_90",
    target: str = "triton",
) -> Calls:
    """Return the calls of a program; the tensors give sizes, strides and types alone."""
    gpu = engine(program, arch, target)
    training = gpu.plan(tensors, None, training=True)
    needs = [True] * len(tensors)
    backward = training.differentiate(BackwardCall(program.adjoint, tensors, cotangents, needs))
    inference = gpu.plan(tensors, None, training=False)
    return Calls(inference.call, training.call, backward.call)


def empty(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor of some sizes whose memory is never touched."""
    return torch.empty(sizes, dtype=dtype)
