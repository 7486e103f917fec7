"""The pieces of a page: drawings without collisions, mathematics that is well formed."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from snncc.ir.nodes import Binary, Const, Op, Recurrence, Select, Unary, Var
from snncc.ir.printer import spell
from snncc.reporting.equations import equations_of
from snncc.reporting.page.graph import GAP_X, HEIGHT, WIDTH, Box, draw, lay_out
from snncc.reporting.page.markup import Markup, tag
from snncc.reporting.page.mathml import MATHML, equations
from tests.strategies import recurrences


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, str]]]:
    """Draw a graph without cycles, its parts in an order in which they can run."""
    names = [f"n{i}" for i in range(draw(st.integers(1, 12)))]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return names, edges


@settings(deadline=None)
@given(graphs())
def test_layout(graph: tuple[list[str], list[tuple[str, str]]]) -> None:
    """Edges go from left to right, one column at a time, and no two parts overlap."""
    names, edges = graph
    layout = lay_out(names, edges)
    assert layout is not None

    assert [(route[0], route[-1]) for route in layout.routes] == edges
    for route in layout.routes:
        for a, b in pairwise(route):
            step = layout.centre[b][0] - layout.centre[a][0]
            assert abs(step - (WIDTH + GAP_X)) < 1e-6
    for column in layout.columns:
        ys = sorted(layout.centre[name][1] for name in column if name in names)
        assert all(b - a >= HEIGHT for a, b in pairwise(ys))
    width, height = layout.size
    assert all(0 < x < width and 0 < y < height for x, y in layout.centre.values())
    boxes = {name: Box(name, "linear", "hoisted", name, name) for name in names}
    drawing = ElementTree.fromstring(draw(layout, boxes))
    assert len(drawing.findall(".//path")) == len(edges)


def test_large_graphs_are_not_drawn() -> None:
    """There is a limit to what a picture shows."""
    names = [f"n{i}" for i in range(1000)]

    assert lay_out(names, list(pairwise(names))) is None
    assert (
        lay_out(names[:100], [("n0", n) for n in names[1:100]] + list(pairwise(names[:100])))
        is None
    )


@settings(deadline=None, max_examples=50)
@given(recurrences())
def test_equations_are_well_formed(recurrence: Recurrence) -> None:
    """Whatever the step, its equations are well-formed MathML and have a text form."""
    step = equations_of(recurrence, {name: f"<{name}>&" for name in recurrence.step_inputs})

    ElementTree.fromstring(equations(step))
    assert len(step.lines()) == len(step.steps) + 1


def test_mathematics() -> None:
    """Fractions, powers, cases and signs; parentheses only where they are needed."""
    v, x = Var("v"), Var("x")
    fraction = Binary(Op.DIV, Binary(Op.SUB, x, v), Const(2.0))
    power = Binary(Op.POW, Binary(Op.ADD, v, x), Const(2.0))
    negative = Binary(Op.MUL, v, Const(-0.5))
    cases = Select(Binary(Op.LT, v, Const(0.0)), Const(0.0), v)
    fired = Unary(Op.FLOAT, Binary(Op.GE, v, Const(1.0)))

    def text(expr: object) -> str:
        tree = ElementTree.fromstring(f"<math>{spell(expr, MATHML)}</math>")  # type: ignore[arg-type]
        return "".join(tree.itertext())

    assert text(fraction) == "x\N{MINUS SIGN}v2"
    assert "<mfrac>" in spell(fraction, MATHML)
    assert text(power) == "(v+x)2"
    assert text(negative) == "v\N{DOT OPERATOR}(\N{MINUS SIGN}0.5)"
    assert text(cases) == "{0if v<0velse"
    assert text(fired) == "[v\N{GREATER-THAN OR EQUAL TO}1]"


def test_everything_is_escaped_but_markup() -> None:
    """Text becomes text, in content as in attributes."""
    evil = "\"'><script>&"

    assert tag("p", evil, [evil, Markup("<b>x</b>")], title=evil) == (
        '<p title="&quot;&#x27;&gt;&lt;script&gt;&amp;">&quot;&#x27;&gt;&lt;script&gt;&amp;'
        "&quot;&#x27;&gt;&lt;script&gt;&amp;<b>x</b></p>"
    )
    assert tag("br") == "<br>"
    assert tag("td", None, 1.5, data_parts=None) == "<td>1.5</td>"
