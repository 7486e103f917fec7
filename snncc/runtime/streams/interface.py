"""How a stream talks to the model that it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snncc.errors import LaunchError


@dataclass(frozen=True)
class Interface:
    """How a stream talks to the model that it came from.

    Attributes:
        collect: Maps the arguments of a step to the tensors of the program's placeholders.
        finish: Maps the outputs of a step to what the model returns, without its time axes.
        collect_chunk: Collects the tensors for several steps, whose lists have an item for each.
        finish_chunk: Maps the outputs of several steps to what the model returns.
        spread: Maps the outputs of several steps to those of the sequence graph.
        refresh: Reads the parameters of the model anew; tells whether they lie where they did.
        ranks: For each placeholder that has a time axis its rank without it.
        names: The names of the placeholders.
        own: For each placeholder whether it comes from the arguments of the call.
        written: For each placeholder whether the program overwrites it.
    """

    collect: Callable[[tuple[Any, ...], dict[str, Any]], list[Tensor]]
    finish: Callable[[Sequence[Any]], Any]
    collect_chunk: Callable[[tuple[Any, ...], dict[str, Any]], list[Tensor]]
    finish_chunk: Callable[[Sequence[Any]], Any]
    spread: Callable[[Sequence[Any]], list[Any]]
    refresh: Callable[[], bool]
    ranks: tuple[int, ...]
    names: tuple[str, ...]
    own: tuple[bool, ...]
    written: tuple[bool, ...]

    def with_time(self, leaves: Sequence[Tensor], axes: Sequence[int | None]) -> list[Tensor]:
        """Return the leaves of a step as sequences of one step.

        Raises:
            LaunchError: One has too many axes, or too few.
        """
        each = enumerate(zip(leaves, axes, strict=True))
        return [x if axis is None else self._with_time(x, i, axis) for i, (x, axis) in each]

    def _with_time(self, x: Tensor, position: int, axis: int) -> Tensor:
        rank = self.ranks[position]
        if x.dim() != rank:
            raise LaunchError(
                f"The input '{self.names[position]}' of a step has {x.dim()} axes;"
                f" it takes {rank}.",
                code="launch.rank",
                hints=["A step takes the input without its time axis; 'chunk' takes it with one."],
            )
        return x.contiguous().unsqueeze(axis)  # recorded steps read it so, too
