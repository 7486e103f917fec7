"""Run examples in floats and in whole numbers and count where the two differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

from snncc.errors import OptionError
from snncc.export.c.library import Sequence as Example
from snncc.export.network import nodes as floats
from snncc.export.network.nodes import Network, positions
from snncc.export.quantized.execute import Run
from snncc.export.quantized.formats import limited, whole
from snncc.export.quantized.nodes import Pointwise, QuantizedNetwork
from snncc.export.quantized.observe import FloatRun
from snncc.ir.nodes import Op, Unary


@dataclass
class Mismatch:
    """How a network in whole numbers differs from the PyTorch model on examples.

    Attributes:
        examples: How many there are.
        spikes: How many values of neurons that fire or do not were compared.
        differing_spikes: How many of them differ.
        output_difference: For each output the largest difference.
        output_largest: For each output the largest absolute value.
        answers: How many answers were compared.
        same_answers: How many are those of the PyTorch model.
        right: Of the labelled answers how many are right in floats.
        right_quantized: The same in whole numbers.
    """

    examples: int = 0
    spikes: int = 0
    differing_spikes: int = 0
    output_difference: dict[str, float] = field(default_factory=dict)
    output_largest: dict[str, float] = field(default_factory=dict)
    answers: int = 0
    same_answers: int = 0
    right: int = 0
    right_quantized: int = 0

    def facts(self, *, is_labelled: bool) -> dict[str, Any]:
        """Return what the manifest says."""
        facts: dict[str, Any] = {
            "examples": self.examples,
            "spikes": self.spikes,
            "differing_spikes": self.differing_spikes,
            "output_difference": self.output_difference,
            "output_largest": self.output_largest,
            "answers": self.answers,
            "same_answers": self.same_answers,
        }
        if is_labelled and self.answers:
            facts["accuracy"] = self.right / self.answers
            facts["accuracy_quantized"] = self.right_quantized / self.answers
        return facts


def measure(
    network: QuantizedNetwork,
    seen: FloatRun,
    examples: Sequence[Example],
    labels: Sequence[Tensor] | None,
) -> Mismatch:
    """Return how a network in whole numbers differs from the model.

    Args:
        network: The network.
        seen: The same in floats.
        examples: Inputs, and what the PyTorch model makes of them.
        labels: The right answers, if they are known.
    """
    found = Mismatch()
    run = Run(network)
    fires = list(_spikes(network))
    for position, example in enumerate(examples):
        found.examples += 1
        seen.reset()
        run.reset()
        outputs: list[list[numpy.ndarray]] = []
        for inputs in steps_of(example, network.network):
            seen.step(inputs)
            outputs.append(run.step(whole_inputs(inputs, network)))
            here = positions(network.network, run.steps)
            for at, name in (each for each in fires if each[0] in here):
                wanted = seen.values[at][name].numpy() != 0
                got = run.values[at][name] != 0
                found.spikes += got.size
                found.differing_spikes += int((wanted != got).sum())
        results = joined(outputs, network)
        _compare_outputs(found, example, results, network)
        right = None if labels is None else labels[position]
        _compare_answers(found, example, results, network, right)
    return found


def reference(network: QuantizedNetwork, example: Example) -> Example:
    """Return an example in whole numbers: its inputs, and the outputs of the reference."""
    run = Run(network)
    given = [whole_inputs(inputs, network) for inputs in steps_of(example, network.network)]
    outputs = joined([run.step(inputs) for inputs in given], network)
    columns = zip(*given, strict=True) if given else iter(())
    inputs = tuple(torch.from_numpy(numpy.stack(column)) for column in columns)
    return Example(inputs, tuple(torch.from_numpy(y) for y in outputs), example.steps)


def steps_of(example: Example, network: Network) -> Iterator[list[Tensor]]:
    """Yield the inputs of each step; those without a time axis are the same at all."""
    for t in range(example.steps):
        yield [
            x[t] if x.numel() == example.steps * buffer.size and x.dim() else x
            for x, buffer in zip(example.inputs, network.inputs, strict=True)
        ]


def whole_inputs(inputs: Sequence[Tensor], network: QuantizedNetwork) -> list[numpy.ndarray]:
    """Return the inputs of a step in whole numbers."""
    a = network.arithmetic
    return [
        limited(whole(x, network.formats[b].fraction), a.state_low, a.state_high)
        .reshape(-1)
        .numpy()
        for x, b in zip(inputs, network.network.inputs, strict=True)
    ]


def joined(steps: list[list[numpy.ndarray]], network: QuantizedNetwork) -> list[numpy.ndarray]:
    """Return each output of a sequence: of all steps, or of the last."""
    source = network.network
    results = []
    for i, (buffer, each) in enumerate(zip(source.outputs, source.every_step, strict=True)):
        shape = source.shapes[buffer.name]
        rows = [step[i].reshape(shape) for step in steps]
        results.append(numpy.stack(rows) if each else rows[-1])
    return results


def _spikes(network: QuantizedNetwork) -> Iterator[tuple[int, str]]:
    """Yield where a neuron fires or does not: the operation, and the let that is one or zero."""
    for position, operation in enumerate(network.network.operations):
        quantized = network.operations.get(position)
        if not isinstance(operation, floats.Pointwise) or not isinstance(quantized, Pointwise):
            continue
        kept = {name for name, _ in quantized.lets}
        for let in operation.lets:
            is_spike = isinstance(let.expr, Unary) and let.expr.op is Op.FLOAT
            if is_spike and let.name in kept:
                yield position, let.name


def _compare_outputs(
    found: Mismatch, example: Example, results: list[numpy.ndarray], network: QuantizedNetwork
) -> None:
    for buffer, wanted, got in zip(network.network.outputs, example.outputs, results, strict=True):
        exact = wanted.double().reshape(-1).numpy()
        values = numpy.ldexp(got.reshape(-1).astype(float), -network.formats[buffer].fraction)
        name = buffer.name
        worst = float(abs(values - exact).max(initial=0.0))
        most = float(abs(exact).max(initial=0.0))
        found.output_difference[name] = max(found.output_difference.get(name, 0.0), worst)
        found.output_largest[name] = max(found.output_largest.get(name, 0.0), most)


def _compare_answers(
    found: Mismatch,
    example: Example,
    results: list[numpy.ndarray],
    network: QuantizedNetwork,
    labels: Tensor | None,
) -> None:
    """Compare which number of the first output, summed over its steps, is the largest."""
    if not example.outputs or example.outputs[0].dim() == 0:
        return
    wanted, got = example.outputs[0].double().numpy(), results[0]
    if network.network.every_step[0]:
        wanted, got = wanted.sum(0), got.sum(0)
    if wanted.ndim == 0 or wanted.shape[-1] < 2:
        return
    theirs, ours = wanted.argmax(-1).reshape(-1), got.argmax(-1).reshape(-1)
    found.answers += theirs.size
    found.same_answers += int((theirs == ours).sum())
    if labels is not None:
        if labels.numel() not in (1, theirs.size):
            raise OptionError(
                f"There are {labels.numel()} labels for the {theirs.size} answers of an example.",
                code="option.arithmetic",
                hints=["Give one number for an example, or one for each sample of its batch."],
            )
        right = numpy.broadcast_to(labels.numpy(), theirs.shape)
        found.right += int((theirs == right).sum())
        found.right_quantized += int((ours == right).sum())
