"""A case: one way in which people write spiking networks, and what the compiler must make of it.

A module of cases makes a `Group` and decorates its models with it::

    loops = Group("loops")
    CASES = loops.cases

    @loops()
    class OverTime(nn.Module):
        \"\"\"One loop over time around all layers.\"\"\"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

# Width of the layers of most cases: enough lanes for vectors and a remainder.
WIDTH = 20

Expected = Literal["compiled", "serial part", "refused"]
Sizes = tuple[int, int]
Model = Callable[..., Any]
MakeT = TypeVar("MakeT", bound=Callable[[], Model])


def sequence(T: int, B: int) -> tuple[Any, ...]:
    """Return one input of shape [T, B, N], asking for a gradient."""
    return ((torch.randn(T, B, WIDTH) * 1.5).requires_grad_(),)


def leave(model: Model) -> None:
    """Leave a model as it is."""


def itself(model: Model) -> Model:
    """Return a model."""
    return model


@dataclass(frozen=True)
class Case:
    """A model and what must come of it.

    Attributes:
        name: A short name, unique within the group.
        group: The kind of idiom, or the library.
        make: Returns a fresh model; parameters are drawn from torch's generator.
        inputs: Returns the arguments for T steps and a batch of B.
        options: Options of ``snncc.compile``.
        expect: Compiled whole; with a part that runs step by step once ``fallback="serial"`` is
            given, and is refused without; or refused.
        code: The error code of what is refused.
        neurons: How many neuron kernels the plan has.
        sizes: Two pairs (T, B); a third differs from them where they differ.
        programs: How many specialisations these two pairs make.
        free: Whether a third pair needs no recording.
        serial: Returns the serial code that the compiled model is compared with; the model itself
            unless it is a single step.
        script: Returns what the user's script makes of a model, the serial or the compiled one.
        reset: Does to a model what the user's script does between sequences of different sizes.
        training: Whether the model is in training mode.
        double: Whether the serial code works in float64.
        grad_tolerance: Relative error allowed to gradients in float64, where sums are taken in
            another order.
        differentiable: Whether any gradient of the serial code is other than zero.
        located: Whether a refusal names the user's line.
        measured: The sizes (T, B) at which it is timed, or None.
        notes: What the case is about, in one sentence.
    """

    name: str
    group: str
    make: Callable[[], Model]
    inputs: Callable[[int, int], tuple[Any, ...]] = sequence
    options: Mapping[str, Any] = field(default_factory=dict)
    expect: Expected = "compiled"
    code: str = ""
    neurons: int = 1
    sizes: tuple[Sizes, Sizes] = ((7, 3), (11, 2))
    programs: int = 1
    free: bool = True
    serial: Callable[[Model], Model] = itself
    script: Callable[[Model], Model] = itself
    reset: Callable[[Model], None] = leave
    training: bool = True
    double: bool = True
    grad_tolerance: float = 1e-6
    differentiable: bool = True
    located: bool = True
    measured: Sizes | None = (100, 32)
    notes: str = ""

    @property
    def id(self) -> str:
        """The name of the case among all cases."""
        return f"{self.group}-{self.name}"


@dataclass(eq=False)
class Group:
    """The cases of one kind; calling it gives a decorator that adds one."""

    name: str
    cases: list[Case] = field(default_factory=list)

    def __call__(self, **facts: Any) -> Callable[[MakeT], MakeT]:
        """Return a decorator that adds a case; name and notes are those of what it decorates."""

        def add(make: MakeT) -> MakeT:
            notes = (make.__doc__ or "").strip().split("\n")[0]
            given: dict[str, Any] = {"name": make.__name__, "notes": notes, **facts}
            assert given["notes"].endswith("."), given["name"]
            assert given["name"] not in {case.name for case in self.cases}
            self.cases.append(Case(group=self.name, make=make, **given))
            return make

        return add
