"""Torch calls as values: as the user wrote them, and as they are recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Invocation(NamedTuple):
    """A torch call as the user wrote it."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the function."""
        return str(getattr(self.function, "__name__", self.function))

    def run(self) -> Any:
        """Do what the user asked for."""
        return self.function(*self.args, **self.kwargs)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that was given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


@dataclass(slots=True)  # made for every call: a frozen class takes three times as long
class Call:
    """A canonical call whose arguments are the run's values; a call may be an argument."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SizesOf:
    """Stands in a call for the sizes of a tensor."""

    tensor: Tensor


def concrete(value: Any) -> Any:
    """Return what an argument of a call is in the run: inner calls are executed."""
    if isinstance(value, Call):
        kwargs = {k: concrete(v) for k, v in value.kwargs.items()}
        return value.target(*[concrete(a) for a in value.args], **kwargs)
    if isinstance(value, SizesOf):
        return tuple(value.tensor.shape)
    if type(value) is tuple or type(value) is list:
        return type(value)(concrete(v) for v in value)
    return value
