"""One step of a chunk program on buffers of its own: what remains is the arithmetic.

Once the sizes of a step are known, every value has a place.  Views are made once; matrix products
write into their place; a neuron's kernel is bound to its arrays, its state updated where it lies.
A step is then a list of calls without arguments, and allocates nothing but the results it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.fx
from torch import Tensor

from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.events.currents import Sizes
from snncc.ir.sharing import shares_memory
from snncc.runtime.neuron import Neuron
from snncc.runtime.plans import ForwardPlan

Action = Callable[[], object]


_PLACES = (torch.int64, torch.int32)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an input of a step is copied to, with its time axis and without."""

    position: int
    whole: Tensor
    step: Tensor


class _Kernel(Protocol):
    neuron: Neuron


class StaticStep:
    """A step of fixed sizes.

    Args:
        program: The chunk program.
        states: The states before the step; they are copied.
        leaves: The leaves; those of the step's own input are copied.
        own: For each leaf whether it is an input of the step.
    """

    def __init__(
        self,
        program: ChunkProgram,
        states: Sequence[Tensor],
        leaves: Sequence[Tensor],
        own: Sequence[bool],
    ) -> None:
        self.elapsed = 0
        self.states = [_dense(state) for state in states]
        self._actions: list[Action] = []
        self._at_reset: list[Action] = []
        self._fixed: set[torch.fx.Node] = set()
        self._counted: set[torch.fx.Node] = set()
        self._values: dict[torch.fx.Node, Any] = {}
        given = [_dense(x) if is_own else x for x, is_own in zip(leaves, own, strict=True)]
        self._inputs = [
            _Place(i, x, x if axis is None else x.squeeze(axis))
            for i, (x, axis) in enumerate(zip(given, program.input_axes, strict=True))
            if own[i]
        ]
        is_fixed = [False] * len(states) + [not is_own for is_own in own]
        self._bind(program.graph, [*self.states, *given], is_fixed)
        outputs: Any = program.graph.output_node().args[0]
        results = [self._values[n] if isinstance(n, torch.fx.Node) else n for n in outputs]
        axes = program.output_axes
        self._results = [
            x if axis is None else x.select(axis, -1)
            for x, axis in zip(results, axes, strict=False)
        ]
        self._keep(results[len(axes) :])
        # A place out of range is found in the middle of a step, which is not taken then.
        is_indexed = any(
            isinstance(x, Tensor) and x.dtype in _PLACES for x in self._values.values()
        )
        self._saved = [(x.clone(), x) for x in self.states] if is_indexed else []
        self.move_to(states)  # kernels have run

    def __call__(self, elapsed: int, leaves: Sequence[Tensor]) -> list[Any]:
        """Take a step; its input, with or without its time axis, is one that it accepts."""
        self.elapsed = elapsed
        for place in self._inputs:
            value = leaves[place.position].detach()  # no other tensor here has a gradient
            (place.whole if value.dim() == place.whole.dim() else place.step).copy_(value)
        for before, state in self._saved:
            before.copy_(state)
        try:
            for action in self._actions:
                action()
        except BaseException:
            for before, state in self._saved:
                state.copy_(before)
            raise
        return [x.clone() if isinstance(x, Tensor) else self._number(x) for x in self._results]

    def _number(self, value: Any) -> Any:
        """Return a result that is no tensor: one that counts steps is in a cell."""
        return self.elapsed if value is self else value[0] if isinstance(value, list) else value

    def accepts(self, leaves: Sequence[Tensor]) -> bool:
        """Tell whether leaves, their inputs without time axes, have the sizes of this step."""
        return all(leaves[place.position].shape == place.step.shape for place in self._inputs)

    def move_to(self, states: Sequence[Tensor]) -> None:
        """Go on from other states."""
        if states is not self.states:
            for place, value in zip(self.states, states, strict=True):
                place.copy_(value)

    def fits(self, states: Sequence[Tensor], leaves: Sequence[Tensor]) -> bool:
        """Tell whether states and leaves, with their time axes, have the sizes of this step."""
        same = (a.shape == b.shape for a, b in zip(self.states, states, strict=True))
        places = self._inputs
        return all(same) and all(leaves[p.position].shape == p.whole.shape for p in places)

    def refreshed(self) -> StaticStep:
        """Compute anew what depends on the parameters alone."""
        for action in self._at_reset:
            action()
        return self

    def _bind(
        self, graph: torch.fx.Graph, given: Sequence[Tensor], is_fixed: Sequence[bool]
    ) -> None:
        count, *places = (n for n in graph.nodes if n.op == "placeholder")
        self._counted.add(count)
        self._values = {count: self, **dict(zip(places, given, strict=True))}
        self._fixed = {n for n, fixed in zip(places, is_fixed, strict=True) if fixed}
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            if self._fixed.issuperset(node.all_input_nodes) and not node.meta.get("impure"):
                self._fixed.add(node)
            self._values[node] = self._place(node)

    def _add(self, node: torch.fx.Node, action: Action) -> None:
        (self._at_reset if node in self._fixed else self._actions).append(action)

    def _place(self, node: torch.fx.Node) -> Any:
        """Return where the value of a node lies, and add the call that computes it."""
        if any(n in self._counted for n in node.all_input_nodes):
            return self._place_counted(node)
        target: Any = node.target
        args = torch.fx.node.map_arg(node.args, self._values.__getitem__)
        kwargs = torch.fx.node.map_arg(node.kwargs, self._values.__getitem__)
        if hasattr(target, "neuron"):
            return self._place_neuron(node, target, args)
        value = target(*args, **kwargs)
        if isinstance(value, Sizes):  # as numbers, the same at every step
            self._fixed.add(node)
            return value
        if not isinstance(value, Tensor):
            return self._place_several(node, value, lambda: target(*args, **kwargs))
        if shares_memory(value, (args, kwargs)):
            return value
        place = _dense(value)
        write = _writer(target, args, kwargs, place, value)
        self._add(node, write or (lambda: place.copy_(target(*args, **kwargs))))
        return place

    def _place_several(self, node: torch.fx.Node, value: Any, compute: Callable[[], Any]) -> Any:
        """Place the tensors of several results; numbers are the same at every step."""
        if not isinstance(value, tuple | list):
            return value
        places = [_dense(x) if isinstance(x, Tensor) else x for x in value]

        def write() -> None:
            for place, new in zip(places, compute(), strict=True):
                if isinstance(place, Tensor):
                    place.copy_(new)

        self._add(node, write)
        return places

    def _place_counted(self, node: torch.fx.Node) -> Any:
        """Place a value that depends on how many steps were taken."""
        target: Any = node.target
        cell: list[Any] = [None]

        def compute() -> Any:
            def read(n: torch.fx.Node) -> Any:
                value = self._values[n]
                if value is self:
                    return self.elapsed
                return value[0] if n in self._counted else value

            args = torch.fx.node.map_arg(node.args, read)
            return target(*args, **torch.fx.node.map_arg(node.kwargs, read))

        self.elapsed = self.elapsed or 1
        value = compute()
        if isinstance(value, Tensor):
            place = _dense(value)
            self._actions.append(lambda: place.copy_(compute()))
            return place

        def write() -> None:
            cell[0] = compute()

        cell[0] = value
        self._counted.add(node)
        self._actions.append(write)
        return cell

    def _place_neuron(self, node: torch.fx.Node, target: _Kernel, args: Any) -> list[Tensor]:
        """Bind a neuron's kernel to its arrays; a state that only it reads is updated in place."""
        length, *tensors = args
        interpreted = target.neuron.target == "torch"
        plan = None if interpreted else target.neuron.plan(tensors, length, training=False)
        if not isinstance(plan, ForwardPlan):
            call: Any = target
            return list(self._place_several(node, call(*args), lambda: call(*args)))
        written = [shape.allocate() for shape in plan.written]
        forward = target.neuron.program.forward
        names = [*forward.outputs, *forward.finals]
        starts = {state.name: state.initial for state in forward.states}
        given = dict(zip((*forward.step_inputs, *forward.lane_inputs), tensors, strict=True))
        sources = dict(zip(given, node.args[1:], strict=True))
        for i, name in enumerate(names):
            start = getattr(starts.get(name), "name", "")
            source: Any = sources.get(start)
            if i < len(forward.outputs) or source is None or len(source.users) > 1:
                continue
            if _alike(given[start], written[i]):
                written[i] = given[start]
        run = plan.bound(tensors, written)
        run()  # what reads its results is tried on these values
        self._actions.append(run)
        return written

    def _keep(self, ends: Sequence[Tensor]) -> None:
        """Move what the states become to where they are read."""
        for state, end in zip(self.states, ends, strict=True):
            if end is not state:
                self._actions.append(_mover(state, end))


def _mover(state: Tensor, end: Tensor) -> Action:
    return lambda: state.copy_(end)


def _dense(value: Tensor) -> Tensor:
    """Return a copy of a tensor in memory of its own."""
    return value.detach().clone()


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def _writer(target: Any, args: Any, kwargs: Any, place: Tensor, value: Tensor) -> Action | None:
    """Return a call that computes straight into its place, with the same bits; None without."""
    if getattr(target, "__name__", "") == "linear":
        # Bits of spikes are for gradients alone.
        own = {key: value for key, value in kwargs.items() if key != "spikes"}
        write = _linear_writer(*args, place=place, **own)
    elif target in _WITH_OUT:
        write = _with_out(target, args, kwargs, place)
    else:
        return None
    if write is None:
        return None
    try:
        write()
    except (TypeError, RuntimeError):
        return None
    return write if torch.equal(place.nan_to_num(0.5), value.nan_to_num(0.5)) else None


_WITH_OUT = frozenset(
    {
        torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.sum,
        torch.mean, torch.amax, torch.amin, torch.cat, torch.stack, torch.matmul, torch.mm,
        torch.bmm, torch.sigmoid, torch.exp, torch.tanh, torch.neg, torch.sqrt, torch.softmax,
    }
)  # fmt: skip


def _with_out(target: Any, args: Any, kwargs: Any, place: Tensor) -> Action:
    return lambda: target(*args, **kwargs, out=place)


def _linear_writer(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, place: Tensor
) -> Action | None:
    """Return the product of a linear layer into its place."""
    if not (x.is_contiguous() and place.is_contiguous() and x.dim() >= 2 and weight.dim() == 2):
        return None
    rows, out, columns = x.flatten(0, -2), place.view(-1, weight.shape[0]), weight.t()
    if bias is None:
        return lambda: torch.mm(rows, columns, out=out)
    return lambda: torch.addmm(bias, rows, columns, out=out)
