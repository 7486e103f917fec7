"""One of two programs, chosen at run time: an ``If``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnx import helper

from snncc.export.onnx.graph import TYPES
from snncc.export.onnx.lowering import Lowering
from snncc.export.onnx.values import Value


def choice(
    low: Lowering, condition: str, branches: Sequence[Callable[[Lowering], list[Any]]]
) -> list[Value]:
    """Write an ``If`` and return its results.

    Args:
        low: What writes the graph around it.
        condition: The name of a bool.
        branches: What write a branch and return its results: where it is true, where it is not.

    Raises:
        UnsupportedError: The branches have results of different types or sizes.
    """
    graphs, results = [], []
    for branch, name in zip(branches, ("then", "else"), strict=True):
        inner = low.inside(low.graph.inner(), one_step=low.one_step)
        values = branch(inner)
        if not all(isinstance(value, Value) for value in values):
            raise low.refusal("it returns something that is no tensor")
        names = [inner.graph.node("Identity", inner.name_of(v), name=name) for v in values]
        outputs = [
            helper.make_tensor_value_info(own, TYPES[value.dtype], None)
            for own, value in zip(names, values, strict=True)
        ]
        graphs.append(helper.make_graph(inner.graph.finish(names), name, [], outputs))
        results.append(values)
    for one, other in zip(*results, strict=True):
        if (one.dtype, one.shapes) != (other.dtype, other.shapes):
            raise low.refusal("an output of the first step is of another size than the others")
    names = low.graph.nodes_of(
        "If", [condition], len(results[0]), then_branch=graphs[0], else_branch=graphs[1]
    )
    return [Value(v.samples, name) for v, name in zip(results[1], names, strict=True)]
