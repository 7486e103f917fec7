"""Notice cheaply whether the Python state of a model is what it was at the call before.

A recording depends on the model's attributes, flags and tensor types: on its *signature*
(`snncc.frontend.state.signature`).  To take it walks over all of the model, which costs as much as
a small kernel; between two calls hardly anything changes.  A `Watch` therefore keeps what the walk
found, as flat lists, and compares in a few passes of C code: the names, the identity of what cannot
change without becoming another object, that what was empty is empty, the traits of parameters, and
a description of what else can change (states, containers).
Whatever differs leads to a new walk, so a watch can be too careful but not too careless.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableMapping, Sequence
from operator import attrgetter, getitem, is_
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.frontend.state.paths import Variables
from snncc.frontend.state.signature import Describer, Shape, Shapes
from snncc.frontend.state.sources import Holder, gather, walk
from snncc.ir.tape import SourceKind, Tape

_CONTAINERS = (list, dict, tuple, deque)
# Containers of which nothing but their type is left to describe once they are empty.
_PLAIN_CONTAINERS = frozenset({list, dict, OrderedDict, tuple, deque})
# What `Describer` says of a parameter, besides which one it is.
_traits = attrgetter("dtype", "device", "requires_grad", "layout", "shape")

# The holder of a source's tensor and its key there; None stands for the leaves of the arguments.
_Place = tuple[Any, Any]


class State:
    """A state that a model was seen in; two calls in equal states have one such object."""

    def __init__(self, named: list[Any]) -> None:
        self._references = [_reference(value) for value in named]

    @property
    def exists(self) -> bool:
        """Whether all objects live that the state names by their identity.

        When one is gone, another object may have its identity, and the state may only seem equal.
        """
        return all(reference() is not None for reference in self._references)


class StateWatcher:
    """Tells the states of a model apart, and reads the model's tensors.

    Args:
        model: The model.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model = model
        self._states: dict[Hashable, State] = {}
        self._watch: _Watch | None = None

    def state(self) -> tuple[State, Shapes]:
        """Return the state that the model is in, and the shapes of tensors that it leaves free."""
        watch = self._watch
        if watch is None or watch.has_changed():
            self._watch = None  # what it holds may go
            watch = self._watch = _Watch(self._model, self._states)
        return watch.state, watch.shapes

    def gather(self, tape: Tape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the tensors of a tape's sources, right after `state` found the model's state.

        Args:
            tape: A recording of the model in this state.
            args: The arguments.
            kwargs: The keyword arguments.
        """
        places = None if self._watch is None else self._watch.places(tape)
        if places is None:
            return gather(tape, self._model, args, kwargs)
        leaves, _ = flatten(args, kwargs)
        return [(leaves if holder is None else holder)[key] for holder, key in places]


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Hashable]:
    """Return the leaves of the arguments, and what tells their structure from any other."""
    if not kwargs and all(isinstance(arg, Tensor) for arg in args):
        return list(args), len(args)
    return pytree.tree_flatten((args, kwargs))


class _Watch:
    """What a walk over a model found, for comparison."""

    def __init__(self, model: Callable[..., Any], states: dict[Hashable, State]) -> None:
        holders = walk(model)
        self._owners = list({id(holder.owner): holder.owner for holder in holders}.values())
        self._types = [type(owner) for owner in self._owners]
        self._namespaces = [holder.entries for holder in holders]
        self._variables = [x for x in self._namespaces if isinstance(x, Variables)]
        self._names = list(map(list, self._namespaces))
        ways = _ways(holders)
        self._same = _Entries([*ways["identical"], *ways["parameter"]])
        self._objects = list(self._same.now())
        self._empty = _Entries(ways["empty"])
        self._kinds = list(map(type, self._empty.now()))
        self._parameters = list(_Entries(ways["parameter"]).now())
        self._traits = list(map(_traits, self._parameters))
        self._others = _Entries(ways["described"])
        self._seen = self._describe()
        self._tensors: dict[str, tuple[MutableMapping[str, Any], str]] = {
            holder.name(key): (holder.entries, key)
            for holder in holders
            for key, value in holder.items()
            if isinstance(value, Tensor)
        }
        self._places: dict[Tape, list[_Place] | None] = {}
        describer = Describer(holders)
        signature = describer.describe_all(holders)
        self.shapes, self._named = tuple(describer.shapes), describer.named
        state = states.get(signature)
        if state is None or not state.exists:
            state = states[signature] = State(self._named)
        self.state = state

    def has_changed(self) -> bool:
        """Tell whether the model may be in another state."""
        if list(map(type, self._owners)) != self._types:
            return True
        if not all(variables.are_known for variables in self._variables):
            return True
        if list(map(list, self._namespaces)) != self._names:
            return True
        empty = list(self._empty.now())
        return not (
            all(map(is_, self._same.now(), self._objects))
            and list(map(type, empty)) == self._kinds
            and not any(empty)
            and list(map(_traits, self._parameters)) == self._traits
            and self._describe() == self._seen
        )

    def _describe(self) -> tuple[list[Hashable], list[Shape]] | None:
        """Describe what is compared neither by identity nor by being empty, if there is any."""
        if not self._others:
            return None
        describer = Describer()
        describer.number(self._parameters)  # one of them may be among the others, too
        return list(map(describer.describe, self._others.now())), describer.shapes

    def places(self, tape: Tape) -> list[_Place] | None:
        """Return where the tensors of a tape are; None where one has to be looked for each time."""
        if tape not in self._places:
            places = [self._place(source) for source in tape.sources]
            found = [place for place in places if place is not None]
            self._places[tape] = found if len(found) == len(places) else None
        return self._places[tape]

    def _place(self, source: Any) -> _Place | None:
        if source.kind is SourceKind.INPUT:
            return None, source.index
        if source.tensor is not None:
            return (source.tensor,), 0
        return self._tensors.get(source.name)


class _Entries:
    """Some entries of namespaces, which are read in one pass of C code."""

    def __init__(self, places: Sequence[tuple[MutableMapping[str, Any], str]]) -> None:
        self._namespaces = [namespace for namespace, _ in places]
        self._keys = [key for _, key in places]

    def __len__(self) -> int:
        return len(self._keys)

    def now(self) -> Iterator[Any]:
        """Iterate over the values that they have now."""
        return map(getitem, self._namespaces, self._keys)


def _ways(holders: Iterable[Holder]) -> dict[str, list[tuple[MutableMapping[str, Any], str]]]:
    """Return the entries that are watched in each way; of hidden ones where others live."""
    namespaces = {id(holder.entries) for holder in holders}
    ways = defaultdict(list)
    for holder in holders:
        for key, value in holder.entries.items():
            if key not in holder.hidden:
                ways[_way(value)].append((holder.entries, key))
            elif id(value) in namespaces:
                ways["identical"].append((holder.entries, key))
    return ways


def _way(value: Any) -> str:
    """Return how a value is watched."""
    if type(value) is nn.Parameter:
        return "parameter"
    if isinstance(value, Tensor):
        return "described"
    if not isinstance(value, _CONTAINERS):
        return "identical"
    return "empty" if type(value) in _PLAIN_CONTAINERS and not value else "described"


def _reference(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:  # bytes, complex numbers, what has slots: keep it
        return lambda: value
