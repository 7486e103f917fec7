"""The two ONNX models of a network: one step with its states, and the whole sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
import torch.fx
from onnx import checker, helper
from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.export.network.one_step import after_a_step, begun, in_line, starts_of
from snncc.export.onnx.choice import choice
from snncc.export.onnx.dispatch import write_operator
from snncc.export.onnx.graph import IR_VERSION, OPSET, TYPES, GraphWriter, plain_name
from snncc.export.onnx.lowering import Lowering
from snncc.export.onnx.values import Value, copied, known_value
from snncc.export.remedies import OTHER_OPERATORS
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.time_loop import Fill
from snncc.version import __version__

_LARGEST = 2**31 - 2**20  # bytes of weights; a file of this format ends at 2 GiB


@dataclass(frozen=True)
class Source:
    """A tensor that a network reads.

    Attributes:
        name: Its name in the model.
        tensor: An example, with the time axis, or the values of a parameter.
        is_input: Whether it is given at each call.
        axis: Its time axis, or None.
    """

    name: str
    tensor: Tensor
    is_input: bool
    axis: int | None


@dataclass(frozen=True)
class Models:
    """The two models, and what has to be known to use them.

    Attributes:
        step: One step: inputs without the time axis, and states, to outputs and next states.
        sequence: The whole sequence, as the PyTorch model takes and returns it.
        inputs: For each input its name and time axis.
        outputs: For each output its name and time axis.
        states: For each state its name and what it starts from.
        dynamic: Which of ``time`` and ``batch`` may differ from the example.
    """

    step: onnx.ModelProto
    sequence: onnx.ModelProto
    inputs: dict[str, int | None]
    outputs: dict[str, int | None]
    states: dict[str, Tensor]
    dynamic: tuple[str, ...]


def sources_of(
    names: Sequence[str], tensors: Sequence[Tensor], own: Sequence[bool], axes: Sequence[int | None]
) -> list[Source]:
    """Return the sources of a network; inputs get names that differ and are plain."""
    taken: set[str] = set()
    return [
        Source(_unique(plain_name(name) if is_input else name, taken), tensor, is_input, axis)
        for name, tensor, is_input, axis in zip(names, tensors, own, axes, strict=True)
    ]


def _unique(wish: str, taken: set[str]) -> str:
    """Return a name, with a number where it or the name of its next value is taken; take both."""
    numbers = (f"{wish}_{n}" for n in range(2, 2 * len(taken) + 3))
    name = next(n for n in (wish, *numbers) if not taken & {n, f"{n}.next"})
    taken |= {name, f"{name}.next"}
    return name


class Exporter:
    """Makes the models of a network."""

    def __init__(
        self,
        program: ChunkProgram,
        graph: torch.fx.Graph,
        sources: Sequence[Source],
        wanted: Sequence[int],
    ) -> None:
        self.program, self.graph, self.sources, self.wanted = program, graph, sources, wanted
        types = {s.tensor.dtype for s in sources if s.tensor.is_floating_point()}
        if len(types) > 1 or not types <= {torch.float32, torch.float64}:
            raise refused(f"its tensors are of {', '.join(sorted(map(str, types)))}")
        self.dtype = next(iter(types), torch.float32)
        wrong = [s for s in sources if s.is_input and s.tensor.dtype not in TYPES]
        if wrong:
            raise refused(f"its input '{wrong[0].name}' is of {wrong[0].tensor.dtype}")
        self.inputs = {s.name: s.axis for s in sources if s.is_input}
        self.taken = set(self.inputs)
        names = [f"y{i}" if len(wanted) > 1 else "y" for i in range(len(wanted))]
        self.outputs = {
            _unique(name, self.taken): program.output_axes[i]
            for name, i in zip(names, wanted, strict=True)
        }
        self.state_names = [_unique(plain_name(s.name), self.taken) for s in program.states]
        self.steps = _unique("steps", self.taken)  # the state that counts the steps so far
        leaves = [s.tensor.detach() for s in sources]
        follows = begun(program, leaves, [s.is_input for s in sources]) is None
        self.begins_itself = follows or program.has_first
        self.counts = program.counts or self.begins_itself

    def models(self, serves: Callable[[Sequence[Tensor]], bool]) -> Models:
        """Return the models.

        Args:
            serves: Tells whether the network is the same for inputs of other sizes.

        Raises:
            UnsupportedError: The network has no form in ONNX, with the user's line.
        """
        sized = ((name, self.sized(name)) for name in ("time", "batch"))
        dynamic = tuple(name for name, each in sized if each is not None and serves(each))
        states = self.starts()
        return Models(
            self.step(dynamic), self.sequence(dynamic), self.inputs, self.outputs, states, dynamic
        )

    def sized(self, name: str) -> list[Tensor] | None:
        """Return the sources with one more step, or sample; None where no input has that axis."""
        result, size = [], None
        for source in self.sources:
            tensor = source.tensor.detach()
            axis = source.axis if name == "time" else _batch_axis(source)
            if source.is_input and axis is not None:
                size = tensor.shape[axis] if size is None else size
                if tensor.shape[axis] == size:
                    tensor = torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)
            result.append(tensor)
        return None if size is None else result

    def samples(self, names: Sequence[str]) -> list[list[Tensor]]:
        """Return the sources for each of the sample sizes."""
        base = [s.tensor.detach() for s in self.sources]
        return [base, *(s for s in map(self.sized, names) if s is not None)]

    def starts(self) -> dict[str, Tensor]:
        """Return what each state starts from, in its full shape."""
        leaves = _one_step(self.sources, [s.tensor.detach() for s in self.sources])
        begins = starts_of(self.program, leaves)
        ends = after_a_step(self.program, leaves, begins)
        starts = {}
        for name, state, end in zip(self.state_names, self.program.states, ends, strict=True):
            if end.dtype not in TYPES:
                raise refused(f"the state '{state.name}' is of {end.dtype}")
            if isinstance(state.start, Fill):
                given = torch.tensor(state.start.value)
            else:  # what a step finds for itself is not read
                given = torch.tensor(0.0) if self.begins_itself else begins[state.start]
            starts[name] = given.to(end.dtype).expand(end.shape).contiguous()
        if self.counts:
            starts[self.steps] = torch.tensor(0)
        return starts

    def sequence(self, dynamic: Sequence[str]) -> onnx.ModelProto:
        """Return the model of the whole sequence."""
        samples = self.samples(dynamic)
        work = _Work(self.dtype, len(samples), sorted(self.taken), _symbols(dynamic, samples, self))
        places = [n for n in self.graph.nodes if n.op == "placeholder"]
        values: dict[torch.fx.Node, Any] = {}
        for node, source, each in zip(
            places, self.sources, zip(*samples, strict=True), strict=True
        ):
            values[node] = (
                work.input(source.name, each)
                if source.is_input
                else known_value(source.tensor, len(samples), source.name)
            )
        results = work.lowering(one_step=False).run(self.graph, values)
        low = work.lowering(one_step=False)
        for name, position in zip(self.outputs, self.wanted, strict=True):
            work.output(low, name, results[position])
        return work.model("sequence")

    def step(self, dynamic: Sequence[str]) -> onnx.ModelProto:
        """Return the model of one step."""
        names = [n for n in dynamic if n == "batch"]
        samples = [_one_step(self.sources, each) for each in self.samples(names)]
        work = _Work(self.dtype, len(samples), sorted(self.taken), _symbols(names, samples, self))
        low = work.lowering(one_step=True)
        given = [
            work.step_input(low, source, each)
            if source.is_input
            else known_value(source.tensor, len(samples), source.name)
            for source, each in zip(self.sources, zip(*samples, strict=True), strict=True)
        ]
        ends = [after_a_step(self.program, x, starts_of(self.program, x)) for x in samples]
        each_state = zip(self.state_names, zip(*ends, strict=True), strict=True)
        states = [work.input(name, shapes) for name, shapes in each_state]
        elapsed = work.elapsed(low, self.steps) if self.counts else 1
        results = self.any_step(low, given, states, elapsed)
        names = [*self.outputs, *(f"{name}.next" for name in self.state_names)]
        for name, value in zip(names, results, strict=True):
            work.output(low, name, value)
        if self.counts:
            work.output(low, f"{self.steps}.next", elapsed)
        return work.model("step")

    def any_step(
        self, low: Lowering, given: Sequence[Value], states: Sequence[Value], elapsed: Any
    ) -> list[Any]:
        """Write a step that tells whether it is the first; where need be it has both programs."""
        if not self.begins_itself:
            return self.later_step(low, given, states, elapsed)
        is_first = low.graph.node("Equal", low.number(elapsed), low.number(1))
        if self.program.has_first:
            return choice(low, is_first, [
                lambda inner: self.first_step(inner, copied(given), states),
                lambda inner: self.later_step(inner, copied(given), copied(states), elapsed),
            ])  # fmt: skip
        begun = choice(low, is_first, [
            lambda inner: self.begin(inner, copied(given), states),
            lambda inner: copied(states),
        ])  # fmt: skip
        return self.later_step(low, given, begun, elapsed)

    def begin(self, low: Lowering, given: Sequence[Value], states: Sequence[Value]) -> list[Value]:
        """Write what states start from; return it in their shapes."""
        places = [n for n in self.program.start.nodes if n.op == "placeholder"]
        found = low.run(self.program.start, dict(zip(places, given, strict=True)))
        return self.filled(low, found, states)

    def filled(self, low: Lowering, found: Sequence[Any], states: Sequence[Value]) -> list[Value]:
        """Return what each state starts from: a number, or a value that was found."""
        begins = [
            float(s.start.value) if isinstance(s.start, Fill) else found[s.start]
            for s in self.program.states
        ]
        return [low.filled(b, state) for b, state in zip(begins, states, strict=True)]

    def later_step(
        self, low: Lowering, given: Sequence[Value], states: Sequence[Value], elapsed: Any
    ) -> list[Any]:
        """Write a step; return its outputs and what the states become."""
        graph = in_line(self.program.graph)
        places = [n for n in graph.nodes if n.op == "placeholder"]
        results = low.run(graph, dict(zip(places, [elapsed, *states, *given], strict=True)))
        return [*self.at_step(low, results), *results[len(self.program.output_axes) :]]

    def first_step(
        self, low: Lowering, given: Sequence[Value], states: Sequence[Value]
    ) -> list[Any]:
        """Write a first step of its own; return its outputs and what it leaves, as a step does."""
        graph = self.program.start
        places = [n for n in graph.nodes if n.op == "placeholder"]
        results = low.run(graph, dict(zip(places, given, strict=True)))
        left = results[len(self.program.output_axes) :]
        return [*self.at_step(low, results), *self.filled(low, left, states)]

    def at_step(self, low: Lowering, results: Sequence[Any]) -> list[Any]:
        """Return the outputs that are wanted, without their time axes."""
        axes = self.program.output_axes
        return [
            results[i] if axes[i] is None else low.apply(torch.select, (results[i], axes[i], 0))
            for i in self.wanted
        ]


class _Work:
    """One model under construction."""

    def __init__(
        self,
        dtype: torch.dtype,
        count: int,
        reserved: Sequence[str],
        symbols: Callable[[tuple[int, ...]], str | None],
    ) -> None:
        self.dtype, self.count, self.symbols = dtype, count, symbols
        self.graph = GraphWriter()
        for name in reserved:
            self.graph.fresh(name)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def lowering(self, *, one_step: bool) -> Lowering:
        """Return what writes operators."""
        return Lowering(write_operator, self.graph, self.dtype, self.count, one_step=one_step)

    def info(self, name: str, samples: Sequence[Tensor]) -> onnx.ValueInfoProto:
        """Return a value's type and shape; a dynamic dim has a symbol, or is unknown."""
        sizes = zip(*(tuple(s.shape) for s in samples), strict=True)
        shape = [n[0] if len(set(n)) == 1 else self.symbols(n) for n in sizes]
        return helper.make_tensor_value_info(name, TYPES[samples[0].dtype], shape)

    def input(self, name: str, samples: Sequence[Tensor]) -> Value:
        """Add an input."""
        self.inputs.append(self.info(name, samples))
        return Value(tuple(samples), name)

    def step_input(self, low: Lowering, source: Source, samples: Sequence[Tensor]) -> Value:
        """Add an input of one step; what stands for it has the time axis."""
        if source.axis is None:
            return self.input(source.name, samples)
        self.input(source.name, [s.select(source.axis, 0) for s in samples])
        whole = tuple(samples)
        if source.axis == 0:
            return Value(whole, bare=source.name)
        name = low.graph.node("Unsqueeze", source.name, low.graph.integers([source.axis]))
        return Value(whole, name, step=(source.axis, source.name))

    def elapsed(self, low: Lowering, state: str) -> Value:
        """Add the number of steps so far as a state; return the number with this one."""
        self.inputs.append(helper.make_tensor_value_info(state, TYPES[torch.int64], []))
        name = self.graph.node("Add", state, low.number(1), name="elapsed")
        return Value(tuple(range(1, 1 + self.count)), name)

    def output(self, low: Lowering, name: str, value: Any) -> None:
        """Add an output."""
        if not isinstance(value, Value):
            raise refused("it returns something that is no tensor")
        read = low.name_of(value)
        self.graph.nodes.append(helper.make_node("Identity", [read], [name], name=f"output/{name}"))
        if value.is_number:
            self.outputs.append(helper.make_tensor_value_info(name, TYPES[torch.int64], []))
        else:
            self.outputs.append(self.info(name, value.samples))

    def model(self, name: str) -> onnx.ModelProto:
        """Return the model, checked.

        Raises:
            UnsupportedError: It is too large.
        """
        nodes = self.graph.finish(value.name for value in self.outputs)
        constants = list(self.graph.constants.values())
        if sum(len(c.raw_data) for c in constants) > _LARGEST:
            raise refused("its weights take more than 2 GiB, which no ONNX file holds")
        graph = helper.make_graph(nodes, name, self.inputs, self.outputs, constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
            producer_name="snncc", producer_version=__version__,
        )  # fmt: skip
        checker.check_model(model, full_check=True)
        return model


def refused(reason: str) -> UnsupportedError:
    """Return the error that a network has no form in ONNX."""
    return UnsupportedError(
        "The network cannot be exported to ONNX.",
        code="unsupported.onnx",
        notes=[reason],
        hints=[OTHER_OPERATORS],
    )


def _batch_axis(source: Source) -> int | None:
    """Return the first axis of an input that is not time."""
    axes = [d for d in range(source.tensor.dim()) if d != source.axis]
    return axes[0] if axes else None


def _one_step(sources: Sequence[Source], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the first step of each leaf that has a time axis."""
    return [
        x if s.axis is None else x.narrow(s.axis, 0, 1)
        for s, x in zip(sources, leaves, strict=True)
    ]


def _symbols(
    names: Sequence[str], samples: Sequence[Sequence[Tensor]], exporter: Exporter
) -> Callable[[tuple[int, ...]], str | None]:
    """Return what names a dynamic size, given what it is for each of the sample sizes."""
    known: dict[tuple[int, ...], str] = {}
    for name in names:
        for source, each in zip(exporter.sources, zip(*samples, strict=True), strict=True):
            axis = source.axis if name == "time" else _batch_axis(source)
            if source.is_input and axis is not None:
                sizes = tuple(x.shape[axis] for x in each)
                if len(set(sizes)) > 1:
                    known.setdefault(sizes, name)
    return known.get
