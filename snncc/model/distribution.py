"""Split the time of a compiled model over the processes of a group."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.arguments import Check, shown
from snncc.compilation.chunk_programs import chunk_program, differentiated
from snncc.compilation.pipeline import Compiled
from snncc.compilation.relay import (
    begun,
    can_split,
    fingerprint,
    number_of,
    relayed,
    shapes_of_states,
    steps_between,
)
from snncc.errors import LaunchError, OptionError, UnsupportedError
from snncc.frontend.placement import placed
from snncc.frontend.session import is_recording
from snncc.frontend.state.results import apart, returned, write_back, written
from snncc.frontend.state.sources import gather
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.graph_function import function_of
from snncc.model.module import CompiledModule
from snncc.passes.base import Rejection
from snncc.runtime.processes.handover import Call, enter, leave
from snncc.runtime.processes.ranks import Ranks

MOST_BLOCKS = 4096


@dataclass(eq=False)
class _Program:
    """What runs a compiled model on a segment of time.

    Attributes:
        chunk: Its program for some of its steps.
        run: That program with hand-overs.
        begin: From the tensors of the sources to what states start from.
        number: Tells it from other programs.
        likes: For sizes of a call, what states are like.
    """

    chunk: ChunkProgram
    run: Callable[..., tuple[Any, ...]]
    begin: Callable[..., tuple[Any, ...]]
    number: int
    likes: dict[object, list[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Segment:
    """What one rank brings to a call.

    Attributes:
        compiled: The model.
        program: What runs it on a segment.
        values: The tensors of the sources.
        sizes: The shapes and types of these, without their time axes.
        steps: How many steps there are.
        has_gradients: Whether there is a backward pass.
    """

    compiled: Compiled
    program: _Program
    values: list[Tensor]
    sizes: tuple[object, ...]
    steps: int
    has_gradients: bool

    @property
    def likes(self) -> list[Tensor]:
        """For each state a tensor without memory of its shape, dtype and device."""
        return self.program.likes[self.sizes]


class DistributedModule(nn.Module):
    """A compiled model that runs on a segment of time, in each process of a group.

    All processes call it together.  Each passes its own part of every input that has a time axis,
    in the order of the ranks, and the same of everything else.  Results with a time axis are those
    of the segment; results without, and the state that the model keeps, are those of the whole
    sequence, on every rank.  Backward passes are made together as well: after one, the gradients
    of parameters are sums over the steps of the segment.

    Attributes:
        module: The compiled model.
        blocks: Into how many blocks the lanes of a neuron are cut at most; None chooses.
    """

    def __init__(self, module: CompiledModule, group: Any, blocks: int | None) -> None:
        super().__init__()
        self.module = module
        self.blocks = blocks
        self._ranks = Ranks(group)
        self._programs: weakref.WeakKeyDictionary[Compiled, _Program]
        self._programs = weakref.WeakKeyDictionary()
        self._is_compared = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": weakref.WeakKeyDictionary(), "_is_compared": False}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on the segment of this rank, together with the other ranks.

        Raises:
            LaunchError: Another rank makes another call, or none.
            UnsupportedError: The model cannot be split.
        """
        if is_recording():  # by the compilation of a model around this one
            raise _part_of_another()
        try:
            segment = self._segment(args, kwargs)
        except Exception:
            self._ranks.exchange([0] * (len(_DIFFERENCES) + 2), _device_of(args, kwargs))
            raise
        header = [*self._header(segment), segment.steps, secrets.randbits(31)]
        seen = self._ranks.exchange(header, segment.values[0].device)
        require_same(seen)
        self._is_compared = True
        ranks = self._ranks.of_call(tag=seen[0][-1])
        results = self._run(segment, ranks, [each[-2] for each in seen])
        ranks.flush()
        tape, program = segment.compiled.recording.tape, self.module.program
        outputs = placed(tape, segment.values, results)
        result = returned(tape, program, outputs, args, kwargs)
        write_back(tape, program, outputs, args, kwargs)
        return result

    def sum_gradients(self) -> None:
        """Add up the gradients of the model's parameters over the ranks.

        Every rank calls it once, after the backward passes and before the step of the optimizer.

        Raises:
            LaunchError: Another rank did not call it.
        """
        kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for parameters in kinds.values():
            self._sum(parameters)

    def _sum(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up gradients of one type in one message, and how many ranks have each."""
        like, gradients = parameters[0], [p.grad for p in parameters]
        flags = like.new_tensor([float(g is not None) for g in gradients])
        parts = [
            like.new_zeros(p.numel()) if g is None else g.reshape(-1)
            for p, g in zip(parameters, gradients, strict=True)
        ]
        total = self._ranks.total(torch.cat([flags, *parts]))
        found, *sums = torch.split(total, [len(parts), *(part.numel() for part in parts)])
        for parameter, count, gradient in zip(parameters, found.tolist(), sums, strict=True):
            if count:
                parameter.grad = gradient.view_as(parameter)

    def _segment(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Segment:
        """Return what this rank brings to a call, compiling the model if need be."""
        if torch._C._is_any_autocast_enabled():
            raise _refused("the call is made under automatic mixed precision")
        if any(isinstance(x, Tensor) and not x.numel() for x in pytree.tree_leaves((args, kwargs))):
            raise _refused("an input of this rank is empty; every rank has at least one step")
        module = self.module
        compiled = module.specialize(*args, **kwargs)
        tape = compiled.recording.tape
        values = gather(tape, module.program, args, kwargs)
        if compiled not in self._programs:
            self._programs[compiled] = _program(compiled, values)
        program = self._programs[compiled]
        axes = program.chunk.input_axes
        sizes = tuple(
            (tuple(n for d, n in enumerate(x.shape) if d != axis), x.dtype, x.device.type)
            for x, axis in zip(values, axes, strict=True)
        )
        if sizes not in program.likes:
            likes = shapes_of_states(program.chunk, values, written(tape))
            if isinstance(likes, int):
                state = program.chunk.states[likes]
                raise _refused(f"its state '{state.name}' is no tensor", state.where)
            program.likes[sizes] = likes
        steps = {x.shape[axis] for x, axis in zip(values, axes, strict=True) if axis is not None}
        if len(steps) > 1:
            raise LaunchError(f"The inputs have {sorted(steps)} steps.", code="launch.sizes")
        if program.chunk.has_first and self._ranks.is_first and steps == {1}:
            raise _refused("its first step is another program; the first rank has no step after it")
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in values)
        return _Segment(compiled, program, values, sizes, steps.pop(), wanted)

    def _header(self, segment: _Segment) -> list[int]:
        """Return what has to be equal on all ranks, in the order of `_DIFFERENCES`."""
        needs = [x.requires_grad for x in segment.values]
        how = self.blocks, self.module.training, self.module.options.target
        flags = needs, segment.has_gradients, how
        content = (
            1
            if self._is_compared
            else _content([*self.module.parameters(), *self.module.buffers()])
        )
        sizes = [[*size[:1], *map(str, size[1:])] for size in segment.sizes]  # type: ignore[index]
        return [1, segment.program.number, number_of(str(sizes)), number_of(str(flags)), content]

    def _run(self, segment: _Segment, ranks: Ranks, steps: Sequence[int]) -> list[Any]:
        """Return the outputs of the program: those of the segment, and those of the sequence."""
        chunk = segment.program.chunk
        leaves = list(apart(segment.compiled.recording.tape, segment.values))
        call = Call(ranks, segment.likes, self.blocks or _BLOCKS)
        if segment.has_gradients:
            call.root = self._enter(ranks, leaves, chunk)
        first: Sequence[Any] = ()
        starts: Sequence[Any] = [None] * len(chunk.states)
        if ranks.is_first:
            ahead = steps_between(chunk, leaves, 0, 1) if chunk.has_first else leaves
            first, starts = begun(chunk, segment.program.begin(*ahead), segment.likes)
            leaves = steps_between(chunk, leaves, int(chunk.has_first), segment.steps)
        outputs = segment.program.run(call, sum(steps[: ranks.rank + 1]), *starts, *leaves)
        if first:
            outputs = tuple(
                new if axis is None else torch.cat([old, new], axis)
                for old, new, axis in zip(first, outputs, chunk.output_axes, strict=True)
            )
        return _left(call, outputs, chunk.output_axes)

    def _enter(self, ranks: Ranks, leaves: list[Tensor], chunk: ChunkProgram) -> Tensor:
        """Put tensors that are the same on every rank behind the beginning of the graph."""
        own = {id(parameter) for parameter in self.module.parameters()}
        needing = [i for i, leaf in enumerate(leaves) if leaf.requires_grad]
        shared = tuple(id(leaves[i]) not in own and chunk.input_axes[i] is None for i in needing)
        root, entered = enter(ranks, [leaves[i] for i in needing], shared)
        places = (i for i, is_shared in zip(needing, shared, strict=True) if is_shared)
        for i, leaf in zip(places, entered, strict=True):
            leaves[i] = leaf
        return root


def _left(call: Call, outputs: Sequence[Any], axes: Sequence[int | None]) -> list[Any]:
    """Return the outputs of a call: without a time axis they are those of the last rank."""
    results = [
        _from_last(call.ranks, x) if axis is None else x
        for x, axis in zip(outputs, axes, strict=True)
    ]
    if call.root is None:
        return results
    places = [i for i, x in enumerate(results) if isinstance(x, Tensor)]
    counted = tuple(axes[i] is not None or call.ranks.is_last for i in places)
    needs = tuple(outputs[i].requires_grad for i in places)
    left = leave(call, [results[i] for i in places], counted, needs)
    for i, value in zip(places, left, strict=True):
        results[i] = value
    return results


def _from_last(ranks: Ranks, value: Any) -> Any:
    if isinstance(value, Tensor):
        last = ranks.from_last(value)
        return value if ranks.is_last else last
    if value is None:
        return None
    return type(value)(ranks.from_last(torch.tensor(value)).item())


# Blocks of a neuron's lanes, where none are asked for.
_BLOCKS = 4

# What has to be equal on all ranks, and what is said where it is not.
_DIFFERENCES = (
    "could not begin the call, and says why",
    "runs another program",
    "has inputs of other sizes or types",
    "has other gradients, blocks or modes to compute",
    "has parameters or buffers of other values",
)


def require_same(seen: Sequence[Sequence[int]]) -> None:
    """Refuse a call that is not the same on all ranks.

    Raises:
        LaunchError: It is not.
    """
    for position, what in enumerate(_DIFFERENCES):
        for rank, numbers in enumerate(seen):
            failed = position == 0 and not numbers[0]
            if failed or (position and numbers[position] != seen[0][position]):
                raise LaunchError(
                    f"Rank {rank} {what}.",
                    code="launch.ranks",
                    notes=["Ranks that share a sequence make the same call on their parts of it."],
                    hints=["Give each the same model, and inputs that differ in steps alone."],
                )


def _content(parameters: Sequence[Tensor]) -> int:
    """Return a number that differs where parameters do."""
    sums = []
    for parameter in parameters:
        data = parameter.detach().contiguous().view(-1).view(torch.uint8).to(torch.int64)
        weights = torch.arange(1, len(data) + 1, device=data.device) % 65521
        sums.append(int((data * weights).sum()))
    return number_of(str(sums))


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    leaves = pytree.tree_leaves((args, kwargs))
    return next((x.device for x in leaves if isinstance(x, Tensor)), torch.device("cpu"))


def _program(compiled: Compiled, values: Sequence[Tensor]) -> _Program:
    """Return what runs a compiled model on a segment.

    Raises:
        UnsupportedError: It cannot be split.
    """
    options = compiled.options
    chunk = chunk_program(compiled, [x.detach() for x in values], writes_back=True)
    rejection = can_split(chunk)
    if isinstance(rejection, Rejection):
        raise _refused(rejection.reason, rejection.where)
    number = fingerprint(chunk)
    if any(x.requires_grad for x in values):
        chunk = differentiated(chunk, compiled, options, values, by_states=True)
    return _Program(chunk, relayed(chunk, options), function_of(chunk.start), number)


def _part_of_another() -> OptionError:
    return OptionError(
        "A model whose time is split cannot be compiled again, nor as a part of another.",
        code="option.distribute",
        hints=["Compile the whole model, and then split its time."],
    )


def _refused(reason: str, where: Any = None) -> UnsupportedError:
    return UnsupportedError(
        "The time of the model cannot be split over several processes.",
        code="unsupported.devices",
        location=where,
        notes=[reason],
        hints=["Run the whole sequence in one process, or split the batch."],
    )


def distribute(
    module: CompiledModule, group: Any = None, *, blocks: int | None = None
) -> DistributedModule:
    """Split the time of a compiled model over the processes of a group.

    Args:
        module: A compiled model, in mode ``"fused"``, the same on every rank.
        group: A process group of torch.distributed; its ranks are in the order of time.  None is
            the group of all processes.
        blocks: Into how many blocks the lanes of each neuron are cut at most, so that the ranks
            work on different blocks at the same time; None chooses.

    Raises:
        OptionError: The model is not compiled, or runs in another mode; there is no such group, or
            this process is no part of it.
    """
    if not isinstance(module, CompiledModule):
        raise _MODULE.refused(module, "a compiled model")
    if module.options.mode != "fused":
        raise OptionError(
            f"A model in mode {shown(module.options.mode)} cannot be split over processes.",
            code="option.distribute",
            hints=["Compile it with mode='fused'."],
        )
    blocks = None if blocks is None else _CHECK.whole(blocks, most=MOST_BLOCKS)
    if not (dist.is_available() and dist.is_initialized()):
        raise OptionError(
            "There is no process group.",
            code="option.distribute",
            hints=["Call 'torch.distributed.init_process_group' first."],
        )
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise _GROUP.refused(group, "a process group that this process is part of")
    return DistributedModule(module, group or dist.group.WORLD, blocks)


_MODULE = Check("The model", code="option.distribute", hint="Pass what 'snncc.compile' returns.")
_CHECK = Check("Option 'blocks'", code="option.distribute", hint="Leave it out: it is chosen.")
_GROUP = Check(
    "Option 'group'",
    code="option.distribute",
    hint="Leave it out for all processes, or make one with 'torch.distributed.new_group'.",
)
