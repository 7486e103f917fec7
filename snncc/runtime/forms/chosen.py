"""Neuron layers that choose for each call, by its sizes, in which exact form they run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from snncc.ir.program import NeuronProgram
from snncc.runtime.costs.forms import FORMS, ExactForm, Layer, Sizes, fastest
from snncc.runtime.costs.work import MOST_CHOICES, prices_of
from snncc.runtime.forms.parallel_reset import Chunks, ParallelResetNeuron
from snncc.runtime.neuron import Neuron, NeuronTarget
from snncc.runtime.scans.chunked import lanes_of
from snncc.runtime.tracing import is_traced


class ChoosingNeuron:
    """A neuron layer in the form that a call of its sizes probably takes least in.

    Args:
        program: The neuron, with what its forms run.
        target: The language of the kernels, as for `Neuron`.
        num_threads: Threads of a kernel; None means ``torch.get_num_threads()`` at each call.

    Attributes:
        form: The form of the last call.
    """

    def __init__(
        self,
        program: NeuronProgram,
        *,
        target: NeuronTarget = "c",
        num_threads: int | None = None,
    ) -> None:
        self.program = program
        self.form = FORMS[0].name
        self._options: dict[str, Any] = {"target": target, "num_threads": num_threads}
        self.serial = Neuron(replace(program, scan=None, restart=None), **self._options)
        self._layers: dict[str, Layer] = {FORMS[0].name: self.serial}
        self._chosen: dict[Sizes, ExactForm] = {}
        self._again: dict[str, Any] = {}

    def run(self, arguments: Sequence[Tensor], length: int | None) -> list[Tensor]:
        """Run the layer over time.

        Args:
            arguments: The STEP inputs, then the LANE inputs.
            length: T.

        Returns:
            The outputs [T, *lanes], then the finals [*lanes].
        """
        tensors = tuple(arguments)
        if is_traced(tensors):
            return list(self.serial.run(tensors, length))
        sizes = self._sizes(tensors, length)
        form = self._choose(sizes, tensors)
        self.form = form.name
        if form.name not in self._layers:
            self._layers[form.name] = form.layer(self.program, self._options)
        layer = self._layers[form.name]
        results = list(layer.run(tensors, length))
        chunks = layer.chunks if isinstance(layer, ParallelResetNeuron) else None
        if chunks is not None:
            self._again = run_again(chunks, sizes.steps)
        return results

    def _choose(self, sizes: Sizes, tensors: Sequence[Tensor]) -> ExactForm:
        if sizes not in self._chosen:
            if len(self._chosen) >= MOST_CHOICES:
                self._chosen.clear()
            target = self._options["target"]
            if target == "auto":
                target = "c" if tensors[0].is_cpu else "triton"
            self._chosen[sizes] = fastest(self.program, sizes, prices_of(target))
        return self._chosen[sizes]

    def _sizes(self, tensors: Sequence[Tensor], length: int | None) -> Sizes:
        forward = self.program.forward
        values = dict(zip((*forward.step_inputs, *forward.lane_inputs), tensors, strict=True))
        steps = [int(x.shape[0]) for x in tensors[: len(forward.step_inputs)]]
        return Sizes(
            steps=max(steps, default=0) if length is None else int(length),
            lanes=math.prod(lanes_of(forward, values)),
            threads=self._options["num_threads"] or torch.get_num_threads(),
            training=torch.is_grad_enabled() and any(x.requires_grad for x in tensors),
            **self._again,
        )


def run_again(chunks: Chunks, steps: int) -> dict[str, Any]:
    """Return what a parallel reset ran again, by the names of `Sizes`; shares rounded."""
    again, serial = chunks.again / chunks.count, chunks.serial / max(steps, 1)
    return {"again": round(again, 1), "rounds": chunks.rounds, "serial": round(serial, 2)}
