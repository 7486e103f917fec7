"""A listing of source as HTML: line numbers, colours for parts and for syntax, names beside."""

from __future__ import annotations

import io
import keyword
import linecache
import tokenize
from collections.abc import Callable, Iterator
from itertools import groupby

from snncc.reporting.page.listing import Line, Listing, Mark
from snncc.reporting.page.markup import Child, Markup, tag

MOST_NAMES = 4
MOST_LINKED = 40
# Where the row of a part is, as a fragment; the part without the sign is its identifier.
Links = Callable[[str], "str | None"]
_TOKENS = {tokenize.STRING: "str", tokenize.NUMBER: "num", tokenize.COMMENT: "com"}


def code(listing: Listing, links: Links, below: dict[int, Markup] | None = None) -> Markup:
    """Return a listing as HTML.

    Args:
        listing: The lines.
        links: Where the name of a part leads.
        below: What stands below some lines, by number.
    """
    syntax = _syntax(listing.file)
    rows: list[Child] = []
    for line in listing.lines:
        if line is None:
            rows.append(tag("div", "\N{VERTICAL ELLIPSIS}", class_="gap"))
            continue
        rows.append(_row(line, syntax.get(line.number, []), links))
        rows.append((below or {}).get(line.number))
    rows += [_unknown(mark, links) for mark in listing.unknown]
    return tag("div", rows, class_="code")


def _row(line: Line, syntax: list[str], links: Links) -> Markup:
    kinds = [mark.kind for mark in line.marks]
    text = [_run(run, links) for run in _runs(line, syntax)]
    says = "; ".join(dict.fromkeys(mark.says for mark in line.marks[:MOST_NAMES]))
    parts = list(dict.fromkeys(filter(None, (_identifier(m, links) for m in line.marks))))
    return tag(
        "div",
        tag("span", line.number, class_="number"),
        tag("span", text or " ", class_="text"),
        tag("span", _names(line.marks, links), class_="names"),
        class_=" ".join(["line", *(["marked", kinds[0]] if kinds else [])]),
        data_parts=" ".join(parts[:MOST_LINKED]) or None,
        title=says or None,
    )


def _names(marks: list[Mark], links: Links) -> list[Markup]:
    """Return the names of the parts of a line, as links to the plan."""
    named = {mark.part or mark.kind: mark for mark in marks if mark.kind != "once"}
    shown = [
        tag("a" if links(mark.part) else "span", name, href=links(mark.part), class_=mark.kind)
        for name, mark in list(named.items())[:MOST_NAMES]
    ]
    if len(named) > MOST_NAMES:
        shown.append(tag("span", f"and {len(named) - MOST_NAMES} more", class_="more"))
    return shown


def _identifier(mark: Mark, links: Links) -> str | None:
    link = links(mark.part)
    return None if link is None else link.removeprefix("#")


def _run(run: tuple[str, str, Mark | None], links: Links) -> Markup | str:
    text, token, mark = run
    if mark is None:
        return tag("span", text, class_=token) if token else text
    classes = " ".join(filter(None, ("part", mark.kind, token)))
    return tag("span", text, class_=classes, data_parts=_identifier(mark, links))


def _runs(line: Line, syntax: list[str]) -> Iterator[tuple[str, str, Mark | None]]:
    """Yield the pieces of a line that have the same syntax and belong to the same part."""
    padded = syntax + [""] * (len(line.text) - len(syntax))
    cells = zip(line.text, padded, line.parts, strict=False)
    for (token, mark), group in groupby(cells, key=lambda cell: cell[1:]):
        yield "".join(character for character, _, _ in group), token, mark


def _unknown(mark: Mark, links: Links) -> Markup:
    """Return the row of a mark whose text cannot be known."""
    return tag(
        "div",
        tag("span", mark.where.line, class_="number"),
        tag("span", f"in {mark.where.function}: source not available", class_="text missing"),
        tag("span", _names([mark], links), class_="names"),
        class_=f"line marked {mark.kind}",
        data_parts=_identifier(mark, links),
    )


def _syntax(file: str) -> dict[int, list[str]]:
    """Return the kind of token of each character, by line; nothing where there are no tokens."""
    raw = linecache.getlines(file)
    kinds: dict[int, list[str]] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO("".join(raw)).readline):
            is_keyword = token.type == tokenize.NAME and keyword.iskeyword(token.string)
            kind = "key" if is_keyword else _TOKENS.get(token.type, "")
            for number in range(token.start[0], token.end[0] + 1) if kind else ():
                text = raw[number - 1].rstrip("\r\n")
                start = token.start[1] if number == token.start[0] else 0
                end = token.end[1] if number == token.end[0] else len(text)
                left, right = len(text[:start].expandtabs()), len(text[:end].expandtabs())
                line = kinds.setdefault(number, [""] * len(text.expandtabs()))
                line[left:right] = [kind] * (right - left)
    except (tokenize.TokenError, SyntaxError, IndexError):
        pass  # plain from here on
    return kinds
