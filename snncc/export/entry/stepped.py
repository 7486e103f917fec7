"""A compiled model that is to be exported as steps: lists over time are sequences."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.compilation.chunk_programs import chunk_program, require_row_a_step
from snncc.compilation.pipeline import Compiled
from snncc.compilation.step_counts import count_steps
from snncc.compilation.streamed import WHOLE
from snncc.compilation.time_lists import TimeLists, find_time_lists
from snncc.errors import OptionError, UnsupportedError
from snncc.export.entry.exported import ExportedModel, wanted_outputs
from snncc.export.network.events import with_seed
from snncc.export.network.one_step import looked_up_last
from snncc.frontend.state.sources import gather
from snncc.ir.chunk_program import ChunkProgram
from snncc.ir.tape import Source, SourceKind, Tape

_WHOLE = "Export a program of torch, which takes the whole sequence: format='pt2'."


@dataclass(frozen=True, eq=False)
class SteppedModel:
    """A compiled model that is to be exported as steps, and an example.

    Where the model takes or returns a list with an item for each step, this takes or gives a
    sequence with a time axis.

    Attributes:
        whole: The model as it is.
    """

    whole: ExportedModel

    @functools.cached_property
    def lists(self) -> TimeLists:
        """The lists over time of the model, norms folded, and the model without these lists.

        Raises:
            UnsupportedError: The model has no folded form.
        """
        return find_time_lists(self.whole.folded)

    @property
    def compiled(self) -> Compiled:
        """The model, norms folded."""
        return self.lists.compiled

    @property
    def tape(self) -> Tape:
        """The recorded run."""
        return self.compiled.recording.tape

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the leaves are."""
        return self.tape.sources

    @property
    def own(self) -> list[bool]:
        """For each leaf whether it is an input."""
        return [source.kind is SourceKind.INPUT for source in self.sources]

    @functools.cached_property
    def example(self) -> tuple[Any, ...]:
        """The arguments of the example."""
        return self.joined(self.whole.example)

    @functools.cached_property
    def leaves(self) -> list[Tensor]:
        """The tensors that the model reads."""
        return self.gathered(self.example)

    @property
    def inputs(self) -> list[Tensor]:
        """The inputs of the example."""
        return [x for x, is_own in zip(self.leaves, self.own, strict=True) if is_own]

    @property
    def wanted(self) -> list[int]:
        """Which outputs of the program the model returns."""
        return wanted_outputs(self.tape)

    @functools.cached_property
    def outputs(self) -> list[Tensor]:
        """What the PyTorch model returns for the example."""
        return self._sequences(self.whole.outputs)

    @functools.cached_property
    def program(self) -> ChunkProgram:
        """The network for a chunk of time.

        Raises:
            UnsupportedError: It has none.
            OptionError: The example shows no loop over time.
        """
        try:
            program = self._counted(chunk_program(self.compiled, self.leaves))
            require_row_a_step(program)
        except UnsupportedError as error:
            raise UnsupportedError(
                error.message,
                code=error.code,
                location=error.location,
                notes=error.notes,
                hints=[*(hint for hint in error.hints if hint != WHOLE), _WHOLE],
            ) from error
        if program.has_first:
            self.whole.fast.stream(*self.whole.example)  # compares the first step with the model's
        if not self._steps(program):
            raise OptionError(
                "The example has no time axis that can be told.",
                code="option.example",
                notes=["A single step shows no loop over time."],
                hints=["Give an example of three steps or more."],
            )
        program = replace(program, graph=looked_up_last(program.graph))
        return program if self.whole.seed is None else with_seed(program, self.whole.seed)

    def _counted(self, program: ChunkProgram) -> ChunkProgram:
        """Return a program whose numbers follow the number of steps."""
        model = self.whole.fast.program
        counted = count_steps(self.lists, model, (self.example, {}), program.input_axes)
        return program if counted is self.compiled else chunk_program(counted, self.leaves)

    @property
    def steps(self) -> int:
        """How many steps the example has."""
        return self._steps(self.program)

    def _steps(self, program: ChunkProgram) -> int:
        axes = zip(self.leaves, program.input_axes, strict=True)
        return next((x.shape[a] for x, a in axes if a is not None), program.length)

    def joined(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return arguments with sequences in the place of lists.

        Raises:
            LaunchError: They are not those of the model.
        """
        args: tuple[Any, ...] = self.lists.arguments.join((arguments, {}))[0]
        return args

    def gathered(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        """Return the tensors that the model reads, for arguments with sequences."""
        leaves = gather(self.tape, self.whole.fast.program, arguments, {})
        return [leaf.detach() for leaf in leaves]

    def serves(self, leaves: Iterable[Tensor]) -> bool:
        """Tell whether the network is the same for other inputs."""
        flat, spec = pytree.tree_flatten((self.example, {}))
        for source, leaf in zip(self.sources, leaves, strict=True):
            if source.kind is SourceKind.INPUT and source.index is not None:
                flat[source.index] = leaf
        arguments = self.lists.arguments
        axes = [0 if len(column) > 1 else None for column in arguments.leaves]
        args, _ = arguments.split(pytree.tree_unflatten(flat, spec), axes)
        return self.whole.serves_call(args)

    def expected(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        """Return what the PyTorch model returns for some arguments, those that it takes."""
        return self._sequences(self.whole.expected(arguments))

    def _sequences(self, results: Any) -> list[Tensor]:
        """Return results with sequences in the place of lists, in the order of the outputs."""
        leaves = pytree.tree_leaves(self.lists.results.join(results))
        columns = zip(leaves, self.lists.results.leaves, self.wanted, strict=True)
        axes = self.program.output_axes
        return [
            x.movedim(0, axes[i]) if len(column) > 1 and axes[i] is not None else x
            for x, column, i in columns
        ]

    def versions(self, name: str) -> dict[str, Any]:
        """Return what every manifest says."""
        return self.whole.versions(name) | {"steps": self.steps}
