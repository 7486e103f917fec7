"""L0: the flat record of one run of the user's model.

The record is a pure function of tensors, a list of nodes (`snncc.ir.record`).  They are

* placeholders: one for each tensor that the run read and did not compute, in the order of
  `Tape.sources`;
* calls of *canonical* operators (`snncc.frontend.operators.canonical`): no methods, no in-place
  operators, no operator dunders, no writes through views.  Arguments are nodes, literals, and
  (nested) tuples, lists and slices of them.  Integers read off shapes are nodes too
  (``size(tensor, dim)``) and so is integer arithmetic on them.

The outputs are a flat tuple, the leaves of the user's return value followed by the values of
`Tape.writes`.  `Tape.graph` is the same as a ``torch.fx.Graph``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from snncc.errors import InternalError, Location
from snncc.ir.record import Node, to_fx


class SourceKind(Enum):
    """Where a tensor that the run read comes from."""

    INPUT = "input"  # a leaf of the arguments
    PARAMETER = "parameter"  # of the model, by qualified name
    BUFFER = "buffer"  # of the model, by qualified name
    ATTRIBUTE = "attribute"  # a plain tensor attribute of a module: state carried between calls
    CONSTANT = "constant"  # created outside the run, or made from Python data during the run


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A tensor that the run read and did not compute.

    Attributes:
        kind: Where it comes from.
        name: For INPUT the leaf's path in the arguments (``x``, ``args[1].v``), else the qualified
            name of the parameter, buffer or attribute (``lif1.v``), or a unique name.
        index: For INPUT the position among the flattened arguments.
        tensor: For CONSTANT the tensor itself, held by reference so that later changes of its
            value are seen.
    """

    kind: SourceKind
    name: str
    index: int | None = None
    tensor: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """A change that the run left behind: the value that a buffer or attribute has after it.

    ``value`` is the position of the new value among the outputs of the graph.  ``in_place`` tells
    whether the user's code changed the tensor object itself (``buf.add_(1)``) or rebound the
    attribute (``self.v = v``).
    """

    source: Source
    value: int
    in_place: bool


@dataclass(frozen=True, slots=True)
class Position:
    """Stands for an output of the graph; ``as_number`` is its ``.item()``."""

    index: int
    as_number: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Stands for an object that the model, or an argument, holds, by its name."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """An attribute whose value after the run is not the one before: how to bind it again.

    Attributes:
        name: Its name.
        spec: How its value unflattens.
        leaves: A `Position` for what the graph computes, `Held` for an object that was there, else
            a plain Python object.
        in_place: Whether the container itself was changed (``self.states.append(v)``).
    """

    name: str
    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    in_place: bool


@dataclass(frozen=True, slots=True, eq=False)
class Guard:
    """A single number that the model holds as a tensor, and that steered the run."""

    source: Source
    value: bool | int | float


@dataclass(frozen=True, eq=False)
class Read:
    """A global, or an attribute of a class or object, that the user's code reads.

    Attributes:
        owner: What has it: a module, class or object.
        variables: Where it is.
        name: Its name.
        value: What it stood for.
        describe: Returns what a number or container holds; None for what is compared by identity.
    """

    owner: str
    variables: Mapping[str, Any]
    name: str
    value: Any
    describe: Callable[[Any], Any] | None = None

    @functools.cached_property
    def _content(self) -> Any:
        return None if self.describe is None else self.describe(self.value)

    def __post_init__(self) -> None:
        self._content  # noqa: B018  # a container may change

    @property
    def holds(self) -> bool:
        """Whether the name stands for the same value."""
        now = self.variables.get(self.name, Read)
        if self.describe is None:
            return now is self.value
        return type(now) is type(self.value) and bool(self.describe(now) == self._content)


@dataclass(frozen=True, slots=True)
class Count:
    """A counter that Python compared with a size, as ``while t < T`` does.

    Two recordings at different sizes in which it begins at the same number, and ends equally far
    from the size, show that it follows the size: the program is the same at others.

    Attributes:
        path: The calls that lead to the statement.
        where: The statement.
        comparison: What was compared, and how.
        start: The first number.
        end: How much the number after the last is more than the size.
    """

    path: tuple[int, ...]
    where: Location | None
    comparison: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Placement:
    """How a tensor that the run returned or kept lies in memory.

    Attributes:
        memory: The number of its memory; tensors with the same number share it.
        is_view: Whether it is a view of another tensor, for autograd.
        is_contiguous: Whether its elements lie in order without gaps.
        is_kept: Whether an attribute was bound to it.
    """

    memory: int
    is_view: bool
    is_contiguous: bool
    is_kept: bool


@dataclass(eq=False)
class Tape:
    """One recorded run.

    Attributes:
        places: The placeholders.
        calls: The calls, in order.
        outputs: What the record returns: nodes and literals.
        sources: For each placeholder, in order, where its tensor comes from.
        in_spec: How ``(args, kwargs)`` flatten; INPUT sources index the flattened leaves.
        out_spec: How the user's return value unflattens from the leading graph outputs.
        output_leaves: For each leaf of the return value: its `Position` among the outputs, `Held`
            for an object that was there, or a plain Python object that was returned as it is.
            Integers are outputs of the record.
        vain: The calls that no output depends on; outputs depend on another call of the statement.
        writes: What the run left behind in buffers and attributes, tensor by tensor.
        bindings: The attributes that were bound anew, with their Python structure; an attribute
            that was only changed in place is in ``writes`` alone.
        deleted: The names of attributes that are gone.
        guards: What must be as it was for the tape to hold.
        is_steered_by_sizes: Whether Python compared a size with a number, as ``min(T, 50)`` does,
            or found two sizes unequal: the program may be another one at other sizes.
        counts: The counters that Python compared with sizes.
        reads: The globals and class attributes that the user's code reads.
        asks_for_layouts: Whether that code may ask tensors whether they are contiguous.
        placements: For each output how it lies in memory; None for what is no tensor, or is only
            written into one.
        memories: For each source the number of its memory, None where nobody shares it.
        result: What the user's code returned in the recorded run.
        is_forgotten: Whether the calls were dropped; everything else is kept.
    """

    places: tuple[Node, ...]
    calls: tuple[Node, ...]
    outputs: tuple[Any, ...]
    sources: tuple[Source, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    output_leaves: tuple[Any, ...]
    vain: frozenset[Node] = frozenset()
    writes: tuple[Write, ...] = ()
    bindings: tuple[Binding, ...] = ()
    deleted: tuple[str, ...] = ()
    guards: tuple[Guard, ...] = ()
    is_steered_by_sizes: bool = False
    counts: tuple[Count, ...] = ()
    reads: tuple[Read, ...] = ()
    asks_for_layouts: bool = False
    placements: tuple[Placement | None, ...] = ()
    memories: tuple[int | None, ...] = ()
    result: Any = field(default=None, repr=False)
    is_forgotten: bool = False

    @functools.cached_property
    def graph(self) -> torch.fx.Graph:
        """The record as an fx graph, without what is computed in vain."""
        if self.is_forgotten:
            raise InternalError("the calls of this record are forgotten")
        calls = [node for node in self.calls if node not in self.vain]
        return to_fx(self.places, calls, self.outputs)

    def forget_calls(self) -> None:
        """Drop the calls, which a long sequence has many of and a compiled model needs no more."""
        self.calls, self.outputs, self.vain, self.is_forgotten = (), (), frozenset(), True
        self.__dict__.pop("graph", None)
