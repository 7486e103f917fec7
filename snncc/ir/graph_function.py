"""From a graph to a Python function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx


def function_of(graph: torch.fx.Graph) -> Callable[..., Any]:
    """Return a function that runs a graph.

    Its parameters are called like the nodes, whose names are unique and no keywords: inputs and
    parameters of a model may be called alike.
    """
    for node in graph.find_nodes(op="placeholder"):
        node.target = node.name
    return torch.fx.GraphModule(torch.nn.Module(), graph).forward
