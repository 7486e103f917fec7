"""Read the plan off a sequence graph: its parts, and how they are connected."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx

from snncc.frontend.operators.canonical import size
from snncc.ir import norm_ops, sequence_ops
from snncc.ir.events.region import EventRegion
from snncc.ir.loop_call import LoopCall
from snncc.ir.names import fresh_name
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Recurrence, Var
from snncc.ir.numerics import Numerics, weakest
from snncc.ir.program import NeuronProgram, Place
from snncc.ir.tape import Source, SourceKind
from snncc.ir.time_loop import TimeLoop
from snncc.ir.walk import bool_lets, calls_maths
from snncc.options import GPU_TARGETS
from snncc.passes.gradients.plan_storage import BIT_BYTES, CPU, FLOAT_BYTES, GPU, transfers
from snncc.passes.hoisting.batch_rules import REASSOCIATED
from snncc.passes.loops.open_layers import LAYERS
from snncc.reporting.equations import Equations, equations_of
from snncc.reporting.event_layers import event_layers
from snncc.reporting.forms import form_text, promise_of
from snncc.reporting.operands import Origins, parameters_of
from snncc.reporting.recurrent_layer import recurrent_layer
from snncc.reporting.report import Layer, Plan, Rejected, Transfer
from snncc.source import Location

# Operators that exist only because time became an axis: no line of the user's stands for them.
PLUMBING = frozenset(
    {
        operator.getitem,
        sequence_ops.time_view,
        sequence_ops.align,
        sequence_ops.channels,
        sequence_ops.last_step,
        sequence_ops.repeat_time,
        sequence_ops.mean_of,
        sequence_ops.number,
        sequence_ops.small,
        sequence_ops.step_numbers,
        size,
        torch.arange,
    }
)

# Operators that are a part of the network wherever they are; sums only where their order changes.
PRODUCTS = REASSOCIATED - {torch.sum, torch.mean, torch.cumsum, torch.cumprod}


def layers_of(
    graph: torch.fx.Graph, target: str, sources: Sequence[Source] = ()
) -> tuple[Layer, ...]:
    """Return one line for each part of the network, in order of execution."""
    return tuple(_Reader(graph, target, sources).layers.values())


def plan_of(
    graph: torch.fx.Graph,
    target: str,
    sources: Sequence[Source],
    specialized_on: str,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Return the plan of a sequence graph.

    Args:
        graph: The graph after all passes.
        target: What runs the neurons.
        sources: For each placeholder of the graph where its tensor comes from.
        specialized_on: The inputs that it was made for.
        notes: Remarks about the whole.
    """
    reader = _Reader(graph, target, sources)
    if reader.others:
        count = len(reader.others)
        what = (
            "operator that combines or arranges"
            if count == 1
            else "operators that combine or arrange"
        )
        notes += (f"and {count} {what} values",)
    skipping = [node.meta.get("skips_zeros", False) for node in graph.nodes].count(True)
    if skipping:
        what = "convolution skips" if skipping == 1 else "convolutions skip"
        notes += (f"{skipping} {what} the zeros of spikes (c) where that is faster than torch",)
    packing = [layer.kept_bytes for layer in reader.layers.values()].count(BIT_BYTES)
    if packing:
        what = "product keeps" if packing == 1 else "products keep"
        notes += (f"{packing} {what} large inputs for backward as bits: {BIT_BYTES:g} B a spike",)
    return Plan(
        layers=tuple(reader.layers.values()),
        specialized_on=specialized_on,
        notes=notes,
        flow=tuple(dict.fromkeys(reader.flow)),
        ends=tuple(reader.ends),
        others=tuple(reader.others),
    )


class _Reader:
    """Finds the parts of a graph, and which reads which past what only arranges values."""

    def __init__(self, graph: torch.fx.Graph, target: str, sources: Sequence[Source]) -> None:
        self.target = target
        places = [node for node in graph.nodes if node.op == "placeholder"]
        self.sources = dict(zip(places, sources, strict=False))
        self.names: dict[torch.fx.Node, str] = {}
        self.taken: set[str] = set()
        self.origins = Origins(self.sources, self.names)
        self.layers: dict[torch.fx.Node | str, Layer] = {}
        self.others: list[Location] = []
        self.ends: list[str] = []
        self.flow: list[tuple[str, str]] = []
        # For each node the parts that its value comes from.
        self.parts: dict[torch.fx.Node, tuple[str, ...]] = {}
        for node in graph.nodes:
            self.visit(node)

    def visit(self, node: torch.fx.Node) -> None:
        """Read one node."""
        read = dict.fromkeys(p for n in node.all_input_nodes for p in self.parts.get(n, ()))
        if isinstance(node.target, EventRegion):
            self.parts[node] = tuple(self.events(node, read))
            return
        name = self.part(node)
        if name is None:
            # A size is no value that flows.
            is_size = node.target is size or isinstance(node.target, sequence_ops.TripLength)
            self.parts[node] = () if is_size else tuple(read)
            return
        self.parts[node] = (name,)
        self.flow += [(part, name) for part in read]

    def events(self, node: torch.fx.Node, read: Iterable[str]) -> Iterator[str]:
        """Read a network of events; yield the names of the layers that are seen outside."""
        names: dict[str, str] = {}
        for line in event_layers(node, self.target, self.sources):
            name = names[line.layer.name] = self.unique(line.layer.name)
            self.layers[name] = replace(line.layer, name=name)
            sources = [names[each] for each in line.reads if each in names] or [*read]
            self.flow += [(source, name) for source in sources]
            if line.is_seen:
                yield name

    def part(self, node: torch.fx.Node) -> str | None:
        """Return the name of the part that a node is; None for what combines or arranges values."""
        if node.op == "output":
            return self.end("output")
        if node.op == "placeholder":
            source = self.sources.get(node)
            is_input = source is not None and source.kind is SourceKind.INPUT
            return self.end(source.name) if source is not None and is_input else None
        layer = self.layer(node)
        if layer is not None:
            self.layers[node] = layer
            return layer.name
        is_plumbing = node.target in PLUMBING or "folded" in node.meta
        if not is_plumbing and not isinstance(node.target, sequence_ops.TripLength):
            where = node.meta.get("where")
            self.others += [] if where is None else [where]
        return None

    def end(self, name: str) -> str:
        self.ends.append(self.unique(name))
        return self.ends[-1]

    def layer(self, node: torch.fx.Node) -> Layer | None:
        """Return the line of a node, or None where it has none."""
        if isinstance(node.target, NeuronCall):
            self.names[node] = self.unique(node.target.program.forward.name)
            return self.neuron(node, node.target)
        if isinstance(node.target, LoopCall):
            self.names[node] = self.unique(node.name.partition("_")[2] or node.name)
            return recurrent_layer(node, node.target, self.names[node], self.target)
        if isinstance(node.target, TimeLoop):
            read = parameters_of(node, self.sources)
            is_counter = node.meta["rejection"].code == "counter" and len(read) == 1
            own = read[0] if is_counter else self.module_name(node) or node.name.partition("_")[2]
            self.names[node] = self.unique(own)
            return self.loop(node, node.target)
        if node.op != "call_function" or not ("stacked" in node.meta or _is_layer(node)):
            return None
        own = node.name.replace("_over_time", "")
        self.names[node] = self.unique(self.module_name(node) or own)
        # What was in the loop has no call path of its own any more.
        hoisted = "stacked" in node.meta or "path" not in node.meta
        return Layer(
            name=self.names[node],
            kind="hoisted" if hoisted else "operator",
            where=node.meta.get("where"),
            form="all steps at once" if hoisted else "once",
            kernel="torch or c" if node.meta.get("skips_zeros") else "torch",
            numerics=weakest(node.meta.get("numerics", Numerics.BITWISE), _folded(node)),
            note=node.meta.get("folded", ""),
            operator="scale and shift" if node.target is torch.add else _spelled(node),
            lines=_lines([node]),
            kept_bytes=BIT_BYTES if node.meta.get("reads_bits") else None,
        )

    def module_name(self, node: torch.fx.Node) -> str:
        """Return the name of the module whose parameters a node reads, or nothing."""
        weights = [n for n in node.all_input_nodes if n.target is norm_ops.folded_weight]
        read = parameters_of(weights[0] if weights else node, self.sources)
        owners = {n.rpartition(".")[0] for n in (read[:1] if weights else read)}
        owner = owners.pop() if len(owners) == 1 else ""
        # A module of a Sequential has a number for a name.
        return f"{_spelled(node)}_{owner}" if owner.isdigit() else owner

    def unique(self, name: str) -> str:
        """Return a name that no part has yet."""
        return fresh_name(name, self.taken)

    def loop(self, node: torch.fx.Node, loop: TimeLoop) -> Layer:
        """Return the line of a part that runs one step after another."""
        rejection, culprit = node.meta["rejection"], node.meta.get("culprit")
        serial = bool(loop.carries)
        better = "neuron kernel" if serial else "all steps at once"
        at_fault = None if culprit is None else culprit.meta.get("where")
        return Layer(
            name=self.names[node],
            kind="serial" if serial else "mapped",
            where=node.meta.get("where"),
            form="one step after another",
            kernel="torch",
            numerics=weakest(*(_folded(n) for n in node.all_input_nodes)),
            note=rejection.reason,
            operator=_looped(loop, rejection.code),
            lines=_lines(loop.body.nodes),
            refused=(Rejected(better, rejection.code, rejection.reason, at_fault),),
        )

    def neuron(self, node: torch.fx.Node, call: NeuronCall) -> Layer:
        """Return the line of a neuron."""
        program = call.program
        forward = program.written or program.forward
        operands = self.origins.operands(node, call)
        shown = equations_of(forward, {operand.name: operand.shown for operand in operands})
        moved = _transfers(program, node.meta.get("dtype"), shown, self.target)
        inexact = _inexact(node, program)
        trains = program.adjoint is not None and program.storage is not None
        inference = FLOAT_BYTES * (len(forward.step_inputs) + len(forward.outputs))
        inference -= sum(FLOAT_BYTES - dtype.itemsize for _, dtype in program.narrow)
        return Layer(
            name=self.names[node],
            kind="neuron",
            where=forward.where,
            form=form_text(forward.form),
            kernel=self.target,
            numerics=weakest(
                Numerics.REASSOCIATED if inexact else Numerics.BITWISE,
                Numerics.SUBSTITUTED if program.stands_for else Numerics.BITWISE,
                promise_of(forward.form),
            ),
            forward_bytes=inference * _scale(node.meta.get("dtype")),
            training_bytes=sum(t.bytes for t in moved) if trains else None,
            equations=shown.lines(),
            note="; ".join((*filter(None, [inexact]), *(e.reason for e in program.estimates[:1]))),
            refused=tuple(Rejected(e.form, "slower", e.reason) for e in program.estimates[1:]),
            lines=tuple(dict.fromkeys(w for w in _places(forward) if w is not None)),
            operands=operands,
            transfers=moved,
            recurrence=forward,
            keeps=_keeps(program, shown),
            kept_bytes=sum(map(_kept, moved)) if trains else None,
            stands_for=program.stands_for,
        )


def _inexact(node: torch.fx.Node, program: NeuronProgram) -> str:
    """Return why a neuron rounds in another way than the serial code; nothing where it does not."""
    reasons = [program.inexact] if program.inexact else []
    if program.stands_for:
        reasons.append(f"without reset, it stands for the {program.stands_for}")
    if node.meta.get("folded"):
        reasons.append(node.meta["folded"])
    if promise_of(program.forward.form) is Numerics.REASSOCIATED:
        reasons.append(_moved(program.forward))
    if calls_maths(program.forward.lets):
        reasons.append("its maths functions differ from torch's in the last place")
    return "; ".join(reasons)


def _moved(forward: Recurrence) -> str:
    """Return what a scan changes about a neuron."""
    says = "its chunks start from sums in another order"
    fires = bool_lets(forward.lets) or any(let.surrogate is not None for let in forward.lets)
    return f"{says}, so a spike at the threshold may move" if fires else says


def _is_layer(node: torch.fx.Node) -> bool:
    target: Any = node.target
    operator_: Any = target.operator if isinstance(target, sequence_ops.Folded) else target
    if target in PLUMBING or isinstance(target, sequence_ops.TripLength):
        return False
    if target is torch.add and node.meta.get("folded"):  # what is left of a norm
        return True
    # Methods of tensors have no module.
    module = getattr(operator_, "__module__", "")
    is_known = operator_ in PRODUCTS or operator_ in LAYERS
    return is_known or module in ("torch.nn.functional", "torch._C._nn")


def _folded(node: torch.fx.Node) -> Numerics:
    """Return what is left of the serial results where a norm was folded into a value."""
    return Numerics.REASSOCIATED if node.meta.get("folded") else Numerics.BITWISE


def _spelled(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).replace("_over_time", "")


def _looped(loop: TimeLoop, code: str) -> str:
    if not loop.carries:
        return _spelled(loop.node(loop.results[-1].node))
    return "counter" if code == "counter" else "loop"


def _lines(nodes: Iterable[torch.fx.Node]) -> tuple[Location, ...]:
    places = (node.meta.get("where") for node in nodes if node.op == "call_function")
    return tuple(dict.fromkeys(where for where in places if where is not None))


def _places(recurrence: Recurrence) -> Iterator[Location | None]:
    yield from (let.where for let in recurrence.lets)
    yield from (state.where for state in recurrence.states)


def _scale(dtype: torch.dtype | None) -> float:
    return 1.0 if dtype is None else dtype.itemsize / FLOAT_BYTES


def _transfers(
    program: NeuronProgram, dtype: torch.dtype | None, shown: Equations, target: str
) -> tuple[Transfer, ...]:
    """Return what a neuron moves, in the user's names and in the bytes of its type."""

    def spelled(what: str) -> str:
        symbols = (shown.symbols.get(word) for word in what.split(" "))
        pairs = zip(what.split(" "), symbols, strict=True)
        return " ".join(word if s is None else str(replace(s, time="")) for word, s in pairs)

    # A bit is a bit in every type, and states are no smaller than in float32.
    least = {BIT_BYTES: (1.0, 1.0), FLOAT_BYTES: (0.0, 8.0)}
    costs = GPU if target in GPU_TARGETS else CPU
    return tuple(
        Transfer(sweep, spelled(what), count * _bounded(_scale(dtype), least.get(count)))
        for sweep, what, count in transfers(program, costs)
    )


def _kept(transfer: Transfer) -> float:
    """Return the bytes that are there from the forward to the backward sweep."""
    is_kept = transfer.what.startswith("load ") or transfer.what.endswith(" again")
    return transfer.bytes if transfer.sweep == "backward" and is_kept else 0.0


def _bounded(scale: float, bounds: tuple[float, float] | None) -> float:
    low, high = bounds or (1.0, 8.0)
    return min(max(scale, low), high)


def _keeps(program: NeuronProgram, shown: Equations) -> str:
    """Return what backward gets from forward, in a clause."""
    if program.storage is None:
        return ""
    how = "computed again" if program.storage.place is Place.SCRATCH else "stored"
    names = ", ".join(shown.spell(Var(name)) for name in program.storage.saved)
    return f"{names or 'nothing'} {how}"
