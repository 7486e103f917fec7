"""From a chunk program to a network of known sizes.

The program is run for one step on an example.  Each value that an operator makes gets a buffer;
what shares memory with its argument is a view of that buffer.  What depends on parameters alone is
computed here, once, and becomes a weight.  Loops that stayed (recurrent weights) are one step long
and are laid out in line.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import UnsupportedError
from snncc.export.names import parameter_name
from snncc.export.network import operators
from snncc.export.network.events import EVENTS, apply_events
from snncc.export.network.nodes import Array, Buffer, Copy, Home, Network, Steps
from snncc.export.network.one_step import after_a_step, begun, in_line
from snncc.export.remedies import OTHER_OPERATORS, OTHER_TYPES, OUTSIDE
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.time_loop import Fill


def trace(
    program: ChunkProgram,
    leaves: Sequence[Tensor],
    own: Sequence[bool],
    names: Sequence[str],
    wanted: Sequence[int],
) -> Network:
    """Return the network of a chunk program.

    Args:
        program: The program.
        leaves: An example of one step, with the time axis, and the parameters of the model.
        own: For each leaf whether it is an input of the step.
        names: The names of the leaves.
        wanted: Which outputs of the program the library has, in order.

    Raises:
        UnsupportedError: An operator has no form in a library, with the user's line.
    """
    return Tracer(program, leaves, own, names, wanted).network()


class Tracer:
    """Runs a program and writes down what it does; ``values`` are tensors that stand for arrays."""

    def __init__(
        self,
        program: ChunkProgram,
        leaves: Sequence[Tensor],
        own: Sequence[bool],
        names: Sequence[str],
        wanted: Sequence[int],
    ) -> None:
        self.wanted = wanted
        self.program = program
        self.graph = in_line(program.graph)
        self.leaves, self.own, self.names = leaves, own, names
        self.result = Network()
        self.values: dict[torch.fx.Node, Any] = {}
        self.fixed: set[torch.fx.Node] = set()
        self.buffers: dict[int, Buffer] = {}
        self.kept: list[Tensor] = []
        self.homes: list[Tensor] = []
        self.node: torch.fx.Node | None = None

    def network(self) -> Network:
        """Return the network."""
        types = {x.dtype for x in self.leaves if x.is_floating_point()}
        if len(types) > 1 or not types <= {torch.float32, torch.float64}:
            kinds = ", ".join(sorted(map(str, types)))
            raise self.refusal(f"its tensors are of {kinds}", OTHER_TYPES)
        self.result.is_double = types == {torch.float64}
        count, *places = (n for n in self.graph.nodes if n.op == "placeholder")
        self.values[count] = Steps()
        self.state_nodes = places[: len(self.program.states)]
        given = self.place_inputs()
        self.place_states()
        if self.program.has_first:
            self.take_first(given)
        self.give(places[len(self.program.states) :], given)
        self.run(self.graph)
        self.finish()
        buffers = list(dict.fromkeys(self.buffers.values()))
        self.result.weights = [b for b in buffers if b.home is Home.WEIGHT]
        self.result.work = [b for b in buffers if b.home is Home.WORK]
        return self.result

    def place_inputs(self) -> list[Tensor]:
        """Give each input of a step its buffer; return what stands for all leaves."""
        given = []
        axes = self.program.input_axes
        for x, is_own, name, axis in zip(self.leaves, self.own, self.names, axes, strict=True):
            if not is_own:
                given.append(x.detach())
                continue
            if not x.is_floating_point():
                raise self.refusal(f"its input '{name}' is of {x.dtype}", OTHER_TYPES)
            step = x.detach() if axis is None else x.detach().select(axis, 0)
            stand, buffer = self.new_buffer(name, Home.INPUT, step)
            given.append(stand if axis is None else stand.unsqueeze(axis))
            self.result.inputs.append(buffer)
            self.result.shapes[buffer.name] = tuple(step.shape)
        return given

    def give(self, places: Sequence[torch.fx.Node], given: Sequence[Tensor]) -> None:
        """Let the placeholders of a graph stand for the leaves."""
        self.values.update(zip(places, given, strict=True))
        self.fixed.update(n for n, is_own in zip(places, self.own, strict=True) if not is_own)

    def run(self, graph: torch.fx.Graph) -> None:
        """Write down the operators of a graph."""
        for node in graph.nodes:
            if node.op == "call_function":
                self.node = node
                self.values[node] = self.value(node)
        self.node = None

    def take_first(self, given: Sequence[Tensor]) -> None:
        """Write down the first step, which leaves the states that the others start from."""
        graph = self.program.start
        self.give([n for n in graph.nodes if n.op == "placeholder"], given)
        self.run(graph)
        results: Any = graph.output_node().args[0]
        count = len(self.program.output_axes)
        moves = self.outputs(results[:count])
        for node, state in zip(self.state_nodes, self.program.states, strict=True):
            if isinstance(state.start, Fill):
                continue
            end, home = results[count + state.start], self.values[node]
            if end not in self.fixed:
                self.buffers[_storage(home)].values = 0.0
                moves.append(
                    Copy(self.array(self.values[end].expand(home.shape)), self.array(home))
                )
        for move in moves:
            self.add(move)
        self.result.first = len(self.result.operations)

    def place_states(self) -> None:
        """Give each state its buffer, with what it starts from."""
        starts = self.starts()
        results: Any = self.graph.output_node().args[0]
        ends = results[len(self.program.output_axes) :]
        for node, state, start, end in zip(
            self.state_nodes, self.program.states, starts, ends, strict=True
        ):
            self.node = end  # a refusal shows the line that makes it
            stand, buffer = self.new_buffer(state.name, Home.STATE, self.ends[state.name])
            buffer.values = start if isinstance(start, float) else start.expand(stand.shape)
            self.values[node] = stand
            self.result.states.append(buffer)
        self.node = None

    def starts(self) -> list[float | Tensor]:
        """Return what the states start from; run one step to see their sizes."""
        begins = begun(self.program, self.leaves, self.own)
        if begins is None:
            raise self.refusal("a state starts from a value of the input")
        ends = after_a_step(self.program, self.leaves, begins)
        self.ends = {s.name: e for s, e in zip(self.program.states, ends, strict=True)}
        return [
            float(s.start.value) if isinstance(s.start, Fill) else begins[s.start].detach()
            for s in self.program.states
        ]

    def value(self, node: torch.fx.Node) -> Any:
        """Return what stands for the value of a node, writing down its operation if it has one."""
        target: Any = node.target
        args = torch.fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs = torch.fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if node.meta.get("impure"):
            raise self.refusal("it draws random numbers or changes a buffer", OUTSIDE)
        if self.fixed.issuperset(node.all_input_nodes):
            self.fixed.add(node)
            with torch.no_grad():
                return target(*args, **kwargs)
        if isinstance(target, EVENTS):
            return apply_events(self, target, args)
        if any(isinstance(x, Steps) for x in pytree.tree_leaves((args, kwargs))):
            return operators.apply_counted(self, target, args)
        return operators.apply(self, target, args, kwargs)

    def apply(self, target: Any, args: tuple[Any, ...]) -> Any:
        """Write down one more operator and return what stands for its result."""
        return operators.apply(self, target, args, {})

    def new_buffer(self, name: str, home: Home, like: Tensor) -> tuple[Tensor, Buffer]:
        """Return a dense tensor that stands for a new buffer, and the buffer."""
        if like.dtype not in (torch.float32, torch.float64, torch.bool):
            raise self.refusal(f"'{name}' is of {like.dtype}", OTHER_TYPES)
        stand = torch.empty(like.shape, dtype=like.dtype).copy_(like)
        buffer = Buffer(self.unique(name, home), home, stand.numel())
        self.buffers[_storage(stand)] = buffer
        self.kept.append(stand)
        return stand, buffer

    def unique(self, name: str, home: Home) -> str:
        """Return a C identifier that resembles a name, in no case taken in its home.

        Inputs and outputs share one: they are parameters of one function.
        """
        plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in name).strip("_") or "x"
        plain = f"x{plain}" if plain[0].isdigit() else plain
        parameters = (Home.INPUT, Home.OUTPUT)
        homes, plain = (
            (parameters, parameter_name(plain)) if home in parameters else ((home,), plain)
        )
        taken = {b.name.upper() for b in self.buffers.values() if b.home in homes}
        numbers = (f"{plain}{n}" for n in range(2, len(taken) + 3))
        return next(n for n in (plain, *numbers) if n.upper() not in taken)

    def array(self, tensor: Tensor) -> Array:
        """Return the array that a tensor stands for; what is no buffer yet becomes a weight."""
        buffer = self.buffers.get(_storage(tensor))
        if buffer is None:
            if not bool(torch.isfinite(tensor).all()) and tensor.dtype is not torch.bool:
                raise self.refusal("a weight is not a finite number")
            small = tensor[tuple(slice(0, 1) if s == 0 else slice(None) for s in tensor.stride())]
            name = self.node.name if self.node is not None else "weight"
            stand, buffer = self.new_weight(name, small)
            tensor = stand.expand(tensor.shape)
            del small
        offset = int(tensor.storage_offset())
        return Array(buffer, tuple(tensor.shape), tuple(tensor.stride()), offset)

    def new_weight(self, name: str, values: Tensor) -> tuple[Tensor, Buffer]:
        """Return a dense tensor that stands for a weight, and its buffer; equal ones share one."""
        stand, buffer = self.new_buffer(name, Home.WEIGHT, values)
        numbers = stand.to(torch.float64 if self.result.is_double else torch.float32)
        buffer.values = numbers
        for known in self.buffers.values():
            if known is not buffer and known.home is Home.WEIGHT and _is_same(known, numbers):
                self.buffers[_storage(stand)] = known
                return stand, known
        return stand, buffer

    def make(self, like: Tensor, name: str = "") -> tuple[Tensor, Array]:
        """Return a new dense working buffer for a result, and its array."""
        assert self.node is not None
        stand, _ = self.new_buffer(name or self.node.name, Home.WORK, like)
        return stand, self.array(stand)

    def dense(self, tensor: Tensor) -> Array:
        """Return a tensor as a dense array, copying it where it is not."""
        array = self.array(tensor)
        if array.is_dense:
            return array
        _, copy = self.make(tensor)
        self.add(Copy(array, copy))
        return copy

    def add(self, operation: Any) -> None:
        """Write down an operation, and where the user wrote it."""
        self.result.operations.append(operation)
        where = self.node.meta.get("where") if self.node is not None else None
        self.result.locations.append(where)

    def refusal(self, reason: str, hint: str = OTHER_OPERATORS) -> UnsupportedError:
        """Return the error that the network cannot be exported."""
        nodes = () if self.node is None else (self.node, *self.node.users)
        where = next(filter(None, (node.meta.get("where") for node in nodes)), None)
        return UnsupportedError(
            "The network cannot be exported as a library.",
            code="unsupported.export",
            location=where,
            notes=[reason],
            hints=[hint],
        )

    def refuse_indices(self) -> None:
        """Refuse an operator whose second result, where extremes are, is needed.

        Raises:
            UnsupportedError: It is.
        """
        users = () if self.node is None else self.node.users
        if any(user.target is operator.getitem and user.args[1] != 0 for user in users):
            raise self.refusal("it asks where the extremes are: a library has no indices")

    def finish(self) -> None:
        """Copy the results to the caller and what the states become to the states."""
        results: Any = self.graph.output_node().args[0]
        axes = self.program.output_axes
        moves = self.outputs(results[: len(axes)])
        self.result.every_step = tuple(axes[position] is not None for position in self.wanted)
        ends = [self.array(self.values[node]) for node in results[len(axes) :]]
        homes = [self.array(self.values[node]) for node in self.state_nodes]
        for i, (end, home) in enumerate(zip(ends, homes, strict=True)):
            if end.buffer is home.buffer:
                continue
            if end.buffer.home is Home.STATE:  # it may be overwritten before it is read
                _, safe = self.held(end)
                self.add(Copy(end, safe))
                ends[i] = safe
        moves += [
            Copy(end, home)
            for end, home in zip(ends, homes, strict=True)
            if end.buffer is not home.buffer
        ]
        for move in moves:
            self.add(move)

    def outputs(self, nodes: Sequence[Any]) -> list[Copy]:
        """Return the copies of outputs to the caller; the first step says how large they are."""
        if not all(isinstance(nodes[position], torch.fx.Node) for position in self.wanted):
            raise self.refusal("it returns something that is no tensor")
        moves = []
        for i, position in enumerate(self.wanted):
            value, axis = self.values[nodes[position]], self.program.output_axes[position]
            step = value if axis is None else value.select(axis, 0)
            if i == len(self.homes):
                name = "y" if len(self.wanted) == 1 else f"y{i}"
                stand, buffer = self.new_buffer(name, Home.OUTPUT, step)
                self.homes.append(stand)
                self.result.outputs.append(buffer)
                self.result.shapes[buffer.name] = tuple(step.shape)
            if step.shape != self.homes[i].shape:
                raise self.refusal("an output of the first step is of another size than the others")
            moves.append(Copy(self.array(step), self.array(self.homes[i])))
        return moves

    def held(self, end: Array) -> tuple[Tensor, Array]:
        """Return a working buffer for a value that is on its way from one state to another."""
        dtype = torch.float64 if self.result.is_double else torch.float32
        stand, _ = self.new_buffer("held", Home.WORK, torch.zeros(end.shape, dtype=dtype))
        return stand, self.array(stand)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_same(weight: Buffer, numbers: Tensor) -> bool:
    """Tell whether a weight has these numbers, bit for bit."""
    if weight.size != numbers.numel() or not isinstance(weight.values, Tensor):
        return False
    bits = torch.int64 if numbers.dtype is torch.float64 else torch.int32
    flat = (x.reshape(-1).view(bits) for x in (weight.values, numbers))
    return torch.equal(*flat)
