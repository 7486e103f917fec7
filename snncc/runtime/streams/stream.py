"""Streams: a compiled network that takes its input step by step and keeps its state in between.

A stream holds the state; the network and its parameters stay those of the model.  Outputs that have
a time axis are given for the steps just taken, outputs that have none (a sum over time, a last
potential) for the sequence so far: after the last step they are what the model returns for all of
it.  There are no gradients, but in mode ``"online"``, where those of a step end at its states.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.arguments import shown
from snncc.errors import LaunchError
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.graph_function import function_of
from snncc.ir.time_loop import Fill
from snncc.runtime.streams.interface import Interface
from snncc.runtime.streams.recorded_step import StepProgram
from snncc.runtime.streams.state import (
    MASK,
    STATE,
    apart,
    between,
    described,
    events_of,
    filled,
    initial_states,
    own_rows,
    read_state,
    refuse_copy,
    restarted,
    unfit,
    widened,
    write_state,
)
from snncc.runtime.streams.static_step import StaticStep
from snncc.runtime.streams.training_steps import TrainingSteps


class Stream:
    """Serial inference: ``y_t = stream(x_t)``; in mode ``"online"`` also training.

    Attributes:
        steps: How many steps were taken since the last reset.
    """

    def __init__(
        self, program: ChunkProgram, interface: Interface, *, keeps_gradients: bool = False
    ) -> None:
        self._keeps_gradients = keeps_gradients
        self._program = program
        self._run: Callable[..., tuple[Any, ...]] = function_of(program.graph)
        self._begin: Callable[..., tuple[Tensor, ...]] = function_of(program.start)
        self._interface = interface
        self._static: StaticStep | TrainingSteps | None = None
        self._outputs = len(program.output_axes)
        self._starts: Sequence[Any] | None = None
        self._states: list[Any] | None = None
        self._sizes: tuple[tuple[int, ...], ...] | None = None
        self._is_loaded = False  # until a step was taken from the state that was loaded
        self._is_settled = False  # whether the states are what a step leaves
        self.steps = 0

    def __repr__(self) -> str:
        sizes = zip(self._interface.names, self._sizes or (), self._interface.own, strict=False)
        inputs = {name: size for name, size, is_own in sizes if is_own}
        kind = "with gradients" if self._keeps_gradients else "without gradients"
        return described(kind, self.steps, inputs, self.state)

    __reduce_ex__ = refuse_copy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step.

        Args:
            *args: The arguments of the model at one time step: without the time axis.
            **kwargs: Its keyword arguments.

        Returns:
            What the model returns, without the time axis.

        Raises:
            LaunchError: The arguments do not fit the model or the state.
        """
        interface, static = self._interface, self._static
        leaves = interface.collect(args, kwargs)
        if static is not None and self._states is static.states and static.accepts(leaves):
            return interface.finish(self._fast(static, leaves))
        leaves = interface.with_time(leaves, self._program.input_axes)
        return interface.finish(self._step(leaves))

    def _step(self, leaves: list[Tensor]) -> Sequence[Any]:
        """Take one step and return its outputs without their time axes."""
        is_ready = self._is_settled or self._is_put_back(leaves)
        static = self._fitted(leaves) if is_ready else None
        if static is None:
            parts = zip(self._advance(leaves, 1), self._program.output_axes, strict=True)
            return [x if axis is None else x.select(axis, -1) for x, axis in parts]
        return self._fast(static, leaves)

    def _is_put_back(self, leaves: list[Tensor]) -> bool:
        """Put the states before the first step where steps before a reset had theirs, if they fit.

        What takes these steps can take the first one, too.
        """
        known, start = self._static, self._program.start
        is_drawn = self._program.has_first or any(n.meta.get("impure") for n in start.nodes)
        if self._states is not None or known is None or is_drawn:
            return False
        with self._explaining(leaves), torch.no_grad():
            self._begin_at(leaves)
        states = widened(self._program, self._initial(), known.states)
        if states is None or not known.fits(states, leaves):
            self._starts = None
            return False
        self._states, self._is_settled = states, True
        return True

    def _fitted(self, leaves: list[Tensor]) -> StaticStep | TrainingSteps | None:
        """Return what takes a step from the present states on buffers of its own, if it can."""
        self._require_same_sizes(leaves)
        if self._states is None or (self._keeps_gradients and self._program.counts):
            return None
        known = self._static
        if known is None or not known.fits(self._states, leaves):
            with self._explaining(leaves):
                known = self._static = self._bound(self._states, leaves)
        if isinstance(known, TrainingSteps) and not known.is_ready(leaves):
            return None
        known.move_to(self._states)
        return known

    def _bound(self, states: Sequence[Any], leaves: list[Tensor]) -> StaticStep | TrainingSteps:
        interface, program = self._interface, self._program
        if self._keeps_gradients:
            axes = program.input_axes, program.output_axes
            step = StepProgram(self._run, *axes, interface.own)
            return TrainingSteps(step, states, leaves, self._without_trace)
        with self._without_trace(leaves), torch.no_grad():
            return StaticStep(program, states, leaves, interface.own)

    def _fast(self, static: StaticStep | TrainingSteps, leaves: list[Tensor]) -> Sequence[Any]:
        """Take a step on buffers that are there."""
        try:
            results = static(self.steps + 1, leaves)
        except (RuntimeError, IndexError, ValueError):
            with self._explaining(leaves):
                raise
        self.steps += 1
        self._states = static.states
        return results

    def chunk(self, *args: Any, **kwargs: Any) -> Any:
        """Take several steps at once.

        Args:
            *args: The arguments of the model, with the time axis.
            **kwargs: Its keyword arguments.

        Returns:
            What the model returns; what has a time axis has it for these steps.
        """
        return self._interface.finish_chunk(self.raw_chunk(args, kwargs))

    def raw_chunk(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Take several steps at once and return the outputs of the program as they are."""
        leaves = self._interface.collect_chunk(args, kwargs)
        lengths = {
            x.shape[a]
            for x, a in zip(leaves, self._program.input_axes, strict=True)
            if a is not None and x.dim() > a
        }
        if len(lengths) > 1:
            raise LaunchError(
                f"The inputs of a chunk have {sorted(lengths)} steps.", code="launch.sizes"
            )
        return self._advance(leaves, lengths.pop() if lengths else 1)

    def whole_sequence(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Start anew, take every step of a sequence, and return the outputs of the program."""
        self.reset()
        leaves = self._interface.collect_chunk(args, kwargs)
        along = [(i, a) for i, a in enumerate(self._program.input_axes) if a is not None]
        length = leaves[along[0][0]].shape[along[0][1]] if along else self._program.length
        first = self._advance(between(self._program, leaves, 0, 1), 1)
        later = [self._step(between(self._program, leaves, t, t + 1)) for t in range(1, length)]
        outputs = [
            (later[-1][i] if later else x)
            if axis is None
            else torch.cat([x, *(seen[i].unsqueeze(axis) for seen in later)], axis)
            for i, (x, axis) in enumerate(zip(first, self._program.output_axes, strict=True))
        ]
        return self._interface.spread(outputs)

    def reset(self, mask: Tensor | None = None) -> None:
        """Go back to the state before the first step.

        Args:
            mask: Bools [B]: the samples of the batch that start anew; None means all of them.

        Raises:
            LaunchError: Single samples cannot start anew: the network counts its steps, or needs
                their first step to start from.
        """
        if mask is None:
            self._states = self._starts = self._sizes = None
            self._is_loaded = self._is_settled = False
            self.steps = 0
            lies_as_before = self._interface.refresh()
            if isinstance(self._static, StaticStep):
                self._static = self._static.refreshed() if lies_as_before else None
        elif not isinstance(mask, Tensor) or mask.dtype is not torch.bool or mask.dim() != 1:
            raise MASK.refused(mask, "a tensor of bools with one axis")
        elif self._states is not None:
            self._states = restarted(self._program, self._states, self._initial, mask)

    @property
    def state(self) -> dict[str, Tensor]:
        """What is carried to the next step, by name; empty before the first step."""
        pairs = zip(self._program.states, self._states or (), strict=False)
        return {known.name: value.clone() for known, value in pairs}

    @property
    def last_events(self) -> dict[str, Tensor]:
        """What happened in the last step or chunk in mode ``"async"``, for each sample."""
        return events_of(self._program)

    def load_state(self, state: Mapping[str, Tensor], steps: int | None = None) -> None:
        """Go on from a state.

        Args:
            state: A value for each name in `state`; empty means to start anew.
            steps: How many steps it is after the start; None keeps the count.

        Raises:
            LaunchError: A name is missing or unknown, or a value has another type.  Sizes that do
                not fit are found by the next step.
        """
        if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
            raise STATE.refused(state, "tensors by name")
        if not state:
            self.reset()
            return
        steps = self.steps if steps is None else STATE.whole(steps, least=0)
        names = [s.name for s in self._program.states]
        if set(names) != set(state):
            raise LaunchError(
                f"The state has the names {shown([*state])}; the stream has {sorted(names)}.",
                code="launch.stream-state",
            )
        for known, value in zip(self._program.states, (state[name] for name in names), strict=True):
            if known.dtype is not None and value.dtype is not known.dtype:
                raise unfit(f"'{known.name}' is {value.dtype}; it has to be {known.dtype}")
        self._states = [state[name].detach().clone() for name in names]
        self._is_loaded, self._is_settled = True, False
        self.steps = steps

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, whole or not at all.

        Raises:
            BundleError: The file cannot be written.
        """
        write_state(path, self.state, self.steps)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a state that `save` wrote; nothing in the file is executed.

        Raises:
            BundleError: The file is not the state of such a stream.
        """
        with read_state(path) as (state, steps):
            self.load_state(state, steps)

    def _advance(self, leaves: list[Tensor], steps: int) -> Sequence[Any]:
        self._require_same_sizes(leaves)
        if isinstance(self._static, TrainingSteps) and self._states is self._static.states:
            self._states = [x.clone() for x in self._states]  # autograd may keep them
        if self._states is None and self._program.has_first:
            return self._advance_from_first(leaves, steps)
        is_first = self._states is None
        with self._explaining(leaves):
            with torch.no_grad():
                if self._states is None or self._starts is None:
                    self._begin_at(leaves)
                if self._states is None:
                    self._states = self._initial()
                if self._is_loaded:
                    self._require_fitting(self._states, leaves, steps)
            with self._gradients():
                results = self._run(self.steps + steps, *self._states, *leaves)
        outputs = results[: self._outputs]
        self._states = apart(results[self._outputs :], (*outputs, *leaves))
        self._is_settled = True
        self.steps += steps
        return outputs if is_first else own_rows(self._program, outputs, steps)

    def _gradients(self) -> torch.set_grad_enabled:
        """Return the context of a step."""
        return torch.set_grad_enabled(self._keeps_gradients and torch.is_grad_enabled())

    def _advance_from_first(self, leaves: list[Tensor], steps: int) -> Sequence[Any]:
        """Take a first step that is another program, and then those that follow."""
        with self._gradients(), self._explaining(leaves):
            outputs = self._begin_at(between(self._program, leaves, 0, 1))
        self._starts = apart(self._starts or (), leaves)
        self._states = self._initial()
        if any(isinstance(state.start, Fill) for state in self._program.states):
            first = between(self._program, leaves, 0, 1)
            with torch.no_grad(), self._without_trace(first):
                ends = self._run(1, *self._states, *first)[self._outputs :]
            self._states = filled(self._program, self._states, ends)
        self.steps = 1
        if steps == 1:
            return outputs
        later = self._advance(between(self._program, leaves, 1, steps), steps - 1)
        return [
            new if axis is None else torch.cat([old, new], axis)
            for old, new, axis in zip(outputs, later, self._program.output_axes, strict=True)
        ]

    def _begin_at(self, leaves: Sequence[Tensor]) -> Sequence[Any]:
        """Compute what states start from, and return the outputs of the first step, if any."""
        if self._is_loaded:
            with self._without_trace(leaves):
                results = self._begin(*leaves)
        else:
            results = self._begin(*leaves)
        count = self._outputs if self._program.has_first else 0
        self._starts = results[count:]
        return [x.clone() if isinstance(x, Tensor) else x for x in results[:count]]

    def _require_fitting(self, states: Sequence[Any], leaves: Sequence[Tensor], steps: int) -> None:
        """Refuse states that were loaded and are not of the sizes that a first step leaves."""
        with self._without_trace(leaves):
            ends = self._run(steps, *self._initial(), *leaves)[self._outputs :]
        for known, state, end in zip(self._program.states, states, ends, strict=True):
            if isinstance(end, Tensor) and state.shape != end.shape:
                raise unfit(f"'{known.name}' is {list(state.shape)}, not {list(end.shape)}")
        self._is_loaded = False

    @contextmanager
    def _without_trace(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Leave random numbers, and what the program overwrites, as they were."""
        flags = self._interface.written
        places = [x for x, is_written in zip(leaves, flags, strict=True) if is_written]
        before = [x.clone() for x in places]
        with torch.random.fork_rng(devices=[]):
            yield
        for place, value in zip(places, before, strict=True):
            place.copy_(value)

    @contextmanager
    def _explaining(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Say of an error of torch which inputs it was about; the first step may be taken again."""
        before = self._states
        try:
            yield
        except (RuntimeError, IndexError, ValueError) as error:
            self._states = before
            if before is None:
                self._starts = self._sizes = None
            own = zip(self._interface.names, leaves, self._interface.own, strict=True)
            given = [f"'{name}' is {list(x.shape)}" for name, x, is_own in own if is_own]
            raise LaunchError(
                "The step cannot be taken with these inputs.",
                code="launch.sizes",
                notes=[str(error).partition("\n")[0], f"With its time axis {', '.join(given)}."],
                hints=["Give inputs as the model takes them, of one batch size."],
            ) from error

    def _require_same_sizes(self, leaves: Sequence[Tensor]) -> None:
        """Refuse a step of another batch than those before."""
        sizes = tuple(
            tuple(n for d, n in enumerate(x.shape) if d != axis)
            for x, axis in zip(leaves, self._program.input_axes, strict=True)
        )
        if self._sizes is None:
            self._sizes = sizes
        for name, old, new in zip(self._interface.names, self._sizes, sizes, strict=True):
            if old != new:
                raise LaunchError(
                    f"The input '{name}' of a step is {list(new)}; before it was {list(old)}.",
                    code="launch.stream-sizes",
                    hints=["Call 'reset()' before a batch of another size."],
                )

    def _initial(self) -> list[Any]:
        """Return the states before the first step."""
        assert self._starts is not None
        return initial_states(self._program, self._starts)
