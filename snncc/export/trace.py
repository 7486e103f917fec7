"""From a chunk program to a network of known sizes.

The program is run for one step on an example.  Each value that an operator makes gets a buffer;
what shares memory with its argument is a view of that buffer.  What depends on parameters alone is
computed here, once, and becomes a weight.  Loops that stayed (recurrent weights) are one step long
and are laid out in line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import UnsupportedError
from snncc.export import operators
from snncc.export.names import parameter_name
from snncc.export.network import Array, Buffer, Copy, Home, Network, Steps
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.graph_function import function_of
from snncc.ir.loop_call import loop_of
from snncc.ir.time_loop import Fill, TimeLoop
from snncc.passes.neurons import copy_graph


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
        self.node: torch.fx.Node | None = None

    def network(self) -> Network:
        """Return the network."""
        types = {x.dtype for x in self.leaves if x.is_floating_point()}
        if len(types) > 1 or not types <= {torch.float32, torch.float64}:
            raise self.refusal(f"its tensors are of {', '.join(sorted(map(str, types)))}")
        self.result.is_double = types == {torch.float64}
        self.place_inputs()
        self.place_states()
        for node in self.graph.nodes:
            if node.op == "call_function":
                self.node = node
                self.values[node] = self.value(node)
        self.finish()
        self.result.weights = [b for b in self.buffers.values() if b.home is Home.WEIGHT]
        self.result.work = [b for b in self.buffers.values() if b.home is Home.WORK]
        return self.result

    def place_inputs(self) -> None:
        """Give each input of a step its buffer; take all other leaves as they are."""
        count, *places = (n for n in self.graph.nodes if n.op == "placeholder")
        self.values[count] = Steps()
        self.state_nodes = places[: len(self.program.states)]
        axes = self.program.input_axes
        for node, x, is_own, name, axis in zip(
            places[len(self.program.states) :], self.leaves, self.own, self.names, axes, strict=True
        ):
            if not is_own:
                self.values[node] = x.detach()
                self.fixed.add(node)
                continue
            if not x.is_floating_point():
                raise self.refusal(f"its input '{name}' is of {x.dtype}")
            step = x.detach() if axis is None else x.detach().select(axis, 0)
            stand, buffer = self.new_buffer(name, Home.INPUT, step)
            self.values[node] = stand if axis is None else stand.unsqueeze(axis)
            self.result.inputs.append(buffer)
            self.result.shapes[buffer.name] = tuple(step.shape)

    def place_states(self) -> None:
        """Give each state its buffer, with what it starts from."""
        starts = self.starts()
        for node, state, start in zip(self.state_nodes, self.program.states, starts, strict=True):
            stand, buffer = self.new_buffer(state.name, Home.STATE, self.ends[state.name])
            buffer.values = start if isinstance(start, float) else start.expand(stand.shape)
            self.values[node] = stand
            self.result.states.append(buffer)

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
            raise self.refusal("it draws random numbers or changes a buffer")
        if self.fixed.issuperset(node.all_input_nodes):
            self.fixed.add(node)
            with torch.no_grad():
                return target(*args, **kwargs)
        if any(isinstance(x, Steps) for x in pytree.tree_leaves((args, kwargs))):
            return operators.apply_counted(self, target, args)
        return operators.apply(self, target, args, kwargs)

    def apply(self, target: Any, args: tuple[Any, ...]) -> Any:
        """Write down one more operator and return what stands for its result."""
        return operators.apply(self, target, args, {})

    def new_buffer(self, name: str, home: Home, like: Tensor) -> tuple[Tensor, Buffer]:
        """Return a dense tensor that stands for a new buffer, and the buffer."""
        if like.dtype not in (torch.float32, torch.float64, torch.bool):
            raise self.refusal(f"'{name}' is of {like.dtype}")
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
            stand, buffer = self.new_buffer(name, Home.WEIGHT, small)
            buffer.values = stand.to(torch.float64 if self.result.is_double else torch.float32)
            tensor = stand.expand(tensor.shape)
            del small
        offset = int(tensor.storage_offset())
        return Array(buffer, tuple(tensor.shape), tuple(tensor.stride()), offset)

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

    def refusal(self, reason: str) -> UnsupportedError:
        """Return the error that the network cannot be exported."""
        where = self.node.meta.get("where") if self.node is not None else None
        return UnsupportedError(
            "The network cannot be exported as a library.",
            code="unsupported.export",
            location=where,
            notes=[reason],
            hints=["Export the model in evaluation mode, in float32 or float64."],
        )

    def finish(self) -> None:
        """Copy the results to the caller and what the states become to the states."""
        self.node = None
        outputs: Any = self.graph.output_node().args[0]
        axes = self.program.output_axes
        results = [self.values[n] for n in outputs if isinstance(n, torch.fx.Node)]
        if len(results) != len(outputs):
            raise self.refusal("it returns something that is no tensor")
        moves = []
        for i, position in enumerate(self.wanted):
            value, axis = results[position], axes[position]
            step = value if axis is None else value.select(axis, 0)
            name = "y" if len(self.wanted) == 1 else f"y{i}"
            stand, buffer = self.new_buffer(name, Home.OUTPUT, step)
            self.result.outputs.append(buffer)
            self.result.shapes[buffer.name] = tuple(step.shape)
            moves.append(Copy(self.array(step), self.array(stand)))
        self.result.every_step = tuple(axes[position] is not None for position in self.wanted)
        ends = [self.array(value) for value in results[len(axes) :]]
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

    def held(self, end: Array) -> tuple[Tensor, Array]:
        """Return a working buffer for a value that is on its way from one state to another."""
        dtype = torch.float64 if self.result.is_double else torch.float32
        stand, _ = self.new_buffer("held", Home.WORK, torch.zeros(end.shape, dtype=dtype))
        return stand, self.array(stand)


def begun(
    program: ChunkProgram, leaves: Sequence[Tensor], own: Sequence[bool]
) -> tuple[Tensor, ...] | None:
    """Return the values of the states that start from no number; None if they follow the input.

    Args:
        program: The program.
        leaves: An example of its tensors.
        own: For each leaf whether it is an input.
    """
    with torch.no_grad():
        found = run_graph(program.start, leaves)
        again = run_graph(program.start, [
            torch.rand_like(x) if is_own and x.is_floating_point() else x
            for x, is_own in zip(leaves, own, strict=True)
        ])  # fmt: skip
    same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    return found if same else None


def after_a_step(
    program: ChunkProgram, leaves: Sequence[Tensor], begins: Sequence[Tensor]
) -> list[Tensor]:
    """Return the states after the first step, in their full shapes.

    Args:
        program: The program.
        leaves: An example of its tensors, one step long.
        begins: The values of the states that start from no number.
    """
    given: list[Any] = [
        begins[s.start]
        if not isinstance(s.start, Fill)
        else s.start
        if s.dtype is None
        else torch.tensor(s.start.value, dtype=s.dtype)
        for s in program.states
    ]
    with torch.no_grad():
        results = run_graph(program.graph, [1, *given, *leaves])
    return list(results[len(program.output_axes) :])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def run_graph(graph: torch.fx.Graph, values: Sequence[Any]) -> tuple[Any, ...]:
    """Run a graph and return its outputs."""
    return tuple(function_of(graph)(*values))


def in_line(graph: torch.fx.Graph) -> torch.fx.Graph:
    """Return a graph whose loops, of one step each, are replaced by their bodies."""
    result = copy_graph(graph)
    for node in list(result.nodes):
        loop = loop_of(node)
        if loop is not None:
            _lay_out(result, node, loop)
    result.eliminate_dead_code()
    return result


def _lay_out(graph: torch.fx.Graph, call: torch.fx.Node, loop: TimeLoop) -> None:
    places: dict[str, Any] = {c.name: call.args[c.initial] for c in loop.carries}  # type: ignore[index]
    places |= {i.name: call.args[i.operand] for i in loop.invariants}
    copies: dict[torch.fx.Node, Any] = {}
    with graph.inserting_before(call):
        for step in loop.steps:
            places[step.name] = graph.call_function(
                torch.select, (call.args[step.operand], step.dim, step.start)
            )
        for node in loop.body.nodes:
            if node.op == "placeholder":
                copies[node] = places[node.name]
            elif node.op == "call_function":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        named = {node.name: copy for node, copy in copies.items()}
        for user in list(call.users):
            result = loop.results[user.args[1]]  # type: ignore[index]
            value = named[result.node]
            if result.stacked:
                value = graph.call_function(torch.unsqueeze, (value, 0))
            user.replace_all_uses_with(value)
            graph.erase_node(user)
    graph.erase_node(call)
