"""Opt-in change of the model: a dynamic decay in place of each LIF neuron's decay and reset.

Before, with any reset r::

    h[t] = decay v[t-1] + x[t]        s[t] = fire(h[t])        v[t] = r(h[t], s[t])

After, with a gate over the last k inputs for each channel::

    u[t] = gain x[t]                  g[t] = logsigmoid(bias + sum_j weight[j] u[t-k+1+j]) / tau
    h[t] = exp(g[t]) h[t-1] + (1 - exp(g[t])) u[t]             s[t] = fire(h[t])

``weight`` starts at zero, ``bias`` at ``logit(decay^tau)`` and ``gain`` is ``1 / (1 - decay)``, so
that before training the neuron is the user's own without its reset: ``h[t] = decay h[t-1] + x[t]``.
Threshold and surrogate stay the user's; the parameters belong to the compiled module.

Precondition: one membrane with a decay in (0, 1) that is the same at all steps and within a
channel, one binary spike that compares its charge with a threshold.  Neurons that do not spike are
left alone.
Numerics: substituted.
Source: arXiv 2602.01133 (dynamic decay spiking neuron), equations 9 to 12; start and gain derived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from snncc.ir import interpret, sequence_ops
from snncc.ir.names import Names, names_in
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.neuron_class import Decay, NeuronClass, Role, StateClass, Values
from snncc.ir.nodes import (
    COMPARISONS,
    Binary,
    Const,
    Expr,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    Select,
    State,
    Unary,
    Var,
)
from snncc.ir.numerics import Numerics
from snncc.ir.own_tensor import OwnTensor
from snncc.ir.program import NeuronProgram
from snncc.ir.walk import bool_lets, let_reads, names_read, subexpressions
from snncc.passes.base import Rejection
from snncc.passes.dynamic_decay.gates import DecayGates
from snncc.passes.hoisting.hoist_stateless import serial_part
from snncc.passes.meaning.classify_neurons import classify_neuron
from snncc.passes.neurons import copy_graph, neuron_nodes
from snncc.passes.scalars.scalar_ops import SCALAR_OPS, Scope
from snncc.passes.simplify_step import simplify_step

# States beside the membrane that only hold or count what the neuron gives.
BYSTANDERS = frozenset({Role.SPIKE, Role.LAST, Role.SUM})
# What a spike may be made with, also where no comparison has a name of its own.
JUMPS = COMPARISONS | {Op.SIGN, Op.FLOOR, Op.CEIL, Op.ROUND}


class Lif(NamedTuple):
    """What of a LIF neuron the substitution needs.

    Attributes:
        membrane: The state.
        charge: The let that is compared with the threshold.
        decay: The factor on the state.
        drive: What is added to it.
    """

    membrane: StateClass
    charge: str
    decay: Expr
    drive: Expr


@dataclass(frozen=True, slots=True)
class SubstituteDynamicDecay:
    """Substitute every spiking neuron, or none.

    Attributes:
        gates: Where the parameters are; it makes them where there are none yet.
        leaves: The tensors of the placeholders, of which decays are made.
    """

    gates: DecayGates
    leaves: Sequence[Tensor]
    name = "substitute-dynamic-decay"
    numerics = Numerics.SUBSTITUTED

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph | Rejection:
        """Return the graph with dynamic decays, or which neuron they cannot stand for."""
        serial = serial_part(graph)
        if serial is not None:
            return serial
        result = copy_graph(graph)
        found: list[tuple[torch.fx.Node, Lif, Tensor]] = []
        for node in neuron_nodes(result):
            forward = _forward(node)
            if not _may_fire(forward):
                continue
            lif = find_lif(forward)
            if isinstance(lif, Rejection):
                return lif
            decay = _decay_by_channel(node, lif.decay, self.leaves)
            if isinstance(decay, Rejection):
                return decay
            found.append((node, lif, decay))
        if not found:
            return Rejection("no-neuron", "the model has no spiking neuron")
        refused = self.gates.provide([(_forward(n).name, decay) for n, _, decay in found])
        if refused is not None:
            return replace(refused, where=_forward(found[0][0]).where)
        for node, lif, _ in found:
            self._substitute(result, node, lif)
        result.eliminate_dead_code()
        return result

    def _substitute(self, graph: torch.fx.Graph, node: torch.fx.Node, lif: Lif) -> None:
        program: NeuronProgram = node.target.program  # type: ignore[union-attr]
        before = program.forward
        names, forward = dynamic_decay(before, lif, self.gates.kernel_size, self.gates.tau)
        with graph.inserting_before(node):
            own = self._arguments(graph, node, before.name)
        known = (*before.step_inputs, *before.lane_inputs, *names)
        given = dict(zip(known, (*node.args[1:], *own), strict=True))
        read = (*forward.step_inputs, *forward.lane_inputs)
        node.args = (node.args[0], *(given[name] for name in read))
        meant = classify_neuron(before).name
        node.target = NeuronCall(replace(program, forward=forward, stands_for=meant))

    def _arguments(
        self, graph: torch.fx.Graph, node: torch.fx.Node, name: str
    ) -> list[torch.fx.Node]:
        """Return gain, bias and weights of a gate as values of the lanes."""
        rank, dtype = len(node.meta["lanes"]), node.meta["dtype"]

        def emit(target: Any, *args: Any) -> torch.fx.Node:
            made = graph.call_function(target, args)
            made.meta["dtype"] = dtype
            return made

        def own(tensor: str) -> torch.fx.Node:
            return emit(OwnTensor(self.gates[name], tensor, f"{name}.{tensor}"))

        weight = own("weight")
        columns = [emit(torch.select, weight, 1, j) for j in range(self.gates.kernel_size)]
        values = [own("gain"), own("bias"), *columns]
        return [emit(sequence_ops.channels, value, rank, dtype) for value in values]


def find_lif(forward: Recurrence) -> Lif | Rejection:
    """Return a neuron as a LIF neuron, or why it is none that a dynamic decay can stand for."""
    neuron = classify_neuron(forward)
    reason = _reason(forward, neuron)
    if reason:
        return Rejection("not-lif", f"'{forward.name}' {reason}", forward.where)
    (membrane,), (spike,) = neuron.membranes, neuron.spikes
    assert membrane.decay is not None
    assert membrane.drive is not None
    assert spike.compared is not None
    return Lif(membrane, spike.compared, membrane.decay, membrane.drive)


def _reason(forward: Recurrence, neuron: NeuronClass) -> str:
    """Return what keeps a neuron from being substituted; nothing where nothing does."""
    if len(neuron.membranes) != 1 or len(neuron.spikes) != 1:
        return "is not one membrane with one threshold"
    (membrane,), (spike,) = neuron.membranes, neuron.spikes
    others = [s for s in neuron.states if s is not membrane and s.role not in BYSTANDERS]
    start = next(s.initial for s in forward.states if s.name == membrane.name)
    if others:
        return f"has a state beside its membrane ('{others[0].name.removesuffix('_prev')}')"
    if spike.values not in (Values.BINARY, Values.SCALED) or spike.is_gated or spike.is_adaptive:
        return "does not spike with one height at a threshold of its own"
    if membrane.varies is Decay.UNIT:
        return "forgets nothing; the gate of a decay of 1 has no finite start"
    if membrane.varies not in (Decay.CONSTANT, Decay.LANE):
        return "has no decay that is the same at all steps"
    if membrane.is_truncated:
        return "cuts the gradient through its state"
    inputs = {i.name for i in forward.inputs}
    if spike.compared is None or membrane.drive is None or membrane.coupled_to:
        return "compares something else than its charge"
    if not set(names_read(membrane.drive)) <= inputs:
        return "decides within its charge"
    if isinstance(start, Var) and membrane.name in forward.finals:
        return "gets its state from outside and returns it, without its last inputs"
    return ""


def _may_fire(forward: Recurrence) -> bool:
    """Tell whether a neuron compares anything, jumps, or has a gradient of its own."""
    bools = bool_lets(forward.lets)
    if any(let.surrogate is not None or let.name in bools for let in forward.lets):
        return True
    return _jumps(forward) or bool(classify_neuron(forward).spikes)


def _jumps(forward: Recurrence) -> bool:
    """Tell whether anything of a step jumps as its states change."""
    moving = {state.name for state in forward.states}
    for let in forward.lets:
        if moving.isdisjoint(names_read(let.expr)):
            continue
        moving.add(let.name)
        jumps = (e for e in subexpressions(let.expr) if isinstance(e, Unary | Binary))
        if any(e.op in JUMPS and not moving.isdisjoint(names_read(e)) for e in jumps):
            return True
    return False


def _decay_by_channel(
    node: torch.fx.Node, decay: Expr, leaves: Sequence[Tensor]
) -> Tensor | Rejection:
    """Return the value of a decay for each channel, [C]."""
    forward, lanes = _forward(node), node.meta["lanes"]
    if len(lanes) < 2:
        reason = f"'{forward.name}' has no axis of channels behind that of the batch"
        return Rejection("no-channels", reason, forward.where)
    arguments = dict(
        zip(forward.lane_inputs, node.args[1 + len(forward.step_inputs) :], strict=True)
    )
    read = [name for name in dict.fromkeys(names_read(decay)) if name in arguments]
    values = _values(node.graph, [arguments[name] for name in read], leaves)
    like = torch.zeros((), dtype=node.meta["dtype"], device=leaves[0].device)
    with torch.no_grad():
        value = interpret.evaluate(decay, dict(zip(read, values, strict=True)), like)
        channels = torch.as_tensor(value).to(like).expand(lanes).transpose(0, 1).flatten(1)
    if channels.shape[1] == 0:
        return Rejection("no-channels", f"'{forward.name}' has no neurons", forward.where)
    if not bool((channels == channels[:, :1]).all()):
        reason = f"the decay of '{forward.name}' differs within a channel, which has one gate"
        return Rejection("no-channels", reason, forward.where)
    if not bool(((channels > 0) & (channels < 1)).all()):
        reason = f"the decay of '{forward.name}' is not between 0 and 1"
        return Rejection("decay", reason, forward.where)
    return channels[:, 0].clone()


def _values(graph: torch.fx.Graph, wanted: Sequence[Any], leaves: Sequence[Tensor]) -> list[Any]:
    """Return what some nodes of a graph compute."""
    needed = {n for n in wanted if isinstance(n, torch.fx.Node)}
    for node in reversed(graph.nodes):
        needed |= set(node.all_input_nodes) if node in needed else set()
    env: dict[torch.fx.Node, Any] = {}
    places = iter(leaves)
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = next(places)
        elif node in needed:
            args = torch.fx.node.map_arg(node.args, env.__getitem__)
            kwargs = torch.fx.node.map_arg(node.kwargs, env.__getitem__)
            with torch.no_grad():
                env[node] = node.target(*args, **kwargs)
    return [env[n] if isinstance(n, torch.fx.Node) else torch.as_tensor(n) for n in wanted]


def dynamic_decay(
    forward: Recurrence, lif: Lif, kernel_size: int, tau: float
) -> tuple[tuple[str, ...], Recurrence]:
    """Return a LIF neuron with a dynamic decay, and the names of its new lane inputs.

    The inputs are gain, bias and the weights of the gate, oldest input first.
    """
    fresh = Names(names_in(forward)).fresh
    weights = [fresh(f"weight_{j}") for j in range(kernel_size)]
    names = (fresh("gain"), fresh("bias"), *weights)
    past = [fresh(f"past_{j}") for j in range(kernel_size - 1, 0, -1)]
    gain, bias = map(Var, names[:2])
    current = Let(fresh("current"), Binary(Op.MUL, gain, lif.drive))
    window = [*past, current.name]
    made = [current]
    logit: Expr = bias
    for weight, value in zip(weights, window, strict=True):
        made.append(
            Let(fresh("logit"), Binary(Op.ADD, logit, Binary(Op.MUL, Var(weight), Var(value))))
        )
        logit = Var(made[-1].name)
    log_sigmoid: Any = SCALAR_OPS[F.logsigmoid](Scope(lambda _: False), logit)
    made.append(Let(fresh("gate"), Binary(Op.DIV, log_sigmoid, Const(tau))))
    gate = Var(made[-1].name)
    made.append(Let(fresh("decay"), Unary(Op.EXP, gate)))
    decay = Var(made[-1].name)
    rest = Select(
        Binary(Op.LT, decay, Const(0.5)),
        Binary(Op.SUB, Const(1.0), decay),
        Unary(Op.NEG, Unary(Op.EXPM1, gate)),
    )
    kept = Binary(Op.MUL, decay, Var(lif.membrane.name))
    charged = Binary(Op.ADD, kept, Binary(Op.MUL, rest, Var(current.name)))
    lets: list[Let] = []
    for let in forward.lets:
        if let.name == lif.charge:
            lets += [*made, replace(let, expr=charged, surrogate=None)]
        elif let.name == lif.membrane.update:
            lets.append(replace(let, expr=Var(lif.charge), surrogate=None))
        else:
            lets.append(let)
    states = [
        replace(s, update=lif.charge) if s.name == lif.membrane.name else s for s in forward.states
    ]
    after = [*past[1:], current.name] if past else []
    states += [State(p, Const(0.0), a) for p, a in zip(past, after, strict=True)]
    inputs = (*forward.inputs, *(Input(name, Rank.LANE) for name in names))
    changed = replace(forward, inputs=inputs, lets=tuple(lets), states=tuple(states))
    return names, _without_unread(simplify_step(changed))


def _without_unread(forward: Recurrence) -> Recurrence:
    """Return a recurrence without inputs that nothing reads, as that of the old decay."""
    read = {name for let in forward.lets for name in let_reads(let)} | {*forward.outputs}
    read |= {state.update for state in forward.states}
    read |= {s.initial.name for s in forward.states if isinstance(s.initial, Var)}
    return replace(forward, inputs=tuple(i for i in forward.inputs if i.name in read))


def _forward(node: torch.fx.Node) -> Recurrence:
    forward: Recurrence = node.target.program.forward  # type: ignore[union-attr]
    return forward
