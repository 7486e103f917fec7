"""Exception classes of snncc and the one renderer of their text.

An error is part of the interface: it shows the user's own line with a caret, says what happened in
one sentence, why (``Note:``) and what to do about it (``Hint:``), and carries a stable code.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence

from snncc.source import Location as Location
from snncc.source import excerpt


class SnnccError(Exception):
    """Base of every error that snncc raises on purpose.

    Args:
        message: One sentence that ends in a period; the user's names in single quotes.
        code: Stable identifier, listed in ``docs/errors.md``.
        location: The user's line that is at fault, where there is one.
        notes: Why it happened.
        hints: What to do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        location: Location | None = None,
        notes: Sequence[str] = (),
        hints: Sequence[str] = (),
    ) -> None:
        self.message = message
        self.code = code
        self.location = location
        self.notes = tuple(notes)
        self.hints = tuple(hints)
        super().__init__(render(self))


class OptionError(SnnccError):
    """A value or combination of options is not possible."""


class CaptureError(SnnccError):
    """The model's Python cannot be captured."""


class UnsupportedError(SnnccError):
    """The model or the request is outside what snncc can do exactly."""


class FormError(SnnccError):
    """The requested form is not legal for this recurrence."""


class TargetError(SnnccError):
    """The target is missing on this machine or cannot express this kernel."""


class BuildError(SnnccError):
    """The compiler of the host failed."""


class LaunchError(SnnccError):
    """The arguments do not fit the kernel."""


class BundleError(SnnccError):
    """A file is not what it should be: damaged, incomplete, or of another model."""


class EquivalenceError(SnnccError):
    """Results differ beyond the contract."""


class InternalError(Exception):
    """A fault of snncc itself: an invariant does not hold. Please report it."""


class SnnccWarning(UserWarning):
    """Base of the warnings that snncc issues."""


class NumericsWarning(SnnccWarning):
    """A form was asked for whose results, or whose cost, may not be what is wanted."""


class FallbackWarning(SnnccWarning):
    """Part of the model runs serially because the user allowed it."""


def render(error: SnnccError) -> str:
    """Return the full text of an error: headline, span, notes, hints and code."""
    lines = [error.message]
    if error.location is not None:
        lines += _render_location(error.location)
    lines += [f"  Note: {note}" for note in error.notes]
    lines += [f"  Hint: {hint}" for hint in error.hints]
    lines.append(f"  Code: {error.code}")
    return "\n".join(lines)


def _render_location(location: Location) -> list[str]:
    """Return the lines that show a span; inside a library also the user's own call."""
    shown = _place("File", location)
    if location.own is not location:
        shown += _place("Called from", location.own)
    return shown


def _place(what: str, location: Location) -> list[str]:
    place = f'  {what} "{location.file}", line {location.line}'
    if location.function:
        place += f", in {location.function}"
    if not location.is_current:
        why = "changed since it was imported" if linecache.getlines(location.file) else "is gone"
        return [place] if location.file.startswith("<") else [place, f"    (the file {why})"]
    return [place, *excerpt(location)]
