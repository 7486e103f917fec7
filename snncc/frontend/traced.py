"""Python numbers that remember where they came from.

`TracedInt` is an integer read off a shape: it computes as an int and, given to a torch operator,
stands for the same computation at another batch size or length.  `TracedFloat` and `TracedItem`
are what ``.item()`` returns for a tensor that depends on the model's inputs: they may be printed,
formatted and collected, and refuse to steer the program or to enter it again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

from snncc.errors import CaptureError, Location


class TracedInt(int):
    """An integer that is a function of shapes.

    ``expression`` is (function, operand, ...); operands are traced or plain integers, or, for a
    size, the recorder's handle of the tensor and the dim.
    """

    expression: tuple[Any, ...]
    owner: Any
    node: Any = None  # the integer node that computes it, once it has been used

    @classmethod
    def of(cls, value: int, owner: Any, expression: tuple[Any, ...]) -> TracedInt:
        """Return ``value`` with its origin."""
        traced = cls(value)
        traced.owner = owner
        traced.expression = expression
        return traced

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def _binary(function: Callable[[int, int], int], *, reflected: bool) -> Callable[..., Any]:
    def method(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        operands = (other, self) if reflected else (self, other)
        value = function(int(operands[0]), int(operands[1]))
        return TracedInt.of(value, self.owner, (function, *operands))

    return method


def _negative(self: TracedInt) -> TracedInt:
    return TracedInt.of(-int(self), self.owner, (operator.neg, self))


for _name, _function in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}.items():
    setattr(TracedInt, f"__{_name}__", _binary(_function, reflected=False))
    setattr(TracedInt, f"__r{_name}__", _binary(_function, reflected=True))


def _spelled(value: Any) -> str:
    """Return how an integer was computed from sizes and numbers."""
    if not isinstance(value, TracedInt):
        return str(value)
    function, *operands = value.expression
    name = getattr(function, "__name__", str(function))
    return f"{name}({', '.join(_spelled(x) for x in operands if isinstance(x, int))})"


# What tells that two sizes are equal.
_OF_EQUALS = {"__eq__": True, "__ne__": False}


def _comparison(name: str) -> Callable[..., Any]:
    compare = getattr(int, name)

    def method(self: TracedInt, other: Any) -> Any:
        outcome = compare(self, other)
        if not isinstance(other, TracedInt):
            self.owner.compare(f"{name} {_spelled(self)}", int(self), other)
        elif outcome is not _OF_EQUALS.get(name):
            # Sizes that are equal are so wherever the program is reused; others may become equal.
            self.owner.comparisons.of_sizes = True
        return outcome

    return method


def _looked_up(self: TracedInt) -> int:
    """Hash; what a dictionary or a cache has for a size is not known for others."""
    self.owner.comparisons.of_sizes = True
    return int.__hash__(self)


for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(TracedInt, f"__{_name}__", _comparison(f"__{_name}__"))
TracedInt.__hash__ = _looked_up  # type: ignore[method-assign, assignment]
TracedInt.__neg__ = _negative  # type: ignore[method-assign, assignment]


class TracedFloat(float):
    """A float that left torch and depends on the model's inputs."""

    where: Location | None
    node: Any = None  # the tensor of which it is the value


class TracedItem(int):
    """An integer that left torch and depends on the model's inputs."""

    where: Location | None
    node: Any = None  # the tensor of which it is the value


Traced = TracedFloat | TracedItem


def leaked(value: float | int, where: Location | None) -> Traced:
    """Return a number that left torch, tagged with the line where it did."""
    traced: Traced = TracedItem(value) if isinstance(value, int) else TracedFloat(value)
    traced.where = where
    return traced


def refuse_leaked(value: Traced, action: str) -> NoReturn:
    """Raise the error for a number that left torch and comes back."""
    raise CaptureError(
        f"A number read off a tensor {action}.",
        code="capture.value-left-torch",
        location=value.where,
        notes=["The value depends on the model's inputs, so it would be frozen into the program."],
        hints=["Keep it a tensor: drop '.item()', and select with 'torch.where'."],
    )


def _tagged(name: str) -> Callable[..., Any]:
    def method(self: Traced, *operands: Any) -> Any:
        base = float if isinstance(self, float) else int
        result = getattr(base, name)(self, *operands)
        if type(result) is float or type(result) is int:
            return leaked(result, self.where)
        return result

    return method


def _forbidden(self: Traced, *operands: Any) -> NoReturn:
    refuse_leaked(self, "steers the program")


_ARITHMETIC = (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv",
    "mod", "rmod", "pow", "rpow", "neg", "pos", "abs", "round",
)  # fmt: skip
_STEERING = (
    "bool", "lt", "le", "gt", "ge", "eq", "ne", "int", "float", "index", "trunc", "floor", "ceil",
    "hash", "divmod",
)  # fmt: skip

for _class in (TracedFloat, TracedItem):
    for _name in _ARITHMETIC:
        setattr(_class, f"__{_name}__", _tagged(f"__{_name}__"))
    for _name in _STEERING:
        if hasattr(_class.__base__, f"__{_name}__"):
            setattr(_class, f"__{_name}__", _forbidden)
