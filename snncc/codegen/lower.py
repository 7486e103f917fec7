"""Lower a neuron program to kernel IR: which arrays a kernel has, and its sweeps over time.

A forward kernel is one sweep; in fixed-point form, the sweeps that find its spikes come before it.
A backward kernel is a reverse sweep, which needs forward values at each step: either the forward
kernel stored them in memory, or a forward sweep of the same kernel recomputes them into a scratch
just before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from snncc.codegen.base import Access, Argument, FloatType, GpuSpec, Job, KernelSpec, Role
from snncc.codegen.kernel_ir import Carry, Checkpoint, Kernel, Load, Solve, Step, Store, Sweep
from snncc.codegen.prepare import (
    find_bools,
    find_live,
    identifier,
    iter_new_names,
    prepare,
    rename,
)
from snncc.codegen.quotients import divide_fast
from snncc.errors import InternalError
from snncc.ir.chunks import followers
from snncc.ir.names import Names
from snncc.ir.nodes import Let, Rank, Recurrence, State, Var
from snncc.ir.printer import print_recurrence
from snncc.ir.program import Adjoint, Guess, GuessedStep, NeuronProgram, Place, Storage
from snncc.ir.walk import bool_lets


def lower(program: NeuronProgram, spec: KernelSpec) -> Kernel:
    """Return the kernel that does a job of a neuron program."""
    if spec.job is Job.BACKWARD:
        return _lower_backward(program, spec)
    return _lower_forward(program, spec)


def saved_values(program: NeuronProgram) -> tuple[str, ...]:
    """Return the forward values that training keeps in memory, in order."""
    storage = program.storage
    if storage is None or storage.place is Place.SCRATCH:
        return ()
    return storage.saved


def checkpointed(program: NeuronProgram) -> tuple[str, ...]:
    """Return the states that recomputing a chunk of time starts from, in order."""
    storage = program.storage
    if storage is None or storage.place is Place.MEMORY:
        return ()
    forward = program.forward
    inputs = dict.fromkeys(i.name for i in forward.inputs)
    sweep = _forward_sweep("recompute", forward, inputs, storage.saved)
    return tuple(carry.name for carry in sweep.step.carries)


def _lower_forward(program: NeuronProgram, spec: KernelSpec) -> Kernel:
    forward = program.forward
    kept = saved_values(program) if spec.job is Job.TRAINING else ()
    bools = bool_lets(forward.lets)
    arguments = _Arguments(spec)
    inputs = _forward_inputs(forward, arguments)
    stores = [Store(name, arguments.add(name, Role.OUTPUT)) for name in forward.outputs]
    finals = [Store(name, arguments.add(name, Role.FINAL)) for name in forward.finals]
    saved = [Store(name, arguments.add(name, Role.SAVED, packed=name in bools)) for name in kept]
    training = spec.job is Job.TRAINING
    checkpoints = arguments.checkpoints(checkpointed(program) if training else ())
    roots = [*(final.name for final in finals), *(kept.name for kept in checkpoints)]
    solve = None
    if program.sweep is None:
        lets = prepare(forward.lets, _names(forward))
        parts = _Parts(lets, _carries(forward.states), inputs, bools)
    else:
        parts, solve = _solve(forward, program.sweep, arguments, inputs)
        roots += [carry.name for carry in solve.sweep.step.carries]
    step = parts.live_step(stores + saved, roots)
    main = Sweep("main", step, tuple(finals), backwards=forward.reverse)
    sweeps = [main] if solve is None else [main, solve.sweep]
    return Kernel(
        name=f"{forward.name}_{spec.job.value}",
        comment=print_recurrence(forward),
        dtype=spec.dtype,
        arguments=_used_arguments(arguments, sweeps, checkpoints),
        main=main,
        checkpoints=checkpoints,
        groups=arguments.gpu.groups,
        solve=solve,
    )


def _solve(
    forward: Recurrence,
    sweep: GuessedStep,
    arguments: _Arguments,
    inputs: Mapping[str, Argument | None],
) -> tuple[_Parts, Solve]:
    """Return what steps with given spikes consist of, and the sweeps that find these."""
    guesses = [arguments.guess(guess) for guess in sweep.guesses]
    values = {**inputs, **{argument.value: argument for argument, _ in guesses}}
    names = {*_names(forward), *values, *(let.name for let in sweep.lets)}
    bools = find_bools(sweep.lets, (guess.name for guess in sweep.guesses if guess.is_bool))
    parts = _Parts(prepare(sweep.lets, names), _carries(sweep.states), values, bools)
    found = [Store(g.found, a) for g, (_, a) in zip(sweep.guesses, guesses, strict=True)]
    counts = arguments.add("sweeps", Role.COUNT)
    read = tuple(argument for argument, _ in guesses)
    return parts, Solve(Sweep("solve", parts.live_step(found)), read, counts)


def _lower_backward(program: NeuronProgram, spec: KernelSpec) -> Kernel:
    forward, adjoint, storage = program.forward, program.adjoint, program.storage
    if adjoint is None or storage is None:
        raise InternalError(f"recurrence '{forward.name}' has no adjoint to lower")
    arguments = _Arguments(spec)
    inputs = _forward_inputs(forward, arguments)
    main = _reverse_sweep(forward, adjoint, storage, arguments, inputs)
    kept = (load for load in main.step.loads if load.argument is None)
    loaded = {load.after or load.name for load in kept}
    scratch = tuple(name for name in storage.saved if name in loaded)
    recompute = advance = None
    carried: list[str] = []
    if scratch:
        recompute = _forward_sweep("recompute", forward, inputs, scratch)
        carried = [carry.name for carry in recompute.step.carries]
        advance = _forward_sweep("advance", forward, inputs, (), carried)
    checkpoints = arguments.checkpoints(carried)
    sweeps = [sweep for sweep in (main, recompute) if sweep is not None]
    return Kernel(
        name=f"{forward.name}_backward",
        comment=print_recurrence(adjoint.recurrence) + _describe(storage),
        dtype=spec.dtype,
        arguments=_used_arguments(arguments, sweeps, checkpoints),
        main=main,
        recompute=recompute,
        advance=advance,
        scratch=scratch,
        checkpoints=checkpoints,
        groups=arguments.gpu.groups,
        tiled=arguments.gpu.tiled,
        short=arguments.gpu.short,
    )


def _reverse_sweep(
    forward: Recurrence,
    adjoint: Adjoint,
    storage: Storage,
    arguments: _Arguments,
    inputs: Mapping[str, Argument | None],
) -> Sweep:
    reverse = adjoint.recurrence
    forward_bools = bool_lets(forward.lets)
    values = {**inputs, **_cotangents(reverse, adjoint, arguments)}
    for name in storage.saved:
        packed = name in forward_bools
        kept = storage.place is Place.MEMORY
        values[name] = arguments.add(name, Role.SAVED, packed=packed) if kept else None
    after = (
        followers(forward, storage) if arguments.spec.gpu and storage.place is Place.SCRATCH else {}
    )
    values |= dict.fromkeys(after)
    again = set(storage.recomputed) - set(after)
    recomputed = [let for let in forward.lets if let.name in again]
    own = [*(let.name for let in reverse.lets), *(state.name for state in reverse.states)]
    new = dict(iter_new_names(own, {*_names(forward), *values}))
    lets = prepare([*recomputed, *rename(reverse.lets, new)], {*_names(forward), *values})
    carries = [
        Carry(new.get(s.name, s.name), new.get(s.update, s.update), s.initial)
        for s in reverse.states
    ]
    wanted = arguments.spec.wanted
    stores = [
        Store(new.get(name, name), arguments.add(name, Role.OUTPUT))
        for name in reverse.outputs
        if name in wanted
    ]
    finals = [
        Store(new.get(name, name), arguments.add(name, Role.FINAL))
        for name in reverse.finals
        if name in wanted
    ]
    known = forward_bools & {*storage.saved, *storage.recomputed}
    parts = _Parts(lets, carries, values, known, after)
    step = parts.live_step(stores, [final.name for final in finals])
    if arguments.spec.gpu is not None and arguments.spec.dtype is FloatType.FLOAT32:
        step = divide_fast(step)
    return Sweep("main", step, tuple(finals), backwards=True)


def _forward_sweep(
    name: str,
    forward: Recurrence,
    inputs: Mapping[str, Argument | None],
    kept: Iterable[str],
    roots: Iterable[str] = (),
) -> Sweep:
    lets = prepare(forward.lets, _names(forward))
    parts = _Parts(lets, _carries(forward.states), inputs, bool_lets(forward.lets))
    return Sweep(name, parts.live_step([Store(value, None) for value in kept], roots))


@dataclass(frozen=True, slots=True)
class _Parts:
    """All that a step may consist of."""

    lets: Sequence[Let]
    carries: Sequence[Carry]
    values: Mapping[str, Argument | None]
    bools: frozenset[str]
    after: Mapping[str, str] = field(default_factory=dict)

    def live_step(self, stores: Sequence[Store], roots: Iterable[str] = ()) -> Step:
        """Build a step of the parts that its stores and the carries in ``roots`` depend on."""
        wanted = [*(store.name for store in stores), *roots]
        live = find_live(self.lets, self.carries, wanted)
        lets = tuple(let for let in self.lets if let.name in live)
        defined = {let.name for let in lets}
        return Step(
            loads=tuple(
                Load(name, argument, self.after.get(name))
                for name, argument in self.values.items()
                if name in live and name not in defined
            ),
            carries=tuple(carry for carry in self.carries if carry.name in live),
            lets=lets,
            bools=find_bools(lets, self.bools),
            stores=tuple(stores),
        )


class _Arguments:
    """The arrays of a kernel under construction, each under a unique name."""

    _SUFFIX: ClassVar = {
        Role.INPUT: "in",
        Role.OUTPUT: "out",
        Role.FINAL: "final",
        Role.SAVED: "saved",
        Role.CHECKPOINT: "checkpoint",
        Role.COUNT: "count",
    }

    def __init__(self, spec: KernelSpec) -> None:
        self.spec = spec
        self.gpu = spec.gpu or GpuSpec()
        self._access = dict(self.gpu.inputs)
        self.all: list[Argument] = []
        self._names = Names(())

    def add(
        self, value: str, role: Role, rank: Rank | None = None, *, packed: bool = False
    ) -> Argument:
        """Add the array that holds the IR value ``value``."""
        argument = Argument(
            name=self._names.fresh(f"{identifier(value)}_{self._SUFFIX[role]}"),
            value=value,
            role=role,
            rank=rank or (Rank.LANE if role in (Role.FINAL, Role.COUNT) else Rank.STEP),
            uniform=role is Role.INPUT and value in self.spec.uniform,
            packed=packed,
            written=role in (Role.OUTPUT, Role.FINAL, Role.COUNT)
            or (role in (Role.SAVED, Role.CHECKPOINT) and self.spec.job is Job.TRAINING),
            access=self._access_of(value, role),
            folded=role is Role.FINAL and value in self.gpu.folded,
        )
        self.all.append(argument)
        return argument

    def guess(self, guess: Guess) -> tuple[Argument, Argument]:
        """Return a guess as sweeps read it, and as they write what they found in its place."""
        read, written = (
            Argument(
                name=self._names.fresh(f"{identifier(name)}_{suffix}"),
                value=guess.name,
                role=Role.GUESS,
                rank=Rank.STEP,
                packed=guess.is_bool,
                written=suffix == "found",
            )
            for name, suffix in ((guess.name, "given"), (guess.found, "found"))
        )
        return read, written

    def checkpoints(self, carries: Iterable[str]) -> tuple[Checkpoint, ...]:
        """Add the arrays that hold carries at the start of chunks, for targets that keep them."""
        if not self.gpu.checkpoints:
            return ()
        return tuple(Checkpoint(name, self.add(name, Role.CHECKPOINT)) for name in carries)

    def _access_of(self, value: str, role: Role) -> Access:
        if role is Role.OUTPUT:
            return self.gpu.outputs
        return self._access.get(value, Access.FLAT) if role is Role.INPUT else Access.FLAT


def _forward_inputs(forward: Recurrence, arguments: _Arguments) -> dict[str, Argument | None]:
    return {i.name: arguments.add(i.name, Role.INPUT, i.rank) for i in forward.inputs}


def _cotangents(
    reverse: Recurrence, adjoint: Adjoint, arguments: _Arguments
) -> dict[str, Argument | None]:
    names = {*adjoint.output_cotangents, *adjoint.final_cotangents}
    return {
        i.name: arguments.add(i.name, Role.INPUT, i.rank) for i in reverse.inputs if i.name in names
    }


def _used_arguments(
    arguments: _Arguments, sweeps: Iterable[Sweep], checkpoints: Iterable[Checkpoint] = ()
) -> tuple[Argument, ...]:
    """Return the arguments that some sweep reads or writes, in the order they were added."""
    used: set[Argument | None] = {checkpoint.argument for checkpoint in checkpoints}
    used |= {argument for argument in arguments.all if argument.role is Role.COUNT}
    initials: set[str] = set()
    for sweep in sweeps:
        used |= {load.argument for load in sweep.step.loads}
        used |= {store.argument for store in (*sweep.step.stores, *sweep.finals)}
        starts = (carry.initial for carry in sweep.step.carries)
        initials |= {start.name for start in starts if isinstance(start, Var)}
    return tuple(
        argument
        for argument in arguments.all
        if argument in used or (argument.role is Role.INPUT and argument.value in initials)
    )


def _carries(states: Iterable[State]) -> tuple[Carry, ...]:
    return tuple(Carry(s.name, s.update, s.initial) for s in states)


def _names(recurrence: Recurrence) -> frozenset[str]:
    inputs = (i.name for i in recurrence.inputs)
    states = (s.name for s in recurrence.states)
    return frozenset((*inputs, *states, *(let.name for let in recurrence.lets)))


def _describe(storage: Storage) -> str:
    place = storage.place.value
    saved = ", ".join(storage.saved) or "nothing"
    again = ", ".join(storage.recomputed) or "nothing"
    return f"\n  saved in {place}: {saved}; evaluated again: {again}"
