"""Choose by bytes moved what the backward kernel gets from the forward kernel.

The reverse step reads some forward values (its *residuals*).  Either the backward kernel runs
forward again, tile by tile in cache, from the inputs (`Place.SCRATCH`: each step input is read once
more), or the forward kernel stores a *basis* in memory from which one step's residuals follow
(`Place.MEMORY`: each saved value is written once and read once; a bool takes one bit).
A GPU has no cache of that size for each lane: there a kernel recomputes as many steps as registers
hold, from states that forward wrote at the start of each such chunk but the first.

A basis is any set of states and lets from which, with the inputs, every residual can be evaluated
within the step.  Neuron kernels are bound by memory, so the cheaper one in bytes wins; operations
that cost as much as a memory access (exp, log, ...) are charged as such.

Numerics: bitwise; recomputed values come from the same operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch.fx

from snncc.ir.chunks import chunk_steps, kept_values
from snncc.ir.nodes import Let, Recurrence
from snncc.ir.numerics import Numerics
from snncc.ir.program import Adjoint, NeuronProgram, Place, Storage
from snncc.ir.walk import bool_lets, calls_maths, let_reads
from snncc.passes.neurons import rewrite_neurons


@dataclass(frozen=True, slots=True)
class PlanStorage:
    """Choose for every neuron what is stored between forward and backward.

    ``place`` overrides the choice by bytes moved; ``on_gpu`` tells where the kernels run.
    """

    place: Place | None = None
    on_gpu: bool = False
    name = "plan-storage"
    numerics = Numerics.BITWISE

    def run(self, graph: torch.fx.Graph) -> torch.fx.Graph:
        """Return the graph with a storage plan for each neuron that has an adjoint."""
        return rewrite_neurons(graph, self._plan)

    def _plan(self, program: NeuronProgram, _node: torch.fx.Node) -> NeuronProgram:
        if program.adjoint is None:
            return program
        costs = GPU if self.on_gpu else CPU
        storage = plan_storage(program.forward, program.adjoint, self.place, costs)
        return replace(program, storage=storage)


# Bytes that one value costs to write and read again, by type, in float32.
FLOAT_BYTES = 4.0
BIT_BYTES = 0.125


@dataclass(frozen=True, slots=True)
class Costs:
    """What a choice costs on a kind of machine.

    Attributes:
        transcendental_bytes: A transcendental takes about the time of moving this many bytes.
        chunked: Whether recomputing needs states in memory, for each chunk of steps.
    """

    transcendental_bytes: float
    chunked: bool


CPU = Costs(transcendental_bytes=8.0, chunked=False)
# An estimate, not measured: some 20 instructions against the bytes that memory gives meanwhile.
GPU = Costs(transcendental_bytes=2.0, chunked=True)


def plan_storage(
    forward: Recurrence, adjoint: Adjoint, place: Place | None = None, costs: Costs = CPU
) -> Storage:
    """Choose what is stored between forward and backward.

    Args:
        forward: The forward recurrence.
        adjoint: Its adjoint.
        place: Where to keep the values; None chooses by bytes moved.
        costs: What moving and computing costs.
    """
    choices = [
        Storage(where, basis, tuple(_recomputed(forward, adjoint, basis)))
        for where in (Place if place is None else (place,))
        for basis in _candidates(forward, adjoint)
    ]
    return min(choices, key=lambda storage: _traffic(forward, adjoint, storage, costs))


def backward_bytes(
    forward: Recurrence, adjoint: Adjoint, storage: Storage, costs: Costs = CPU
) -> float:
    """Return the bytes moved for a neuron-step in float32 by storing and by the backward kernel.

    Counted are the cotangents read, the gradients written, and what `storage` costs.
    """
    fixed = FLOAT_BYTES * (len(adjoint.output_cotangents) + len(adjoint.recurrence.outputs))
    return fixed + _bytes(forward, adjoint, storage, costs)


def _candidates(forward: Recurrence, adjoint: Adjoint) -> Iterator[tuple[str, ...]]:
    """Yield the bases: all states that matter, one let alone, or the residuals themselves."""
    states = tuple(s.name for s in forward.states)
    needed = _slice(forward, adjoint, ())
    yield tuple(name for name in states if name in needed)
    inputs = {i.name for i in forward.inputs}
    yield tuple(name for name in adjoint.residuals if name not in inputs)
    for let in forward.lets:
        if not _slice(forward, adjoint, (let.name,)) & set(states):
            yield (let.name,)


def _slice(forward: Recurrence, adjoint: Adjoint, saved: tuple[str, ...]) -> set[str]:
    """Return every name that evaluating the residuals reads, stopping at the saved ones."""
    needed = {name for name in adjoint.residuals if name not in saved}
    for let in reversed(forward.lets):
        if let.name in needed:
            needed |= _reads(let) - set(saved)
    return needed


def _reads(let: Let) -> set[str]:
    return let_reads(Let(let.name, let.expr))


def _recomputed(forward: Recurrence, adjoint: Adjoint, saved: tuple[str, ...]) -> Iterator[str]:
    needed = _slice(forward, adjoint, saved)
    return (let.name for let in forward.lets if let.name in needed)


def _traffic(forward: Recurrence, adjoint: Adjoint, storage: Storage, costs: Costs) -> float:
    """Return the bytes of a choice, with the price of its arithmetic."""
    recomputed = set(storage.recomputed)
    costly = calls_maths(let for let in forward.lets if let.name in recomputed)
    if storage.place is Place.SCRATCH:
        costly += calls_maths(forward.lets)
    # On chip the size of the basis still matters, though far less than memory traffic.
    kept = kept_values(forward, adjoint, storage) if costs.chunked else len(storage.saved)
    cache = 0.01 * kept if storage.place is Place.SCRATCH else 0.0
    moved = _bytes(forward, adjoint, storage, costs)
    return moved + costs.transcendental_bytes * costly + cache


def _bytes(forward: Recurrence, adjoint: Adjoint, storage: Storage, costs: Costs) -> float:
    reread = FLOAT_BYTES * len(_reread(forward, adjoint, storage.saved, storage.place))
    if storage.place is Place.SCRATCH:
        kept = checkpoint_bytes(forward, adjoint, storage) if costs.chunked else {}
        return reread + 2 * sum(kept.values())
    return 2 * sum(stored_bytes(forward, name) for name in storage.saved) + reread


def _reread(
    forward: Recurrence, adjoint: Adjoint, saved: tuple[str, ...], place: Place
) -> set[str]:
    """Return the step inputs that the backward kernel reads once more."""
    steps = set(forward.step_inputs)
    if place is Place.SCRATCH and saved:
        return steps  # the forward sweep is run again
    return steps & _slice(forward, adjoint, saved)


def stored_bytes(forward: Recurrence, name: str) -> float:
    """Return the bytes of one saved value of a neuron-step in float32; a bool takes a bit."""
    return BIT_BYTES if name in bool_lets(forward.lets) else FLOAT_BYTES


def checkpoint_bytes(forward: Recurrence, adjoint: Adjoint, storage: Storage) -> dict[str, float]:
    """Return the bytes of a step for each state that is kept at the start of many chunks."""
    steps = chunk_steps(kept_values(forward, adjoint, storage))
    return dict.fromkeys(_carried(forward, storage.saved), FLOAT_BYTES / steps)


def _carried(forward: Recurrence, saved: tuple[str, ...]) -> tuple[str, ...]:
    """Return the states that some values depend on, over all steps."""
    live, size = set(saved), -1
    while size != len(live):
        size = len(live)
        live |= {state.update for state in forward.states if state.name in live}
        for let in reversed(forward.lets):
            if let.name in live:
                live |= _reads(let)
    return tuple(state.name for state in forward.states if state.name in live)


def transfers(program: NeuronProgram, costs: Costs = CPU) -> Iterator[tuple[str, str, float]]:
    """Yield what a neuron moves at each step: the sweep, what is read or written, its bytes.

    Forward and backward of a program without an adjoint are those of inference.
    """
    forward, adjoint, storage = program.forward, program.adjoint, program.storage
    yield from (("forward", f"read {name}", FLOAT_BYTES) for name in forward.step_inputs)
    written = {name: float(dtype.itemsize) for name, dtype in program.narrow}
    for name in forward.outputs:
        yield "forward", f"write {name}", written.get(name, FLOAT_BYTES)
    if adjoint is None or storage is None:
        return
    stored = storage.saved if storage.place is Place.MEMORY else ()
    for name in stored:
        yield "forward", f"store {name}", stored_bytes(forward, name)
        yield "backward", f"load {name}", stored_bytes(forward, name)
    if costs.chunked and storage.place is Place.SCRATCH:
        for name, count in checkpoint_bytes(forward, adjoint, storage).items():
            yield "forward", f"store {name} once a chunk", count
            yield "backward", f"load {name} once a chunk", count
    reread = _reread(forward, adjoint, storage.saved, storage.place)
    yield from (("backward", f"read {name} again", FLOAT_BYTES) for name in sorted(reread))
    for name in forward.outputs:
        yield "backward", f"read the gradient of {name}", written.get(name, FLOAT_BYTES)
    inputs = zip(adjoint.step_gradients, forward.step_inputs, strict=True)
    of = {gradient: name for gradient, name in inputs if gradient is not None}
    for name in adjoint.recurrence.outputs:
        yield "backward", f"write the gradient of {of.get(name, name)}", FLOAT_BYTES
