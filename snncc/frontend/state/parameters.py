"""Parameters that are made while the model runs, which no tape can hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from snncc.errors import CaptureError
from snncc.frontend.session import Session


@contextmanager
def parameters_refused(session: Session) -> Iterator[None]:
    """Refuse every new parameter in this context."""
    create = nn.Parameter.__new__

    def created(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if session.is_listening:
            session.recorder.start_call()
            session.failure = session.failure or CaptureError(
                "A parameter is made while the model runs.",
                code="capture.parameter-inside",
                location=session.recorder.where,
                notes=["A parameter that is new in every call has no place in the program."],
                hints=["Make it in '__init__'; for a plain tensor drop 'nn.Parameter'."],
            )
            raise session.failure
        return create(cls, *args, **kwargs)

    nn.Parameter.__new__ = created  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Parameter.__new__ = create  # type: ignore[method-assign]
