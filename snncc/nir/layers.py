"""Recurrent layers in the form that importers agree about.

A neuron and the weights by which it feeds back to itself become a graph of their own, as snnTorch
writes its recurrent layers.  As a cycle of the outer graph NIR means the same by them, but snnTorch
1.0 lets the input of such a cycle run through the recurrent weights.

What arrives one step late is nothing at all in the first step, for importers that run on nirtorch;
in NIR's equations, as in PyTorch code, the bias of recurrent weights is there from the start.  It
is therefore added to the weights in front of the neuron, where there are some::

    (W x + b) + (R s + c) = (W x + (b + c)) + R s

Arrows to an output come last, for Norse 1.1 returns what is reached last.
"""

from __future__ import annotations

from typing import Any

import numpy

from snncc.nir.parts import Parts


def move_biases(parts: Parts) -> None:
    """Add the biases of weights that are read late to those of the weights beside them."""
    for _, late in sorted(parts.delayed):
        bias = getattr(parts.nodes[late], "bias", None)
        targets = _targets(parts, late)
        if bias is None or not numpy.any(bias) or len(targets) != 1:
            continue
        for source, target in parts.edges:
            if target == targets[0] and _is_beside(parts, source, late):
                _add(parts, source, bias)
                _add(parts, late, -bias)
                break


def gather_layers(parts: Parts) -> None:
    """Put each neuron that feeds back through weights of its own into an inner graph with them."""
    backs: dict[str, list[str]] = {}
    for neuron, weights in sorted(parts.delayed):
        if _targets(parts, weights) == [neuron] and _sources(parts, weights) == [neuron]:
            backs.setdefault(neuron, []).append(weights)
    for neuron, own in backs.items():
        _gather(parts, neuron, own)
    parts.edges.sort(key=lambda edge: type(parts.nodes[edge[1]]).__name__ == "Output")


def _gather(parts: Parts, neuron: str, weights: list[str]) -> None:
    """Replace a neuron and its recurrent weights by a graph under the neuron's name."""
    import nir

    node = parts.nodes[neuron]
    inner = {"input": nir.Input(node.input_type["input"]), type(node).__name__.lower(): node}
    names = {neuron: type(node).__name__.lower()}
    for name in weights:
        names[name] = name
        while names[name] in (*inner, "output"):
            names[name] += "_"
        inner[names[name]] = parts.nodes.pop(name)
    inner["output"] = nir.Output(node.output_type["output"])
    edges = [(names[a], names[b]) for a, b in parts.edges if a in names and b in names]
    edges = [("input", names[neuron]), *sorted(edges), (names[neuron], "output")]
    parts.nodes[neuron] = nir.NIRGraph(inner, edges)
    parts.edges = [(a, b) for a, b in parts.edges if a not in weights and b not in weights]
    parts.delayed = {
        (f"{neuron}.{names[a]}", f"{neuron}.{names[b]}") if b in weights else (a, b)
        for a, b in parts.delayed
    }


def _is_beside(parts: Parts, name: str, late: str) -> bool:
    """Tell whether a node is weights of the same kind that arrive at once, and nowhere else."""
    node, other = parts.nodes[name], parts.nodes[late]
    is_late = any(target == name for _, target in parts.delayed)
    if not hasattr(node, "weight") or is_late or len(_targets(parts, name)) != 1:
        return False
    return bool(
        node.weight.ndim == other.weight.ndim and node.weight.shape[0] == other.weight.shape[0]
    )


def _add(parts: Parts, name: str, bias: Any) -> None:
    """Add to the bias of weights; where nothing is left, linear ones go without."""
    import nir

    node = parts.nodes[name]
    own = getattr(node, "bias", numpy.zeros_like(bias))
    total = (own.astype(numpy.float64) + bias).astype(node.weight.dtype)
    if not isinstance(node, (nir.Linear, nir.Affine)):
        node.bias = total
    elif total.any():
        parts.nodes[name] = nir.Affine(node.weight, total)
    else:
        parts.nodes[name] = nir.Linear(node.weight)


def _targets(parts: Parts, name: str) -> list[str]:
    return [b for a, b in parts.edges if a == name]


def _sources(parts: Parts, name: str) -> list[str]:
    return [a for a, b in parts.edges if b == name]
