"""Open a stream on a compiled model: find its states, build the step, connect it to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.compilation.chunk_programs import chunk_program, differentiated
from snncc.compilation.pipeline import Compiled
from snncc.compilation.runnable import with_kernels
from snncc.compilation.step_counts import count_steps
from snncc.compilation.streamed import WHOLE
from snncc.compilation.time_lists import TimeLists, find_time_lists
from snncc.errors import LaunchError, UnsupportedError
from snncc.frontend.state.results import returned, written
from snncc.frontend.state.sources import gather, preserved
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.custom_gradient import run_graph
from snncc.ir.tape import Held, Position, SourceKind, Tape
from snncc.options import Options
from snncc.passes.streams.first_roles import ALIKE
from snncc.runtime.streams.interface import Interface
from snncc.runtime.streams.stream import Stream


def open_stream(
    model: Callable[..., Any],
    compiled: Compiled,
    options: Options,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Stream:
    """Return a stream at its start; in mode ``"online"`` its steps have gradients.

    Args:
        model: The model.
        compiled: A specialisation of it.
        options: How it was compiled.
        args: Arguments that the specialisation serves, with the time axis.
        kwargs: Keyword arguments.

    Raises:
        UnsupportedError: The model relates time steps other than by its states.
    """
    lists = find_time_lists(compiled)
    compiled, tape = lists.compiled, lists.compiled.recording.tape
    _refuse_held(tape)
    args, kwargs = lists.arguments.join((args, kwargs))
    leaves = [leaf.detach() for leaf in gather(tape, model, args, kwargs)]
    writes_back = options.mode == "serial"
    program = chunk_program(compiled, leaves, writes_back=writes_back)
    counted = count_steps(lists, model, (args, kwargs), program.input_axes)
    if counted is not compiled:
        program = chunk_program(counted, leaves, writes_back=writes_back)
    is_online = options.mode == "online"
    arguments = _Arguments(model, lists, args, kwargs, is_live=is_online)
    finish = _finisher(tape, model)
    results = _Results(lists, program.output_axes)
    interface = Interface(
        collect=arguments.collect,
        finish=finish,
        collect_chunk=arguments.collect_chunk,
        finish_chunk=lambda outputs: results.split(finish(outputs)),
        spread=results.spread,
        refresh=arguments.refresh,
        ranks=tuple(
            leaf.dim() - (axis is not None)
            for leaf, axis in zip(leaves, program.input_axes, strict=True)
        ),
        names=tuple(source.name for source in tape.sources),
        own=tuple(source.kind is SourceKind.INPUT for source in tape.sources),
        written=_written(tape),
    )
    if program.has_first:
        arguments.require_same_first(program, interface.finish_chunk)
    if is_online:
        program = differentiated(program, compiled, options, gather(tape, model, args, kwargs))
    program = replace(program, graph=with_kernels(program.graph, options))
    return Stream(program, interface, keeps_gradients=is_online)


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    return type(a) is type(b) and bool(a == b)


def _another_first(reason: str) -> UnsupportedError:
    return UnsupportedError(
        "The model cannot run one time step after another.",
        code="unsupported.stream",
        notes=[reason],
        hints=[ALIKE, WHOLE],
    )


class _Arguments:
    """Collects the tensors of a program: inputs from the call, all others once at each reset.

    Those are *live* where steps train the model: with gradients, and its buffers themselves.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        lists: TimeLists,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        is_live: bool = False,
    ) -> None:
        self._model = model
        self._lists = lists.arguments
        self._tape = tape = lists.compiled.recording.tape
        self._example = args, kwargs
        self._spec = tape.in_spec
        self._inputs = [
            (i, source.index)
            for i, source in enumerate(tape.sources)
            if source.kind is SourceKind.INPUT
        ]
        self._written = [i for i, is_written in enumerate(_written(tape)) if is_written]
        self._is_single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        self._is_live = is_live
        self._fixed: list[Tensor] = []
        self.refresh()

    def refresh(self) -> bool:
        """Read the parameters and the state of the model anew; tell whether they lie as before."""
        args, kwargs = self._example
        if self._is_live:
            self._fixed = gather(self._tape, self._model, args, kwargs)
            return False
        before = [_place(leaf) for leaf in self._fixed]
        leaves = [leaf.detach() for leaf in gather(self._tape, self._model, args, kwargs)]
        for i in self._written:  # the model keeps its own
            known = self._fixed[i] if self._fixed else leaves[i]
            own = leaves[i].clone() if known.shape != leaves[i].shape or not self._fixed else known
            leaves[i] = own.copy_(leaves[i])
        self._fixed = leaves
        return before == [_place(leaf) for leaf in self._fixed]

    def collect(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the tensors of the program for the arguments of a call."""
        if self._is_single and len(args) == 1 and not kwargs:
            given: Sequence[Any] = args
        else:
            given, spec = pytree.tree_flatten((args, kwargs))
            if spec != self._spec:
                raise LaunchError(
                    "The arguments of a step are not those of the model.",
                    code="launch.count",
                    notes=[f"the model was compiled for {self._spec.num_leaves} leaves"],
                )
        leaves = list(self._fixed)
        for position, index in self._inputs:
            assert index is not None
            leaves[position] = self._checked(given[index], position)
        return leaves

    def collect_chunk(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the tensors of the program for several steps."""
        return self.collect(*self._lists.join((args, kwargs)))

    def require_same_first(
        self, program: ChunkProgram, finish: Callable[[Sequence[Any]], Any]
    ) -> None:
        """Compare the first step, where it is a program of its own, with the model on one step.

        Raises:
            UnsupportedError: The model does something else on a sequence of one step.
        """
        given, spec = pytree.tree_flatten(self._example)
        leaves = [leaf.clone() for leaf in self._fixed]
        for position, index in self._inputs:
            axis = program.input_axes[position]
            if axis is not None and index is not None:
                given[index] = leaves[position] = leaves[position].narrow(axis, 0, 1)
        axes = [0 if len(leaves) > 1 else None for leaves in self._lists.leaves]
        args, kwargs = self._lists.split(pytree.tree_unflatten(given, spec), axes)
        with preserved(self._model, args, kwargs), self._unwritten(), torch.no_grad():
            try:
                leaves_now = pytree.tree_leaves(self._model(*args, **kwargs))
                expected = [x.clone() if isinstance(x, Tensor) else x for x in leaves_now]
            except Exception as error:  # whatever the user's code raises
                raise _another_first(f"on one step the model raises '{error}'") from error
        with torch.random.fork_rng(), torch.no_grad():
            outputs = run_graph(program.start, leaves)
        actual = pytree.tree_leaves(finish(outputs[: len(program.output_axes)]))
        if len(expected) != len(actual) or not all(map(_is_same, expected, actual)):
            raise _another_first("on one step the model computes something else than in its first")

    @contextmanager
    def _unwritten(self) -> Iterator[None]:
        """Undo what the model writes into its parameters, as a local rule of learning does."""
        own = gather(self._tape, self._model, *self._example)
        before = [(own[i].detach(), own[i].detach().clone()) for i in self._written]
        try:
            yield
        finally:
            for place, value in before:
                place.copy_(value)

    def _checked(self, value: Any, position: int) -> Tensor:
        like = self._fixed[position]
        if isinstance(value, Tensor) and (value.dtype, value.device) == (like.dtype, like.device):
            return value
        name = self._tape.sources[position].name
        seen = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise LaunchError(
            f"The input '{name}' is {seen}; the stream was opened for {like.dtype}.",
            code="launch.dtype",
            hints=["Convert it, or call the compiled model once with such an input."],
        )


class _Results:
    """Gives what a model returns for several steps, with its lists."""

    def __init__(self, lists: TimeLists, axes: Sequence[int | None]) -> None:
        self._structure, self._spread, self._axes = lists.results, lists.spread, axes
        leaves = lists.compiled.recording.tape.output_leaves
        self._leaf_axes = [axes[x.index] if isinstance(x, Position) else None for x in leaves]

    def split(self, results: Any) -> Any:
        """Return the results of several steps, lists in the place of their sequences."""
        return self._structure.split(results, self._leaf_axes)

    def spread(self, outputs: Sequence[Any]) -> list[Any]:
        """Return the outputs of the model as it was recorded: the rows of its sequences."""
        result = list(outputs)
        for position, (source, row) in self._spread.items():
            axis = self._axes[source]
            result[position] = None if axis is None else outputs[source].select(axis, row)
        return result


def _written(tape: Tape) -> tuple[bool, ...]:
    """Tell of each source whether the program may overwrite it, as norms do with statistics."""
    return tuple(
        is_written or source.kind is SourceKind.BUFFER
        for source, is_written in zip(tape.sources, written(tape), strict=True)
    )


def _place(leaf: Tensor) -> Any:
    return leaf.data_ptr(), leaf.shape, leaf.stride()


def _finisher(tape: Tape, model: Callable[..., Any]) -> Callable[[Sequence[Any]], Any]:
    """Return what makes results of outputs; one tensor, the commonest, needs no unflattening."""
    leaf = tape.output_leaves[0] if len(tape.output_leaves) == 1 else None
    if tape.out_spec.is_leaf() and isinstance(leaf, Position):
        return lambda outputs: outputs[leaf.index]
    return lambda outputs: returned(tape, model, outputs)


def _refuse_held(tape: Tape) -> None:
    """Refuse a model that returns an object of its own: a stream does not change the model."""
    held = [leaf.name for leaf in tape.output_leaves if isinstance(leaf, Held)]
    if held:
        raise UnsupportedError(
            f"The model returns '{held[0] or 'itself'}', which it holds.",
            code="unsupported.stream",
            notes=["A stream leaves the model and its state alone."],
            hints=["Return the tensors themselves."],
        )
