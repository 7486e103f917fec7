"""Record what torch and the kernels do in a step, and do it again in the same memory.

Every tensor of a recorded step stays where it is.  To take the step again, each operator runs once
more and writes where it wrote; a view is there already.  What the step reads, its inputs, states
and parameters, is read where it lay when the step was recorded.

Numerics: bitwise; each operator is called again, in its form that writes into a given tensor only
where that form was seen to give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from snncc.runtime.launch import Launch, noted_launches

Action: TypeAlias = Callable[[], object]

# What hands values to Python, or makes sizes of them: another step might do something else.  And
# what makes another view of the tensor that it is given, which would then be taken for its result.
_DECIDES = frozenset(
    {
        torch.Tag.data_dependent_output,
        torch.Tag.dynamic_output_shape,
        torch.Tag.inplace_view,
    }
)


@dataclass(frozen=True, slots=True)
class _Call:
    """An operator of torch and what it returned."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def reads(self) -> Iterator[Tensor]:
        """The tensors that it was given."""
        return _tensors((self.args, self.kwargs))

    @property
    def read(self) -> set[int]:
        """Where these lie."""
        return {memory_of(x) for x in self.reads}


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operators and launches of kernels while it is entered.

    Attributes:
        calls: What ran, in order.
        is_fixed: Whether another step does the same: no value of a tensor decided what ran, and
            every tensor is seen as it was made.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call | Launch] = []
        self.is_fixed = True
        self._open = ExitStack()

    def __enter__(self) -> Any:
        self._open.enter_context(noted_launches(self.calls.append))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._open.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.calls.append(_Call(func, args, kwargs, result))
        if not _DECIDES.isdisjoint(func.tags):
            self.is_fixed = False
        return result


class Replay:
    """Does again what was recorded.

    Args:
        calls: What was recorded.
        wanted: The results that a replay returns, as tensors of their own.
        is_last: Whether nothing else reads what was recorded; results need no place then.

    Attributes:
        read: Where what it reads lies.
        sizes: For each place that it keeps its bytes.
    """

    def __init__(
        self, calls: Sequence[_Call | Launch], wanted: Sequence[Tensor | None], *, is_last: bool
    ) -> None:
        self._wanted = [None if x is None else x.data for x in wanted]
        self._fresh: list[Tensor | None] = [None] * len(wanted)
        self.read = {memory_of(x) for call in calls for x in call.reads}
        self._makers = self._find_makers(calls) if is_last else {}
        made = self._makers.values()
        self._cloned = [
            (i, x) for i, x in enumerate(self._wanted) if x is not None and i not in made
        ]
        self._actions: list[Action] = []
        for call in calls:
            action = call.again if isinstance(call, Launch) else self._again(call)
            if action is not None:
                self._actions.append(action)
        self.sizes = {
            memory_of(x): x.untyped_storage().nbytes()
            for call in calls
            for x in (*call.reads, *(_tensors(call.result) if isinstance(call, _Call) else ()))
            if memory_of(x) not in self._makers
        }
        self._wanted.clear()  # results without a place are not kept

    def __call__(self) -> list[Tensor | None]:
        """Run, and return the wanted results."""
        for action in self._actions:
            action()
        results = self._fresh.copy()
        self._fresh[:] = [None] * len(results)
        for i, place in self._cloned:
            results[i] = place.clone()
        return results

    def _find_makers(self, calls: Sequence[_Call | Launch]) -> dict[int, int]:
        """Return which wanted results are all that an operator leaves in some memory."""
        uses: dict[int, list[_Call | Launch]] = {}
        for call in calls:
            if isinstance(call, _Call) and call.operator.is_view:
                continue
            touched = {memory_of(x) for x in call.reads}
            if isinstance(call, _Call):
                touched |= {memory_of(x) for x in _tensors(call.result)}
            for place in touched:
                uses.setdefault(place, []).append(call)
        places = [None if x is None else memory_of(x) for x in self._wanted]
        return {
            place: position
            for position, place in enumerate(places)
            if place is not None and places.count(place) == 1 and _is_made_once(place, uses)
        }

    def _again(self, call: _Call) -> Action | None:
        """Return what runs a call again; None for a view, and for memory without content."""
        operator = call.operator
        if operator.is_view or operator.overloadpacket.__name__ in _EMPTY:
            return None
        args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.data, (call.args, call.kwargs))
        if operator._schema.is_mutable:
            return partial(operator, *args, **kwargs)
        results = [x.data for x in _tensors(call.result)]
        if all(memory_of(x) in call.read for x in results):
            return None
        function = _plain(operator, args, kwargs)
        make = partial(function, *args, **kwargs)
        wanted = [self._makers.get(memory_of(x)) for x in results]
        if not isinstance(call.result, Tensor):
            return self._copying(make, results, wanted)
        if wanted[0] is not None:
            return self._keeping(make, results[0], wanted[0])
        return _writing(operator, make, results[0])

    def _keeping(self, make: Callable[[], Tensor], result: Tensor, position: int) -> Action:
        """Return a call whose result is a wanted one, seen as the recorded one was."""
        fresh, like = self._fresh, self._wanted[position]
        assert like is not None
        if (result.shape, result.stride()) == (like.shape, like.stride()):

            def keep() -> None:
                fresh[position] = make()

            return keep
        geometry = like.shape, like.stride(), like.storage_offset()

        def keep_seen() -> None:
            fresh[position] = make().as_strided(*geometry)

        return keep_seen

    def _copying(
        self, make: Callable[[], Any], places: Sequence[Tensor], wanted: Sequence[int | None]
    ) -> Action:
        """Return a call with several results: each is wanted itself, or copied to its place."""
        cell: list[Any] = [None]
        actions = [
            partial(self._copy, cell, i, place)
            if position is None
            else self._keeping(partial(cell.__getitem__, i), place, position)
            for i, (place, position) in enumerate(zip(places, wanted, strict=True))
        ]

        def run() -> None:
            cell[:] = _tensors(make())
            for action in actions:
                action()
            cell.clear()

        return run

    @staticmethod
    def _copy(cell: list[Any], i: int, place: Tensor) -> None:
        place.copy_(cell[i])


def _is_made_once(place: int, uses: Mapping[int, Sequence[_Call | Launch]]) -> bool:
    """Tell whether an operator makes what lies in a place, and nothing else uses it."""
    using = uses.get(place, ())
    return len(using) == 1 and isinstance(using[0], _Call) and place not in using[0].read


# Nodes of autograd that compute with another formula, to other bits, while operators are recorded.
_UNLIKE = frozenset({"ProdBackward0", "ProdBackward1", "CumprodBackward0"})


def computes_alike(results: Sequence[Tensor]) -> bool:
    """Tell whether torch computes the gradient of results in the same way while it is recorded."""
    waiting, seen = [x.grad_fn for x in results], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return _UNLIKE.isdisjoint(node.name() for node in seen)


_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in pytree.tree_leaves(values) if isinstance(x, Tensor))


def memory_of(x: Tensor) -> int:
    """Return what tells the memory of a tensor from that of others, empty ones too."""
    cdata: int = x.untyped_storage()._cdata
    return cdata


def _plain(operator: Any, args: Any, kwargs: Any) -> Any:
    """Return the function of torch that calls an operator; it takes less time than the operator."""
    function = getattr(torch, operator.overloadpacket.__name__, None)
    if function is None or torch.Tag.nondeterministic_seeded in operator.tags:
        return operator
    try:
        found, expected = function(*args, **kwargs), operator(*args, **kwargs)
    except (TypeError, RuntimeError):
        return operator
    return function if is_same(found, expected) else operator


def _writing(operator: Any, make: partial[Any], place: Tensor) -> Action:
    """Return a call that leaves its result in its place."""
    if torch.Tag.nondeterministic_seeded not in operator.tags and make().shape == place.shape:
        out = torch.empty_strided(place.shape, place.stride(), dtype=place.dtype)
        try:
            make(out=out)
            if is_same(out, make()):
                return partial(make, out=place)
        except (TypeError, RuntimeError):
            pass
    return lambda: place.copy_(make())


def is_same(a: Any, b: Any) -> bool:
    """Tell whether two results have the same bits, but for those of NaN."""
    pairs = list(zip(_tensors(a), _tensors(b), strict=True))
    return all(x.dtype is y.dtype and x.shape == y.shape and _has_same_bits(x, y) for x, y in pairs)


def _has_same_bits(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5))
