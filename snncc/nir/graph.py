"""The structure of a NIR graph: which nodes there are, in which order, and what waits a step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from snncc.nir.checks import CHECK, refused
from snncc.nir.nodes import NodeReader
from snncc.nir.stages import Stage, above

Arrow: TypeAlias = tuple[str, str]

DEEPEST = 100  # graphs in graphs


@dataclass
class Flat:
    """A graph whose inner graphs are opened.

    Attributes:
        nodes: All nodes; those of inner graphs are called ``graph.node``.
        arrows: Who sends to whom.
        doors: The inputs and outputs of inner graphs, which only pass on.
    """

    nodes: dict[str, Any] = field(default_factory=dict)
    arrows: list[Arrow] = field(default_factory=list)
    doors: set[str] = field(default_factory=set)


def flat(graph: Any, prefix: str = "") -> Flat:
    """Open the inner graphs of a graph, whose own inputs and outputs stay.

    Raises:
        OptionError: An arrow could mean several inputs or outputs of an inner graph, or leads into
            an input or out of an output; two nodes have one name; graphs lie too deep.
    """
    if prefix.count(".") > DEEPEST:
        raise refused(f"Graphs lie in graphs more than {DEEPEST} times.")
    result = Flat()
    doors: dict[str, dict[str, list[str]]] = {}
    for name, node in graph.nodes.items():
        path = f"{prefix}{name}"
        is_graph = type(node).__name__ == "NIRGraph"
        inside = flat(node, f"{path}.") if is_graph else Flat({path: node})
        twice = result.nodes.keys() & inside.nodes.keys()
        if twice:
            raise refused(f"Two nodes are called '{min(twice)}'.", "Give one another name.")
        result.nodes |= inside.nodes
        if not is_graph:
            continue
        result.arrows += inside.arrows
        doors[path] = {
            kind: [f"{path}.{n}" for n, x in node.nodes.items() if type(x).__name__ == kind]
            for kind in ("Input", "Output")
        }
        result.doors |= inside.doors.union(*doors[path].values())
    for source, target in _arrows(graph):
        a, b = f"{prefix}{source}", f"{prefix}{target}"
        starts = doors[a]["Output"] if a in doors else [a]
        ends = doors[b]["Input"] if b in doors else [b]
        if len(starts) != 1 or len(ends) != 1:
            raise refused(f"An arrow from '{a}' to '{b}' could mean several inputs or outputs.")
        result.arrows.append((starts[0], ends[0]))
    return result


def _arrows(graph: Any) -> Iterator[Arrow]:
    """Yield the arrows of one graph, which lead out of its inputs and into its outputs."""
    for arrow in graph.edges:
        if len(arrow) != 2:
            raise refused(f"'{arrow}' is no arrow from one node to another.", CHECK)
        source, target = arrow
        if type(graph.nodes.get(source)).__name__ == "Output":
            raise refused(f"An arrow leaves the output '{source}'.", CHECK)
        if type(graph.nodes.get(target)).__name__ == "Input":
            raise refused(f"An arrow leads into the input '{target}'.", CHECK)
        yield str(source), str(target)


class Plan:
    """In which order nodes are evaluated, and which arrows wait for the next step.

    Attributes:
        nodes: The nodes by name.
        inputs, outputs: The names of those that the graph has.
        inner: The names of all others.
        sources: For each inner node and output who sends to it.
        order: The inner nodes, each after what it needs.
        delayed: The arrows that arrive one step later.

    Raises:
        OptionError: An arrow leads to nowhere, or nothing arrives at a node.
    """

    def __init__(self, graph: Flat) -> None:
        self.nodes = graph.nodes
        unknown = sorted({n for arrow in graph.arrows for n in arrow} - self.nodes.keys())
        if unknown:
            raise refused(f"An arrow ends at '{unknown[0]}', which is not there.", CHECK)
        arrows = _without(graph.arrows, graph.doors)
        kinds = {n: type(x).__name__ for n, x in self.nodes.items() if n not in graph.doors}
        self.inputs = [n for n, kind in kinds.items() if kind == "Input"]
        self.outputs = [n for n, kind in kinds.items() if kind == "Output"]
        self.inner = [n for n, kind in kinds.items() if kind not in ("Input", "Output")]
        if not self.inputs or not self.outputs:
            raise refused("The graph has no input or no output.", CHECK)
        self.sources: dict[str, list[str]] = {n: [] for n in (*self.inner, *self.outputs)}
        for source, target in dict.fromkeys(arrows):
            self.sources[target].append(source)
        for name, sources in self.sources.items():
            if not sources:
                raise refused(f"Nothing arrives at node '{name}'.", CHECK)
        self.order: list[str] = []
        self.delayed: set[Arrow] = set()

    def arrange(self, stages: dict[str, Stage]) -> None:
        """Find the order; in each cycle one arrow out of a neuron waits for the next step.

        It is the neuron furthest from the inputs that sends later: it closes the cycle.

        Raises:
            OptionError: A cycle has no neuron, so nothing in it can wait.
        """
        depth = self._depths()
        while True:
            self.order, cycle = [], None
            done: dict[str, bool] = {}
            for name in (*self.outputs, *self.inner):
                cycle = cycle or self._visit(name, done)
            if cycle is None:
                return
            waiting = [(a, b) for a, b in cycle if stages[a].keeps_state]
            if not waiting:
                names = " -> ".join(a for a, _ in cycle)
                raise refused(f"The cycle {names} holds no neuron.", "Put one into its path.")
            self.delayed.add(max(waiting, key=lambda arrow: depth[arrow[0]]))

    def _depths(self) -> dict[str, int]:
        """Return how many arrows lie between the inputs and each node."""
        targets: dict[str, list[str]] = {}
        for target, sources in self.sources.items():
            for source in sources:
                targets.setdefault(source, []).append(target)
        depth = dict.fromkeys(self.inputs, 0)
        frontier = list(self.inputs)
        for reached in frontier:
            for target in targets.get(reached, ()):
                if target not in depth:
                    depth[target] = depth[reached] + 1
                    frontier.append(target)
        return dict.fromkeys(self.sources, 0) | depth

    def _visit(self, root: str, done: dict[str, bool]) -> list[Arrow] | None:
        """Put a node after what it needs, without recursion; return a cycle if there is one."""
        path: list[tuple[str, Iterator[str]]] = []
        if root not in done:
            done[root] = False
            path.append((root, self._needs(root)))
        while path:
            name, needs = path[-1]
            source = next(needs, None)
            if source is None:
                done[name] = True
                path.pop()
                if name in self.inner:
                    self.order.append(name)
            elif source not in done:
                done[source] = False
                path.append((source, self._needs(source)))
            elif not done[source]:
                names = [n for n, _ in path]
                ring = [*names[names.index(source) :], source]
                return [(b, a) for a, b in itertools.pairwise(ring)]
        return None

    def _needs(self, name: str) -> Iterator[str]:
        for source in self.sources[name]:
            if source not in self.inputs and (source, name) not in self.delayed:
                yield source


def delays_of(graph: Any, dt: float) -> set[Arrow]:
    """Return the arrows of a graph that arrive one step later.

    Args:
        graph: A ``nir.NIRGraph``.
        dt: Length of a step, in seconds.

    Raises:
        OptionError: A node has no serial code.
    """
    plan = Plan(flat(graph))
    reader = NodeReader(dt, above)
    plan.arrange({name: reader.stage(name, plan.nodes[name]) for name in plan.inner})
    return plan.delayed


def _without(arrows: list[Arrow], doors: set[str]) -> list[Arrow]:
    """Return the arrows with nodes that only pass on taken out."""
    result = list(arrows)
    for name in sorted(doors):
        into = [a for a, b in result if b == name]
        if not into:
            raise refused(f"Nothing arrives at node '{name}'.", CHECK)
        out = [b for a, b in result if a == name]
        result = [e for e in result if name not in e] + [(a, b) for a in into for b in out]
    return result
