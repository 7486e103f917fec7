"""A library in whole numbers: calibrate, quantize, measure, write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from snncc.errors import UnsupportedError
from snncc.export.c.footprint import footprint
from snncc.export.c.library import Sequence as Example
from snncc.export.c.library import write_library
from snncc.export.network.nodes import Network
from snncc.export.quantized.choice import Quantization
from snncc.export.quantized.mismatch import measure, reference, steps_of
from snncc.export.quantized.nodes import QuantizedNetwork
from snncc.export.quantized.numbers import WholeNumbers
from snncc.export.quantized.observe import FloatRun
from snncc.export.quantized.quantize import quantize


def write_quantized(
    network: Network, name: str, choice: Quantization, examples: Sequence[Example]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files of a library in whole numbers, and what its manifest says.

    Args:
        network: The network.
        name: A C identifier; every name in the library starts with it.
        choice: Which whole numbers.
        examples: Inputs and what the PyTorch model makes of them; the first is the test of the
            library.

    Raises:
        UnsupportedError: An operation has no form in whole numbers, with the user's line.
    """
    seen = calibrated(network, examples)
    quantized = quantize(network, seen, choice.sizes())
    found = measure(quantized, seen, examples, choice.answers())
    numbers = WholeNumbers(quantized, name)
    files = write_library(network, name, numbers, reference(quantized, examples[0]))
    facts = _formats(quantized) | footprint(network, numbers, files, name)
    facts["mismatch"] = found.facts(is_labelled=choice.labels is not None)
    return files, facts


def calibrated(network: Network, examples: Sequence[Example]) -> FloatRun:
    """Return a network in floats after it has run examples."""

    def refuse(position: int, reason: str) -> UnsupportedError:
        return UnsupportedError(
            "The network cannot be exported in whole numbers.",
            code="unsupported.quantized",
            location=network.locations[position] if position >= 0 else None,
            notes=[reason],
            hints=["Export it in floats, with arithmetic='float'."],
        )

    seen = FloatRun(network, refuse)
    for example in examples:
        seen.reset()
        for inputs in steps_of(example, network):
            seen.step(inputs)
    return seen


def _formats(network: QuantizedNetwork) -> dict[str, Any]:
    """Return what the manifest says of the numbers."""
    a, source = network.arithmetic, network.network
    return {
        "arithmetic": a.name,
        "number": f"int{a.state_bits}",
        "numerics": "whole numbers, bit for bit those of the reference in snncc",
        "fractions": {
            buffer.name: network.formats[buffer].fraction
            for buffer in (*source.inputs, *source.outputs, *source.states)
        },
    }
