"""HTML as values: what is not `Markup` is escaped, so no text of the user's becomes markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Markup | Iterable[Child] | None"
# Elements without an end tag.
_VOID = frozenset({"br", "hr", "meta", "link"})


def escaped(child: Child) -> str:
    """Return a child as HTML: markup as it is, anything else escaped."""
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(child)
    if isinstance(child, int | float):
        return html.escape(f"{child:g}")
    return "".join(map(escaped, child))


def tag(name: str, /, *children: Child, **attributes: str | int | float | None) -> Markup:
    """Return an element.

    Args:
        name: The element.
        *children: What is in it.
        **attributes: Its attributes; ``_`` stands for ``-``, a trailing one is dropped, and an
            attribute that is None is left out.
    """
    spelled = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(map(escaped, children))
    return Markup(f"<{name}{spelled}>" if name in _VOID else f"<{name}{spelled}>{inner}</{name}>")
