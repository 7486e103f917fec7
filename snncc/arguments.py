"""Check the arguments of public functions, each where it is given.

A check returns the value in the type that the code behind it takes, a numpy integer as an int and a
list of words as a tuple, or raises an `OptionError` that shows the value and says what it may be.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy

from snncc.errors import OptionError, SnnccError

_LONGEST = 60  # letters of a value in a message
_PLAIN = (int, float, str, type(None))  # of these a value shows the class


def shown(value: object) -> str:
    """Return a value as messages show it: short, on one line, whatever its class is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a class that cannot be shown
        text = object.__repr__(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


@dataclass(frozen=True, slots=True)
class Check:
    """Checks one argument.

    Attributes:
        what: The argument, as a message begins with it: ``"Option 'chunk'"``.
        code: The code of its errors.
        hint: What to do instead.
        error: Their class.
    """

    what: str
    code: str
    hint: str
    error: type[SnnccError] = OptionError

    def refused(self, value: object, wanted: str) -> SnnccError:
        """Return the error that a value is something else than what is wanted."""
        return self.error(
            f"{self.what} is {shown(value)}, not {wanted}.",
            code=self.code,
            notes=[] if isinstance(value, _PLAIN) else [f"It is a '{type(value).__qualname__}'."],
            hints=[self.hint],
        )

    def choice(self, value: object, choices: Iterable[str]) -> str:
        """Return one of some words."""
        if isinstance(value, str) and value in choices:
            return value
        raise self.error(
            f"{self.what} has no value {shown(value)}.",
            code=self.code,
            hints=[self.hint],
        )

    def flag(self, value: object) -> bool:
        """Return a value that is true or false; 0 and 1 stand for them too."""
        if isinstance(value, (Integral, numpy.bool_)) and int(value) in (0, 1):
            return bool(value)
        raise self.refused(value, "True or False")

    def whole(self, value: object, least: int = 1, most: int | None = None) -> int:
        """Return a whole number."""
        wanted = f"a whole number of at least {least}"
        if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
            if most is None or int(value) <= most:
                return int(value)
            wanted = f"at most {most}"
        raise self.refused(value, wanted)

    def positive(self, value: object) -> float:
        """Return a finite number above 0."""
        if isinstance(value, Real) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if 0 < number < math.inf:
                return number
        raise self.refused(value, "a finite number above 0")

    def number(self, value: object, least: float, most: float = math.inf) -> float:
        """Return a finite number in a range."""
        if isinstance(value, Real) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if least <= number <= most and math.isfinite(number):
                return number
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise self.refused(value, f"a finite number of at least {least:g}{upper}")

    def path(self, value: object) -> Path:
        """Return the path of a file or folder."""
        if isinstance(value, (str, os.PathLike)) and value != "":
            try:
                return Path(value)
            except TypeError:  # a path in bytes
                pass
        raise self.refused(value, "a path")

    def words(self, value: object) -> tuple[str, ...]:
        """Return several words; one word stands for itself."""
        words = (value,) if isinstance(value, str) else self.series(value, "words")
        if all(isinstance(word, str) and "\0" not in word for word in words):
            return words
        raise self.refused(value, "words")

    def arguments(self, value: object) -> tuple[Any, ...]:
        """Return the arguments of a call, which are a tuple or a list."""
        if isinstance(value, (tuple, list)):
            return tuple(value)
        raise self.refused(value, "a tuple of arguments")

    def series(self, value: object, of: str) -> tuple[Any, ...]:
        """Return the items of a series."""
        if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
            try:
                return tuple(value)
            except TypeError:  # a tensor without axes
                pass
        raise self.refused(value, f"a series of {of}")
