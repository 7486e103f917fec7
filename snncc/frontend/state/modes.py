"""What the user's code asks torch about how it runs, as whether gradients are enabled.

A recording always has gradients, whatever the call around it; its Python, though, may branch on
whether there are any.  Code that asks gets the answer that the call would have had, and the
recording serves calls with the same answers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch

from snncc.frontend.state.reads import describe_content, is_users, names_in
from snncc.ir.tape import Read

_ASKED = {
    "is_grad_enabled": torch.is_grad_enabled,
    "is_inference_mode_enabled": torch.is_inference_mode_enabled,
    "are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled,
    "get_num_threads": torch.get_num_threads,
}


class _Answers(Mapping[str, Any]):
    """What torch answers now."""

    def __getitem__(self, name: str) -> Any:
        return _ASKED[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(_ASKED)

    def __len__(self) -> int:
        return len(_ASKED)


def reads_of_modes(code: Iterable[CodeType], *, with_gradients: bool) -> tuple[Read, ...]:
    """Return the answers that code may have asked for.

    Args:
        code: The code of the user that ran.
        with_gradients: Whether gradients are enabled in the call that is recorded.
    """
    answers = _Answers()
    asked = answers.keys() & frozenset[str]().union(*map(names_in, code))
    with torch.set_grad_enabled(with_gradients):
        return tuple(
            Read("torch", answers, name, answers[name], describe_content) for name in sorted(asked)
        )


def asks_for_layouts(code: Iterable[CodeType]) -> bool:
    """Tell whether code of the user may ask tensors whether they are contiguous."""
    return any("is_contiguous" in names_in(each) for each in code)


@contextmanager
def without_gradients_for_users() -> Iterator[None]:
    """Tell code of the user that there are no gradients."""
    ask = torch.is_grad_enabled

    def is_grad_enabled() -> bool:
        return ask() and not is_users(sys._getframe(1).f_code.co_filename)

    torch.is_grad_enabled = is_grad_enabled
    try:
        yield
    finally:
        torch.is_grad_enabled = ask
