"""A compiled model that is to be exported, with an example."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.compilation.pipeline import Compiled
from snncc.errors import OptionError
from snncc.frontend.placement import placed
from snncc.frontend.state.results import returned, written
from snncc.frontend.state.sources import gather, preserved
from snncc.ir.events.draws import new_seed
from snncc.ir.tape import Position, Source, Tape
from snncc.model.module import CompiledModule
from snncc.version import __version__


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """A compiled model that is to be exported, and an example.

    Attributes:
        fast: The model.
        example: Its arguments.
        compiled: The specialisation that serves the example.
        leaves: The tensors that it reads.
        outputs: What the PyTorch model returns for the example.
        seed: Of the random numbers of a queue of spikes in that call; None where none are drawn.
    """

    fast: CompiledModule
    example: tuple[Any, ...]
    compiled: Compiled
    leaves: list[Tensor]
    outputs: Any
    seed: int | None = None

    @property
    def tape(self) -> Tape:
        """The recorded run."""
        return self.compiled.recording.tape

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the leaves are."""
        return self.tape.sources

    @functools.cached_property
    def folded(self) -> Compiled:
        """The model with its norms in evaluation mode folded.

        Raises:
            UnsupportedError: A norm takes the statistics of its batch.
        """
        return self.fast.without_norms(self.compiled, self.leaves)

    def serves_call(self, arguments: tuple[Any, ...]) -> bool:
        """Tell whether the network is the same for other arguments."""
        try:
            with torch.no_grad():
                return self.fast.specialize(*arguments) is self.compiled
        except Exception:  # the model raises what it likes where sizes do not fit
            return False

    def expected(self, arguments: tuple[Any, ...]) -> Any:
        """Return what the PyTorch model returns for some arguments."""
        return _expected(self.fast, self.tape, arguments)

    def without_writing(self, arguments: tuple[Any, ...]) -> Any:
        """Return what the compiled model returns, which leaves nothing behind in the model."""
        model, tape = self.fast.program, self.tape
        values = gather(tape, model, arguments, {})
        outputs = placed(tape, values, self.compiled.run(*values))
        return returned(tape, model, outputs, arguments, {})

    def versions(self, name: str) -> dict[str, Any]:
        """Return what every manifest says."""
        return {
            "name": name,
            "snncc": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def exported_model(fast: CompiledModule, example: tuple[Any, ...]) -> ExportedModel:
    """Return a compiled model with all that an export has to know of it.

    Raises:
        OptionError: The model returns something that is no tensor.
    """
    with torch.no_grad():
        compiled = fast.specialize(*example)
    tape = compiled.recording.tape
    leaves = [leaf.detach() for leaf in gather(tape, fast.program, example, {})]
    wanted_outputs(tape)  # refuses what is no tensor
    draws = any(x.region.network.order.draws for x in compiled.event_networks)
    with torch.random.fork_rng(devices=[]):
        seed = new_seed() if draws else None  # the call that follows draws the same
    return ExportedModel(fast, example, compiled, leaves, _expected(fast, tape, example), seed)


def _expected(fast: CompiledModule, tape: Tape, arguments: tuple[Any, ...]) -> Any:
    """Return what a model returns; with other neurons than the user's what was compiled counts."""
    model = fast.program
    reference = fast if fast.options.mode in ("dynamic_decay", "async") else model
    with torch.no_grad(), preserved(model, arguments) as snapshot:
        for tensor, is_written in zip(
            gather(tape, model, arguments, {}), written(tape), strict=True
        ):
            if is_written:
                snapshot.keep_value(tensor)
        leaves, spec = pytree.tree_flatten(reference(*arguments))
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise _no_tensor(type(leaf).__name__)
    return pytree.tree_unflatten([leaf.detach() for leaf in leaves], spec)


def wanted_outputs(tape: Tape) -> list[int]:
    """Return which outputs of a tape's graph the model returns."""
    places = [leaf for leaf in tape.output_leaves if isinstance(leaf, Position)]
    if len(places) < len(tape.output_leaves) or any(place.as_number for place in places):
        raise _no_tensor("number, or an object")
    return [place.index for place in places]


def _no_tensor(kind: str) -> OptionError:
    return OptionError(
        f"The model returns something that is no tensor: a {kind}.",
        code="option.export",
        hints=["Return tensors only, in tuples, lists and dictionaries."],
    )
