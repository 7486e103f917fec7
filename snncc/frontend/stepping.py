"""A model of one time step, called over a whole sequence: ``snncc.compile(model, step=True)``.

The compiled model is called as the step is, with sequences in the place of steps::

    y, v = model(x[t], v)   in a loop over t      y_seq, v = fast(x_seq, v)
    y = model(x[t])         in a loop over t      y_seq = fast(x_seq)

The first argument has one more axis than the step's, and so has what the step returns first.  The
other positional arguments are the state before the first step; the step returns its new state last.
State that the step keeps in attributes needs no argument.  Keyword arguments go to every step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.errors import OptionError, UnsupportedError


@dataclass(frozen=True, eq=False)
class OverTime:
    """The loop over time around a step.

    Attributes:
        step: The model of one time step.
        time_dim: The axis of inputs and outputs that the loop adds.
    """

    step: Callable[..., Any]
    time_dim: int = 0

    def __call__(self, x: Any, *state: Any, **constants: Any) -> Any:
        """Run the step over a sequence, from a state on.

        Args:
            x: A tensor with a time axis, or nested tuples, lists and dicts of such tensors.
            *state: The state before the first step.
            **constants: Keyword arguments of every step.

        Returns:
            What the step returns, stacked, and behind it the state after the last step.

        Raises:
            OptionError: The step does not return what a loop around it needs.
            UnsupportedError: There is no step at all.
        """
        count, length = len(state), self.length(x)
        outputs: list[tuple[Any, ...]] = []
        for t in range(length):
            x_t = pytree.tree_map_only(Tensor, lambda s: s.select(self.time_dim, t), x)  # noqa: B023
            result = self.step(x_t, *state, **constants)
            if not count:
                self._require_no_state(result, constants)
                outputs.append((result,))
                continue
            if not isinstance(result, tuple | list) or len(result) <= count:
                raise _no_new_state(result, count)
            outputs.append(tuple(result[:-count]))
            state = tuple(result[-count:])
        stacked = self._stacked(outputs)
        return (*stacked, *state) if count else stacked[0]

    def length(self, x: Any) -> int:
        """Return the number of steps of a sequence; refuse what is none."""
        sequences = [s for s in pytree.tree_leaves(x) if isinstance(s, Tensor)]
        short = [s for s in sequences if not -s.dim() <= self.time_dim < s.dim()]
        if not sequences or short:
            what = f"a tensor of {tuple(short[0].shape)}" if short else f"{type(x).__name__}"
            raise OptionError(
                f"The input has no axis {self.time_dim} for time: it is {what}.",
                code="option.time-dim",
                hints=["Pass the whole sequence, and its time axis as 'time_dim'."],
            )
        # Plain numbers: that every call passes sequences is checked at every call.
        lengths = [int(s.shape[self.time_dim]) for s in sequences]
        if len(set(lengths)) > 1:
            raise OptionError(
                f"The inputs have {' and '.join(map(str, lengths))} time steps.",
                code="option.time-dim",
                hints=["Pass what is the same at every step as a keyword argument."],
            )
        if not lengths[0]:
            raise UnsupportedError(
                "The time axis of the input has no step.",
                code="unsupported.empty-sequence",
                notes=[f"it is axis {self.time_dim} of a tensor of {tuple(sequences[0].shape)}"],
                hints=["Pass at least one time step."],
            )
        return lengths[0]

    def _require_no_state(self, result: Any, constants: dict[str, Any]) -> None:
        """Refuse a step that returns a state that it was not given."""
        if not isinstance(result, tuple) or len(result) < 2:
            return
        names = [name for name in _optional_arguments(self.step) if name not in constants]
        if names:
            raise OptionError(
                f"The step returns {len(result)} values and is given no '{names[0]}'.",
                code="option.step-state",
                notes=["At every step it would begin anew."],
                hints=[
                    f"Pass the first '{names[0]}' behind the sequence: 'fast(x, None)'.",
                    f"If it is no state, say so by name: 'fast(x, {names[0]}=None)'.",
                ],
            )

    def _stacked(self, outputs: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Return outputs of all steps as one, with time as an axis of each tensor."""
        leaves, specs = zip(*map(pytree.tree_flatten, outputs), strict=True)
        changed = next((t for t, spec in enumerate(specs) if spec != specs[0]), None)
        if changed is not None:
            raise OptionError(
                f"The step returns another structure at step {changed} than at step 0.",
                code="option.step-output",
                hints=["Return the same tensors at every step."],
            )
        stacked = [self._stack(each) for each in zip(*leaves, strict=True)]
        result: tuple[Any, ...] = pytree.tree_unflatten(stacked, specs[0])
        return result

    def _stack(self, values: tuple[Any, ...]) -> Any:
        if all(isinstance(v, Tensor) for v in values):
            return torch.stack(values, self.time_dim)
        return None if all(v is None for v in values) else list(values)


def _no_new_state(result: Any, count: int) -> OptionError:
    returned = len(result) if isinstance(result, tuple | list) else 1
    return OptionError(
        f"The step is given {count} states and returns {returned} values.",
        code="option.step-state",
        notes=["It has to return its outputs and then as many new states."],
        hints=["Pass what is no state as a keyword argument."],
    )


def _optional_arguments(step: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments behind the first that are None unless they are given."""
    function = step.forward if isinstance(step, nn.Module) else step
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters[1:] if p.kind in positional and p.default is None]


def user_code(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return the step that a loop was put around; any other model is the user's as it is."""
    return model.step if isinstance(model, OverTime) else model
