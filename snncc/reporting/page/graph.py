"""The sequence graph as a drawing: layers from left to right, edges as curves.

Each part is in the column after the last one that it reads; an edge that spans several columns
passes through a waypoint in each.  Within a column, parts are ordered by the mean position of their
neighbours (a few sweeps each way), then moved as close to that mean as the others allow.

Source: Sugiyama, Tagawa, Toda 1981, "Methods for visual understanding of hierarchical systems".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from snncc.reporting.page.markup import Markup, tag

# What is drawn; larger graphs are not.
MOST_PARTS = 160
MOST_WAYPOINTS = 1500
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 132, 44, 40, 16, 8
SWEEPS = 6


@dataclass(frozen=True)
class Box:
    """A part as it is drawn: its kind for the colour, and the row that it leads to, if any."""

    name: str
    what: str
    kind: str
    row: str | None
    title: str


@dataclass(frozen=True)
class Layout:
    """Where everything is: columns of names and waypoints, the centre of each, routes of edges."""

    columns: Sequence[Sequence[str]]
    centre: Mapping[str, tuple[float, float]]
    routes: Sequence[tuple[str, ...]]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the drawing."""
        height = max((y for _, y in self.centre.values()), default=0.0)
        width = len(self.columns) * (WIDTH + GAP_X) - GAP_X
        return width + 2 * MARGIN, height + HEIGHT / 2 + MARGIN


def lay_out(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> Layout | None:
    """Return where the parts of a graph without cycles go, or None where it is too large.

    Args:
        names: The parts; a part comes after those that it reads.
        edges: Which part is read by which.
    """
    if len(names) > MOST_PARTS:
        return None
    known = {*names}
    edges = [(a, b) for a, b in edges if a in known and b in known and a != b]
    column = dict.fromkeys(names, 0)
    for name in names:
        column[name] = max((column[a] + 1 for a, b in edges if b == name), default=0)
    waypoints = sum(column[b] - column[a] - 1 for a, b in edges)
    if waypoints > MOST_WAYPOINTS:
        return None
    columns: list[list[str]] = [[] for _ in range(max(column.values(), default=0) + 1)]
    for name in names:
        columns[column[name]].append(name)
    routes = []
    for number, (a, b) in enumerate(edges):
        between = [f"\0{number}.{c}" for c in range(column[a] + 1, column[b])]
        for offset, point in enumerate(between):
            columns[column[a] + 1 + offset].append(point)
        routes.append((a, *between, b))
    links = [pair for route in routes for pair in pairwise(route)]
    _order(columns, links)
    return Layout(columns, _place(columns, links), routes)


def _neighbours(links: Iterable[tuple[str, str]]) -> tuple[dict[str, list[str]], ...]:
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for a, b in links:
        before.setdefault(b, []).append(a)
        after.setdefault(a, []).append(b)
    return before, after


def _order(columns: list[list[str]], links: list[tuple[str, str]]) -> None:
    """Sort each column by the mean position of the neighbours, there and back."""
    before, after = _neighbours(links)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for column in columns if forward else columns[::-1]:
            position = {name: i for c in columns for i, name in enumerate(c)}
            near = before if forward else after
            mean = {
                name: sum(position[n] for n in near[name]) / len(near[name])
                if near.get(name)
                else position[name]
                for name in column
            }
            column.sort(key=mean.__getitem__)


def _place(
    columns: list[list[str]], links: list[tuple[str, str]]
) -> dict[str, tuple[float, float]]:
    """Return the centre of each part and waypoint."""
    before, after = _neighbours(links)
    y = {name: float(i) * (HEIGHT + GAP_Y) for c in columns for i, name in enumerate(c)}
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else columns[::-1]:
            for name in column:
                near = before.get(name, []) + after.get(name, [])
                if near:
                    y[name] = sum(y[n] for n in near) / len(near)
            _spread(column, y)
    lowest = min(y.values(), default=0.0)
    return {
        name: (
            MARGIN + WIDTH / 2 + number * (WIDTH + GAP_X),
            MARGIN + HEIGHT / 2 + y[name] - lowest,
        )
        for number, column in enumerate(columns)
        for name in column
    }


def _spread(column: list[str], y: dict[str, float]) -> None:
    """Move the parts of a column apart, as little as needed, and centre what was moved."""
    wanted = [y[name] for name in column]
    for i in range(1, len(column)):
        above, here = column[i - 1], column[i]
        room = HEIGHT / 2 + GAP_Y / 2 if _is_waypoint(above) or _is_waypoint(here) else HEIGHT
        y[here] = max(y[here], y[above] + room + GAP_Y / 2)
    moved = sum(y[name] - before for name, before in zip(column, wanted, strict=True))
    for name in column:
        y[name] -= moved / len(column)


def _is_waypoint(name: str) -> bool:
    return name.startswith("\0")


def draw(layout: Layout, boxes: Mapping[str, Box]) -> Markup:
    """Return the drawing of a layout as SVG."""
    width, height = layout.size
    edges = [_edge(layout, route, boxes) for route in layout.routes]
    parts = [_box(boxes[n], *layout.centre[n]) for c in layout.columns for n in c if n in boxes]
    return tag(
        "svg",
        tag("title", "The parts of the network, from its inputs to its outputs"),
        tag("g", edges, class_="edges"),
        tag("g", parts),
        viewBox=f"0 0 {width:g} {height:g}",
        # Shrunk a little to fit; beyond that it scrolls.
        style=f"max-width:{width:g}px;min-width:{0.72 * width:g}px",
        role="img",
        class_="graph",
    )


def _edge(layout: Layout, route: tuple[str, ...], boxes: Mapping[str, Box]) -> Markup:
    points = [layout.centre[name] for name in route]
    x, y = points[0]
    path = [f"M{x + WIDTH / 2:g},{y:g}"]
    x += WIDTH / 2
    for name, (next_x, next_y) in zip(route[1:], points[1:], strict=True):
        arrival = next_x if _is_waypoint(name) else next_x - WIDTH / 2
        middle = (x + arrival) / 2
        path.append(f"C{middle:g},{y:g} {middle:g},{next_y:g} {arrival:g},{next_y:g}")
        x, y = arrival, next_y
    return tag(
        "path", d=" ".join(path), data_from=boxes[route[0]].row, data_to=boxes[route[-1]].row
    )


def _box(box: Box, x: float, y: float) -> Markup:
    shape = tag(
        "rect",
        x=f"{x - WIDTH / 2:g}",
        y=f"{y - HEIGHT / 2:g}",
        width=f"{WIDTH:g}",
        height=f"{HEIGHT:g}",
        rx="9",
    )
    name = tag("text", _fitting(box.name), x=f"{x:g}", y=f"{y - 3:g}", class_="name")
    what = tag("text", _fitting(box.what), x=f"{x:g}", y=f"{y + 13:g}", class_="what")
    group = tag(
        "g",
        tag("title", box.title),
        shape,
        name,
        what,
        class_=f"box {box.kind}",
        data_parts=box.row,
    )
    return group if box.row is None else tag("a", group, href=f"#{box.row}")


def _fitting(text: str) -> str:
    return text if len(text) <= 15 else text[:14] + "\N{HORIZONTAL ELLIPSIS}"
