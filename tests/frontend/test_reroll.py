"""Re-rolling in detail: what a loop says about its body, and what is left outside of it."""

from __future__ import annotations

import operator
from types import FunctionType
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from snncc.errors import InternalError, Location
from snncc.frontend.capture import capture
from snncc.frontend.draft import Draft
from snncc.frontend.reroll import Rolled, check, reroll
from snncc.frontend.state.sources import gather
from snncc.ir.record import Node
from snncc.ir.tape import Source, SourceKind, Tape
from snncc.ir.time_loop import Fill, Step, TimeLoop, Trip
from tests.frontend.looping_models import Net, spike


def rolled_of(model: Any, *args: Any) -> Rolled:
    tape = capture(model, args, {})
    rolled = reroll(tape)
    check(rolled, tape, gather(tape, model, args, {}))
    return rolled


def only_loop(model: Any, *args: Any) -> TimeLoop:
    (loop,) = rolled_of(model, *args).loops
    return loop


def operators(graph: torch.fx.Graph) -> list[str]:
    calls = [n for n in graph.nodes if n.op == "call_function"]
    return [getattr(n.target, "__name__", str(n.target)) for n in calls]


def leaky(x):
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        v = 0.5 * v + x[t]
        s = spike(v - 1)
        v = v - s
        out.append(s)
    return torch.stack(out)


def test_body_is_one_iteration() -> None:
    """The body holds each operator once, in the user's order, with the meta of the run."""
    loop = only_loop(leaky, torch.rand(5, 2, 3))

    assert operators(loop.body) == ["mul", "add", "sub", "Spike", "sub"]
    assert [(s.dim, s.start, s.stride) for s in loop.steps] == [(0, 0, 1)]
    assert loop.trip == Trip(5, 0, 0, 0)
    (carry,) = loop.carries
    assert carry.initial == Fill(0.0, loop.steps[0].name)
    assert loop.node(carry.update).target is torch.sub
    assert loop.node(carry.name).meta["shape"] == (2, 3)
    where = loop.node("add").meta["where"]
    assert "v = 0.5 * v + x[t]" in where.source


def test_stack_of_all_steps_is_the_result() -> None:
    """A list that was stacked is the loop's stacked result, without a copy."""
    rolled = rolled_of(leaky, torch.rand(5, 2, 3))

    assert operators(rolled.graph) == ["loop1", "getitem"]


def test_tape_stays_as_it_is() -> None:
    """Re-rolling changes neither the graph of the tape nor the meta of its nodes."""
    tape = capture(leaky, (torch.rand(5, 2, 3),), {})
    before = [(str(n.target), str(n.args), dict(n.meta)) for n in tape.graph.nodes]

    reroll(tape)

    assert before == [(str(n.target), str(n.args), dict(n.meta)) for n in tape.graph.nodes]


def test_placeholders_and_outputs_are_those_of_the_tape() -> None:
    """Inputs that the loop does not read and constant outputs keep their places."""

    def model(x, unused, y):
        return leaky(x), y, x.shape[0], unused

    inputs = torch.rand(5, 2, 3), torch.rand(2), torch.rand(3)
    tape = capture(model, inputs, {})
    rolled = reroll(tape)

    names = [[n.name for n in g.nodes if n.op == "placeholder"] for g in (tape.graph, rolled.graph)]
    assert names[0] == names[1]
    counts = [len(g.output_node().args[0]) for g in (tape.graph, rolled.graph)]
    assert counts[0] == counts[1]
    check(rolled, tape, gather(tape, model, inputs, {}))


@pytest.mark.parametrize(
    ("indices", "step"),
    [
        (range(6), Step("x_t", 0, 0, 0, 1)),
        (range(1, 6), Step("x_t", 0, 0, 1, 1)),
        (range(5, -1, -1), Step("x_t", 0, 0, -1, -1)),
        (range(0, 6, 2), Step("x_t", 0, 0, 0, 2)),
        (range(-6, 0), Step("x_t", 0, 0, 0, 1)),
        (range(-3, 0), Step("x_t", 0, 0, 3, 1)),
        (range(2, 5), Step("x_t", 0, 0, 2, 1)),
    ],
    ids=str,
)
def test_index_of_a_step(indices: range, step: Step) -> None:
    """Any arithmetic sequence of indices is a per-step input."""

    def model(x):
        v = torch.zeros_like(x[0])
        for t in indices:
            v = 0.5 * v + x[t]
        return v

    loop = only_loop(model, torch.rand(6, 2, 3))

    assert loop.steps == (step,)
    assert loop.trip.seen == len(indices)


@pytest.mark.parametrize(
    ("indices", "operand"),
    [(range(6), 0), (range(1, 6), 0), (range(5), 0), (range(4), None), (range(0, 6, 2), None)],
    ids=str,
)
def test_number_of_steps_follows_what_is_read_to_its_end(indices: range, operand: Any) -> None:
    """Only a loop that reads an axis to its end, or one short of it, follows its length."""

    def model(x):
        v = torch.zeros_like(x[0])
        for t in indices:
            v = 0.5 * v + x[t]
        return v

    loop = only_loop(model, torch.rand(6, 2, 3))

    assert loop.trip.operand == operand
    assert loop.trip.offset == (len(indices) - 6 if operand is not None else 0)


def test_irregular_indices_are_gathered() -> None:
    """Frames read in any order become one tensor that is read in order."""

    def model(x):
        v = torch.zeros_like(x[0])
        for t in (3, 0, 0, 2, 5, 1):
            v = 0.5 * v + x[t]
        return v

    rolled = rolled_of(model, torch.rand(6, 2, 3))

    (loop,) = rolled.loops
    assert (loop.trip.seen, loop.trip.operand) == (6, None)
    assert operators(rolled.graph)[-3:] == ["stack", "loop1", "getitem"]


def test_constant_start_keeps_its_number() -> None:
    """A state that starts at one value everywhere is a fill, whatever made it."""

    def model(x):
        a, b = torch.full((2, 3), 0.25), torch.ones(x.shape[1:])
        c, d = x.new_zeros(2, 3), torch.zeros(1, 3).expand(2, 3)
        for t in range(x.shape[0]):
            a, b, c, d = a * 0.5 + x[t], b - x[t], c + x[t], d * x[t]
        return a, b, c, d

    loop = only_loop(model, torch.rand(5, 2, 3))

    assert sorted(c.initial.value for c in loop.carries) == [0.0, 0.0, 0.25, 1.0]


@pytest.mark.parametrize(("number", "is_fill"), [(0.25, True), (0.1, False)])
def test_start_that_was_rounded_stays_a_tensor(number: float, is_fill: bool) -> None:
    """A fill that changed its type is a number only if both types hold that number exactly."""

    def model(x):
        v = torch.full((2, 3), number).double()
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
        return v

    loop = only_loop(model, torch.rand(5, 2, 3, dtype=torch.float64))

    assert isinstance(loop.carries[0].initial, Fill) == is_fill


def test_start_of_another_shape_is_an_operand() -> None:
    """A fill that is broadcast by the first step is not a start; the first step is peeled."""

    def model(x):
        v = torch.zeros(3)
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
        return v

    loop = only_loop(model, torch.rand(6, 2, 3))

    assert all(isinstance(c.initial, int) for c in loop.carries)


def test_two_states_of_one_start_are_two_carries() -> None:
    """States that share their first tensor are told apart by what they become."""

    def model(x):
        a = b = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            a, b = a + x[t], b - x[t]
        return a, b

    assert len(only_loop(model, torch.rand(5, 2, 3)).carries) == 2


def test_delay_is_a_shift_register() -> None:
    """A value read d steps later moves through d carries, with d start values."""

    def model(x):
        history = [x[0] * 2, x[0] * 3, x[0] * 4]
        for t in range(x.shape[0]):
            history.append(history[-3] + x[t])
        return history[-1] + history[-2] + history[-3]

    loop = only_loop(model, torch.rand(7, 2))

    by_name = {c.name: c for c in loop.carries}
    last = next(c for c in loop.carries if c.name == loop.node("add").args[0].name)
    assert len(by_name) == 3
    assert by_name[by_name[last.update].update].update == "add"


def test_value_of_one_step_is_selected() -> None:
    """A single element of what the loop computes is selected from the stacked result."""

    def model(x):
        v, seen = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
            seen.append(v)
        return seen[2], seen[-1]

    rolled = rolled_of(model, torch.rand(6, 2, 3))

    (select,) = [n for n in rolled.graph.nodes if n.target is torch.select]
    assert select.args[1:] == (0, 2)
    assert [r.stacked for r in rolled.loops[0].results] == [True, False]


def test_part_of_a_list_is_a_slice() -> None:
    """A list from some step on is a slice that stays open at its end."""

    def model(x):
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
            if t >= 2:
                out.append(v)
        return torch.stack(out)

    rolled = rolled_of(model, torch.rand(6, 2, 3))

    part = rolled.graph.output_node().args[0][0]
    assert part.args[1] == (slice(2, None),)


def test_random_numbers_keep_their_order() -> None:
    """Draws before, in and behind a loop come from the generator in the user's order."""

    def model(x):
        v = torch.rand(2, 3)
        for t in range(x.shape[0]):
            noise = torch.randn_like(x[t])
            v = F.dropout(0.5 * v + x[t], 0.5) + noise
        return v + torch.rand(2, 3)

    loop = only_loop(model, torch.rand(5, 2, 3))

    assert [n.meta["impure"] for n in loop.body.nodes if n.op == "call_function"].count(True) == 2


def test_impure_operators_are_kept_without_readers() -> None:
    """A draw whose result nobody reads still moves the generator."""

    def model(x):
        v = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            torch.rand(2)
            v = 0.5 * v + x[t]
        return v

    loop = only_loop(model, torch.rand(5, 2, 3))

    assert "rand" in operators(loop.body)


def test_what_nobody_reads_is_dropped() -> None:
    """States, results and operands that only served themselves disappear."""

    def model(x, y):
        v = unused = torch.zeros_like(x[0])
        for t in range(x.shape[0]):
            unused = unused * y
            v = 0.5 * v + x[t]
        return v

    rolled = rolled_of(model, torch.rand(5, 2, 3), torch.rand(3))

    (loop,) = rolled.loops
    assert len(loop.carries) == 1
    assert loop.operands == 1


def test_loop_over_layers_is_no_loop_over_time() -> None:
    """Layers with weights of their own stay what they are."""

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(4)])

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x

    rolled = rolled_of(Layers(), torch.rand(2, 3))

    assert rolled.loops == ()


def test_independent_repetition_is_no_loop() -> None:
    """Doing the same thing again, without state or index, is not a loop over time."""

    def model(x):
        return [torch.relu(x * 2) + 1 for _ in range(5)]

    rolled = rolled_of(model, torch.rand(2, 3))

    assert rolled.loops == ()
    assert "equal and independent" in str(rolled.diagnostics[0])


def test_says_what_differs() -> None:
    """An integer argument that changes keeps a loop unrolled; its line and values are named."""

    def model(x):
        v = torch.zeros_like(x[0])
        for t in range(6):
            v = 0.5 * v + torch.roll(x[t], t)
        return v

    rolled = rolled_of(model, torch.rand(6, 2, 3))

    (difference,) = rolled.diagnostics
    assert rolled.loops == ()
    assert difference.operator == "roll"
    assert "torch.roll(x[t], t)" in difference.location.source
    assert "an integer argument is 4, then 5" in difference.reason
    assert str(difference.location) in str(difference)


def test_says_which_parameters_differ() -> None:
    """Layers that look the same, and read no input at each step, are named."""

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(5)])

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x

    rolled = rolled_of(Layers(), torch.rand(5, 2, 3))

    assert any("'layers.0.weight', then 'layers.1.weight'" in str(d) for d in rolled.diagnostics)


def test_state_that_grows_is_left_alone() -> None:
    """A state whose shape changes from step to step is not a carry."""

    def model(x):
        v = x[0]
        for t in range(1, 6):
            v = torch.cat([v, x[t] * v.sum()], 0)
            v = v * 2
        return v

    rolled = rolled_of(model, torch.rand(6, 2, 3))

    assert rolled.loops == ()


def test_two_different_halves_are_two_loops() -> None:
    """A loop that changes for good at some step becomes two loops."""

    def model(x):
        v = torch.zeros_like(x[0])
        for t in range(12):
            v = 0.5 * v + x[t]
            if t >= 6:
                v = torch.tanh(v)
        return v

    rolled = rolled_of(model, torch.rand(12, 2, 3))

    assert sum(loop.trip.seen for loop in rolled.loops) == 12
    assert len(rolled.loops) == 2


def test_iteration_begins_where_the_user_begins() -> None:
    """Where the first step differs, the body is still cut at the head of the user's loop."""

    def model(x):
        v, out = None, []
        for t in range(8):
            current = torch.tanh(x[t])
            v = current if v is None else 0.5 * v + current
            s = spike(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out), v

    loop = only_loop(model, torch.rand(8, 2, 3))

    assert operators(loop.body)[0] == "tanh"
    assert [c.update for c in loop.carries] == ["sub_1"]


def recorded_by_hand() -> Tape:
    """Return the tape of ``for t in range(3): v = relu(v) + x[t]; unused = v * 2``."""
    draft = Draft()
    meta = {"where": Location("model.py", 1), "grad": True, "impure": False, "dtype": torch.float32}
    x = draft.placeholder("x", {**meta, "path": (), "shape": (3, 2)})
    v = draft.placeholder("v", {**meta, "path": (), "shape": (2,)})

    def call(line: int, target: Any, *args: Any) -> Node:
        seen = {"path": (line,), "shape": (2,), "where": Location("model.py", line)}
        return draft.call(target, args, {}, {**meta, **seen})

    state = v
    for t in range(3):
        state = call(2, torch.add, call(1, torch.relu, state), call(2, torch.select, x, 0, t))
        call(3, torch.mul, state, 2)
    sources = (Source(SourceKind.INPUT, "x", 0), Source(SourceKind.ATTRIBUTE, "v"))
    return Tape(tuple(draft.places), tuple(draft.calls), (state,), sources, None, None, (0,))


def test_dead_code_neither_hides_a_loop_nor_survives() -> None:
    """Operators whose results nobody reads are dropped; they do not spoil the repetition."""
    tape = recorded_by_hand()

    rolled = reroll(tape)

    (loop,) = rolled.loops
    assert operators(loop.body) == ["relu", "add"]
    assert loop.carries[0].initial == 1
    assert [n.name for n in rolled.graph.nodes if n.op == "placeholder"] == ["x", "v"]
    check(rolled, tape, [torch.randn(3, 2), torch.randn(2)])


def test_check_notices_a_changed_loop() -> None:
    """A loop that computes something else is reported."""
    tape = recorded_by_hand()
    rolled = reroll(tape)
    for node in rolled.loops[0].body.nodes:
        if node.target is torch.relu:
            node.target = torch.tanh

    with pytest.raises(InternalError, match="re-rolling changed output 0"):
        check(rolled, tape, [torch.randn(3, 2), torch.randn(2)])


def test_check_tells_negative_zero_from_zero() -> None:
    """Bits are compared, not values."""
    tape = recorded_by_hand()
    rolled = reroll(tape)
    negated = rolled.graph.output_node().args[0][0]
    with rolled.graph.inserting_before(rolled.graph.output_node()):
        product = rolled.graph.call_function(operator.mul, (negated, -1.0))
    rolled.graph.output_node().args = ((product,),)

    with pytest.raises(InternalError, match="output 0"):
        check(rolled, tape, [torch.zeros(3, 2), torch.zeros(2)])


class Persistent(nn.Module):
    """A state in a buffer that lives on between calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("v", torch.zeros(2, 3))

    def forward(self, x):
        out = []
        for t in range(x.shape[0]):
            self.v = 0.5 * self.v + x[t]
            out.append(spike(self.v - 1))
            self.v = self.v - out[-1]
        return torch.stack(out)


def test_state_that_lives_on_is_start_and_end() -> None:
    """A buffer is the first value of a carry, and its last value is an output."""
    loop = only_loop(Persistent(), torch.rand(5, 2, 3))

    (carry,) = loop.carries
    assert isinstance(carry.initial, int)
    assert [r.stacked for r in loop.results if r.node == carry.update] == [False]


class Shared(Net):
    """One neuron that is called twice in a step, with one state."""

    def forward(self, x):
        v, out = self.zeros(x), []
        for t in range(x.shape[0]):
            h = self.fc1(x[t])
            for _ in range(2):
                v = 0.5 * v + h
                h = spike(v - 1)
                v = v - h
            out.append(h)
        return torch.stack(out)


def test_state_chained_through_two_calls_is_one_carry() -> None:
    """A neuron that is used twice a step carries one state from step to step."""
    loop = only_loop(Shared(), torch.rand(6, 3, 4))

    assert loop.trip == Trip(6, 0, 0, 0)
    assert len(loop.carries) == 1
    assert operators(loop.body).count("Spike") == 2


def sums_of_windows(x: torch.Tensor) -> torch.Tensor:
    recent, out = [torch.zeros(x.shape[1:])] * 3, []
    for t in range(x.shape[0]):
        recent = [*recent[1:], abs(x[t])]
        out.append(sum(recent))
    return torch.stack(out)


def test_cold_and_warm_code_are_one_loop() -> None:
    """The interpreter calls builtins in another instruction once a loop is warm."""
    cold = FunctionType(sums_of_windows.__code__.replace(), globals())
    rolled = reroll(capture(cold, (torch.rand(20, 3),), {}))

    assert [loop.trip.seen for loop in rolled.loops] == [20]


@pytest.mark.parametrize("length", [15, 18, 40])
def test_elements_taken_ahead_do_not_hide_a_loop(length: int) -> None:
    """Iterating over a tensor takes all its elements first: they repeat and are no loop."""

    def model(x: torch.Tensor) -> torch.Tensor:
        i = v = torch.zeros_like(x[0])
        for x_t in x:
            i = 0.5 * i + x_t
            v = 0.75 * v + i
            v = v * (1.0 - (v > 1.0).float()) + 0.1
        return v

    rolled = reroll(capture(model, (torch.randn(length, 2, 3),), {}))

    assert [length] == [loop.trip.seen for loop in rolled.loops]
