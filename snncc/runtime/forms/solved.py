"""Results that are those of the serial neuron, found in another way: their gradient is its too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from snncc.ir.once import once
from snncc.runtime.neuron import Neuron
from snncc.runtime.tracing import refuse_batches


class Solver(Protocol):
    """A neuron layer that finds the serial results without running in serial order."""

    serial: Neuron

    def solve(self, arguments: Sequence[Tensor], length: int | None) -> list[Tensor]:
        """Return the outputs and the finals, without gradients."""
        ...


def solved(layer: Solver, arguments: Sequence[Tensor], length: int | None) -> list[Tensor]:
    """Return the results of a layer, with the gradient of the serial neuron where it is needed."""
    layer.serial.check_steps(arguments, length)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in arguments)):
        return layer.solve(arguments, length)
    if layer.serial.target == "torch":
        return list(layer.serial.run(tuple(arguments), length))
    apply: Any = _Solved.apply
    return list(apply(layer, length, *arguments))


class _Solved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: Solver, length: int | None, *arguments: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.layer, ctx.length = layer, length
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments)
        results = layer.solve(arguments, length)
        constant = layer.serial.program.without_gradient
        ctx.mark_non_differentiable(*(results[i] for i in constant))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        refuse_batches(cotangents)
        neuron, needs, given = ctx.layer.serial, ctx.needs_input_grad[2:], len(cotangents)

        def run(*values: Tensor) -> list[Tensor | None]:
            arguments = values[given:]
            forward = neuron.plan(arguments, ctx.length, training=True)
            plan = neuron.backward_plan(forward, arguments, values[:given], needs)
            # Where backward reads stored values, the serial kernel stores them now.
            saved = forward.run(arguments)[neuron.results :] if forward.results.saved else ()
            found: list[Tensor | None] = plan.run(arguments, values[:given], saved)
            return found

        return (None, None, *once(run, (*cotangents, *ctx.saved_tensors)))
