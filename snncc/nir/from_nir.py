"""A network in the Neuromorphic Intermediate Representation, as plain serial PyTorch code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snncc.arguments import Check
from snncc.errors import LaunchError, OptionError
from snncc.nir.checks import STEP, check_file, refused
from snncc.nir.graph import Plan, flat
from snncc.nir.nodes import NodeReader
from snncc.nir.shapes import find_shapes
from snncc.nir.stages import Spike, Stage, above


class NIRModel(nn.Module):
    """The serial code of a NIR graph: a loop over time around all of its nodes.

    Use it as any model: ``snncc.compile(model)``.

    Attributes:
        stages: The nodes in order of evaluation, under `keys`.
        keys: The key of each node: its name with ``.`` written as ``/``.
        shapes: The shape of what leaves each node and input, without time and batch.
        dt: Length of a step, in seconds.
    """

    def __init__(self, plan: Plan, stages: dict[str, Stage], dt: float) -> None:
        super().__init__()
        self.keys: dict[str, str] = {}
        for name in plan.order:
            self.keys[name] = _key(name, set(self.keys.values()))
        self.stages = nn.ModuleDict({self.keys[name]: stages[name] for name in plan.order})
        self.order, self.inputs, self.outputs = plan.order, plan.inputs, plan.outputs
        self.sources, self.delayed = plan.sources, plan.delayed
        self.shapes = find_shapes(plan, stages)
        self.dt = dt

    def forward(self, *sequences: Tensor) -> Any:
        """Return the outputs [T, B, *] of inputs [T, B, *], in the order of the graph's nodes.

        One tensor is returned for a graph of one output, else a tuple.

        Raises:
            LaunchError: The inputs are not those of the graph.
        """
        self.check(sequences)
        states: dict[str, Any] = {}
        last: dict[str, Tensor] = {}
        outputs: list[list[Tensor]] = [[] for _ in self.outputs]
        for t in range(sequences[0].shape[0]):
            now = {name: x[t] for name, x in zip(self.inputs, sequences, strict=True)}
            for name in self.order:
                x = self.arriving(name, now, last, sequences[0])
                now[name], states[name] = self.stages[self.keys[name]](x, states.get(name))
            for collected, name in zip(outputs, self.outputs, strict=True):
                collected.append(self.arriving(name, now, last, sequences[0]))
            last = now
        stacked = tuple(torch.stack(collected) for collected in outputs)
        return stacked[0] if len(stacked) == 1 else stacked

    def check(self, sequences: tuple[Tensor, ...]) -> None:
        """Refuse sequences that are not those of the graph: nothing is broadcast."""
        if len(sequences) != len(self.inputs):
            raise LaunchError(
                f"The graph has {len(self.inputs)} inputs, not {len(sequences)}.",
                code="launch.count",
                hints=["Pass a sequence for each input node, in the order of the graph."],
            )
        for name, x in zip(self.inputs, sequences, strict=True):
            shape = self.shapes[name]
            fits = x.dim() >= 2 and shape in (None, tuple(x.shape[2:]))
            if not fits or x.shape[0] == 0 or x.shape[:2] != sequences[0].shape[:2]:
                raise LaunchError(
                    f"Input '{name}' takes [T, B, {', '.join(map(str, shape or ('*',)))}], "
                    f"not {list(x.shape)}.",
                    code="launch.sizes",
                    hints=["Give all sequences one length and one batch, and a step or more."],
                )

    def arriving(
        self, name: str, now: dict[str, Tensor], last: dict[str, Tensor], like: Tensor
    ) -> Tensor:
        """Return the sum of what arrives at a node in this step."""
        total: Tensor | None = None
        for source in self.sources[name]:
            if (source, name) not in self.delayed:
                value = now[source]
            elif source in last:
                value = last[source]
            else:  # the first step
                value = like.new_zeros(like.shape[1], *self.shapes[source] or ())
            total = value if total is None else total + value
        assert total is not None  # every node has a source
        return total


def from_nir(
    graph: Any | str | os.PathLike[str], *, dt: float = 1e-4, surrogate: Spike | None = None
) -> NIRModel:
    """Return the serial code of a NIR graph, ready for ``snncc.compile``.

    Conventions: neurons take one step of forward Euler of length ``dt``, fire where the new
    potential is *above* the threshold and reset in the same step; states start at 0; arrows into
    one node add up.  In a cycle, what a neuron sends back arrives one step later.  Weights become
    parameters, the constants of neurons become numbers or buffers.

    Reads Affine, Linear, Scale, Conv1d, Conv2d, AvgPool2d, SumPool2d, Flatten, Threshold, Delay, I,
    LI, IF, LIF, CubaLI, CubaLIF, and graphs in graphs.

    Args:
        graph: A ``nir.NIRGraph``, or the path of one (HDF5, read by the ``nir`` package).
        dt: Length of a step, in seconds: the unit of the time constants.
        surrogate: Spike function of ``v - v_threshold``; by default 1 above 0, with the derivative
            ``1 / (1 + (pi x) ** 2)``.

    Raises:
        OptionError: The graph cannot be read, or holds what has no serial code.

    Source: Pedersen et al. 2024, "Neuromorphic intermediate representation".
    """
    dt = STEP.positive(dt)
    if surrogate is not None and not callable(surrogate):
        raise _SURROGATE.refused(surrogate, "a function")
    plan = Plan(flat(_read(graph)))
    reader = NodeReader(dt, above if surrogate is None else surrogate)
    stages = {name: reader.stage(name, plan.nodes[name]) for name in plan.inner}
    plan.arrange(stages)
    return NIRModel(plan, stages, dt)


_SURROGATE = Check(
    "Option 'surrogate'", code="option.nir", hint="Leave it out, or pass a function of a tensor."
)


def _read(graph: Any) -> Any:
    """Return the graph of a file, or the graph itself."""
    try:
        import nir
    except ImportError as error:
        raise OptionError(
            "Reading NIR needs the package 'nir'.",
            code="option.nir",
            hints=["Install it: pip install 'snncc[export]'."],
        ) from error
    if isinstance(graph, nir.NIRGraph):
        return graph
    if not isinstance(graph, (str, os.PathLike)):
        raise refused(f"A {type(graph).__name__} is no NIR graph.", "Pass a graph or its path.")
    path = Path(graph)
    try:
        check_file(path)
        return nir.read(path)
    except OptionError:
        raise
    except Exception as error:  # whatever a reader says about a file that is no graph
        raise refused(
            f"'{path}' cannot be read as a NIR graph: {error}.", "Check the file."
        ) from error


def _key(name: str, taken: set[str]) -> str:
    """Return a name as a key of a module dictionary: no dots, no method of it, no other key."""
    key = name.replace(".", "/")
    while not key or key in taken or hasattr(nn.ModuleDict(), key):
        key += "_"
    return key
