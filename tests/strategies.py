"""Random recurrences for property tests: any elementwise step, valid by construction."""

from __future__ import annotations

from hypothesis import strategies as st

from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
    Expr,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    Select,
    State,
    Surrogate,
    Unary,
    Var,
)

# Dyadic numbers: sums and products of few of them are exact, so ties with a threshold happen.
NUMBERS = st.sampled_from([-1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0])
ARITHMETIC = [Op.ADD, Op.SUB, Op.MUL, Op.MIN, Op.MAX]
COMPARE = [Op.LT, Op.LE, Op.GT, Op.GE]
CURVES = [Op.NEG, Op.ABS, Op.FLOOR, Op.ROUND, Op.SIGN]


def surrogate(name: str, arg: str, kind: str) -> Surrogate:
    """Return the backward rule of a spike that fires on ``arg``."""
    g, x = Var(f"g_{name}_in"), Var(arg)
    if kind == "atan":
        square = Let(f"{name}_square", Binary(Op.MUL, x, x))
        shape = Binary(Op.DIV, Const(1.0), Binary(Op.ADD, Const(1.0), Var(square.name)))
        return Surrogate(kind, g.name, (arg,), (square,), (Binary(Op.MUL, g, shape),))
    if kind == "rectangle":
        near = Binary(Op.LT, Unary(Op.ABS, x), Const(0.5))
        return Surrogate(kind, g.name, (arg,), (), (Select(near, g, Const(0.0)),))
    return Surrogate(kind, g.name, (arg,), (), (g,))


@st.composite
def recurrences(draw: st.DrawFn, max_lets: int = 9) -> Recurrence:
    """Draw a recurrence with one to three states, decays that keep values bounded, and spikes."""
    steps = [f"x{i}" for i in range(draw(st.integers(1, 2)))]
    lanes = [f"p{i}" for i in range(draw(st.integers(0, 2)))]
    states = [f"v{i}" for i in range(draw(st.integers(1, 3)))]
    floats = [*steps, *lanes, *states]
    lets: list[Let] = []
    # Each state is charged first, so that it matters; the decay bounds it.
    for state in states:
        decay = draw(st.sampled_from([0.25, 0.5, 0.75]))
        leak = Binary(Op.MUL, Const(decay), Var(state))
        lets.append(Let(f"h_{state}", Binary(Op.ADD, leak, Var(draw(st.sampled_from(steps))))))
        floats.append(lets[-1].name)
    for number in range(draw(st.integers(1, max_lets))):
        let = draw(_let(f"a{number}", floats))
        lets.append(let)
        floats.append(let.name)
    defined = [let.name for let in lets]
    outputs = draw(st.lists(st.sampled_from(defined), min_size=1, max_size=2, unique=True))
    finals = draw(st.lists(st.sampled_from(states), max_size=2, unique=True))
    starts = [f"{s}_start" for s in states if draw(st.booleans())]
    inputs = [Input(n, Rank.STEP) for n in steps]
    inputs += [Input(n, Rank.LANE) for n in (*lanes, *starts)]
    return Recurrence(
        name="generated",
        inputs=tuple(inputs),
        states=tuple(
            State(
                s,
                Var(f"{s}_start") if f"{s}_start" in starts else Const(draw(NUMBERS)),
                draw(st.sampled_from(defined)),
            )
            for s in states
        ),
        lets=tuple(lets),
        outputs=tuple(outputs),
        finals=tuple(finals),
    )


@st.composite
def affine_recurrences(draw: st.DrawFn) -> Recurrence:
    """Draw a recurrence that is affine in its states, with spikes, windows and sums around it."""
    states = [f"v{i}" for i in range(draw(st.integers(1, 3)))]
    factors: list[Expr] = [Var("x1"), Var("p0"), Const(draw(NUMBERS)), Const(0.75)]
    lets: list[Let] = []
    updates: dict[str, str] = {}
    for number, state in enumerate(states):
        total: Expr = Binary(Op.MUL, draw(st.sampled_from(factors)), Var("x0"))
        # Before or after the step: a state may read what another one has just become.
        seen = [*states, *updates.values()]
        for other in draw(st.lists(st.sampled_from(seen), min_size=1, max_size=3, unique=True)):
            term: Expr = Binary(Op.MUL, draw(st.sampled_from(factors)), Var(other))
            if draw(st.booleans()):
                condition = Binary(Op.GT, Var("x1"), Const(draw(NUMBERS)))
                term = Select(condition, term, Unary(Op.NEG, Var(other)))
            total = Binary(draw(st.sampled_from([Op.ADD, Op.SUB])), total, term)
        lets.append(Let(f"h{number}", total))
        updates[state] = f"h{number}"
    fired = Binary(Op.GE, Var("h0"), Const(0.3))
    rule = surrogate("s", "h0", draw(st.sampled_from(["atan", "identity"])))
    lets += [Let("s", Unary(Op.FLOAT, fired), rule), Let("summed", add_one("count", "s"))]
    updates["count"] = "summed"
    if draw(st.booleans()):  # a window of two inputs
        lets = [Let("gate", Binary(Op.MUL, Var("older"), Var("x1"))), *lets]
        first = lets[1]
        lets[1] = Let(first.name, Binary(Op.ADD, Var("gate"), first.expr))
        updates |= {"old": "x0", "older": "old"}
    starts = [s for s in updates if draw(st.booleans())]
    inputs = [Input("x0", Rank.STEP), Input("x1", Rank.STEP), Input("p0", Rank.LANE)]
    return Recurrence(
        name="affine",
        inputs=(*inputs, *(Input(f"{s}_first", Rank.LANE) for s in starts)),
        states=tuple(
            State(s, Var(f"{s}_first") if s in starts else Const(draw(NUMBERS)), update)
            for s, update in updates.items()
        ),
        lets=tuple(lets),
        outputs=tuple(draw(st.lists(st.sampled_from(["s", "h0", states[-1]]), min_size=1,
                                    unique=True))),
        finals=tuple(draw(st.lists(st.sampled_from([*updates]), unique=True))),
    )  # fmt: skip


def add_one(total: str, value: str) -> Expr:
    """Return a running sum with one more value."""
    return Binary(Op.ADD, Var(total), Var(value))


@st.composite
def _let(draw: st.DrawFn, name: str, floats: list[str]) -> Let:
    kind = draw(st.sampled_from(["arithmetic", "curve", "spike", "select", "detach", "decay"]))
    x = Var(draw(st.sampled_from(floats)))
    y: Expr = Var(draw(st.sampled_from(floats))) if draw(st.booleans()) else Const(draw(NUMBERS))
    if kind == "arithmetic":
        return Let(name, Binary(draw(st.sampled_from(ARITHMETIC)), x, y))
    if kind == "curve":
        return Let(name, Unary(draw(st.sampled_from(CURVES)), x))
    if kind == "detach":
        return Let(name, Detach(x))
    if kind == "decay":
        return Let(name, Binary(Op.MUL, Const(draw(st.sampled_from([0.25, 0.5]))), x))
    condition = Binary(draw(st.sampled_from(COMPARE)), x, Const(draw(NUMBERS)))
    if kind == "select":
        return Let(name, Select(condition, x, y))
    rule = draw(st.sampled_from(["atan", "rectangle", "identity", "none"]))
    spike = Unary(Op.FLOAT, condition)
    return Let(name, spike, None if rule == "none" else surrogate(name, x.name, rule))
