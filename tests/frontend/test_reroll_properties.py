"""Whatever a program does at its steps, its loops compute the bits that it computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snncc.frontend.capture import capture
from snncc.frontend.generalize import same_program
from snncc.frontend.reroll import check, reroll
from snncc.frontend.state.sources import gather

STATES = 3


@dataclass(frozen=True)
class Statement:
    """``values[target] = op(values[a], values[b])``; ``number`` is a constant where one is used."""

    op: str
    target: int
    a: int
    b: int
    number: float


@dataclass(frozen=True)
class Quirk:
    """What happens at one step only: a statement is left out, done twice or done differently."""

    step: int
    statement: int
    kind: str


@dataclass(frozen=True)
class Script:
    """A loop in Python: what each step does, and at which steps it does something else."""

    steps: int
    statements: tuple[Statement, ...]
    quirks: tuple[Quirk, ...]
    start: str
    reads: str
    output: str

    @property
    def margin(self) -> int:
        """How much longer than the loop the input is."""
        return 1 if self.reads in ("next", "twice") else 0

    def input(self, more: int = 0) -> Tensor:
        return torch.randn(self.steps + self.margin + more, 2, 3)


OPS = ("add", "sub", "mul", "scale", "threshold", "linear", "detach", "power", "delay", "clamp")
# Values 0..2 are states, 3 is the input of the step, 4 is the last spike.
statements = st.builds(
    Statement,
    op=st.sampled_from(OPS),
    target=st.integers(0, STATES - 1),
    a=st.integers(0, 4),
    b=st.integers(0, 4),
    number=st.sampled_from([0.0, 0.5, 0.9, 1.0, -1.0]),
)
scripts = st.integers(2, 9).flatmap(
    lambda steps: st.builds(
        Script,
        steps=st.just(steps),
        statements=st.lists(statements, min_size=1, max_size=6).map(tuple),
        quirks=st.lists(
            st.builds(
                Quirk,
                step=st.integers(0, steps - 1),
                statement=st.integers(0, 5),
                kind=st.sampled_from(["skip", "twice", "other-number", "swap"]),
            ),
            max_size=2,
        ).map(tuple),
        start=st.sampled_from(["zeros", "zeros_like", "number", "input", "shared"]),
        reads=st.sampled_from(["forward", "backward", "next", "previous", "static", "twice"]),
        output=st.sampled_from(["stack", "list", "sum", "last", "buffer", "cat"]),
    )
)


class Scripted(nn.Module):
    """Runs a script."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script
        self.fc = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        script, out = self.script, []
        steps = x.shape[0] - script.margin
        values = [*self.states(x), x[0], torch.zeros_like(x[0])]
        history = [values[0]] * 3
        buffer = torch.zeros(steps, *x.shape[1:])
        total = 0.0
        for t in range(steps):
            values[3] = self.read(x, t, steps)
            quirks = {q.statement: q.kind for q in script.quirks if q.step == t}
            for n, statement in enumerate(script.statements):
                kind = quirks.get(n, "")
                if kind == "skip":
                    continue
                for _ in range(2 if kind == "twice" else 1):
                    self.run_one(statement, values, history, kind)
            history.append(values[0])
            out.append(values[4])
            total = total + values[1]
            if script.output == "buffer":
                buffer[t] = values[4] * 1.0
        return self.result(out, total, buffer, values)

    def states(self, x: Tensor) -> list:
        match self.script.start:
            case "zeros":
                return [torch.zeros(x.shape[1:]) for _ in range(STATES)]
            case "zeros_like":
                return [torch.zeros_like(x[0]) for _ in range(STATES)]
            case "number":
                return [0.0, torch.zeros_like(x[0]), 0.0]
            case "input":
                return [x[0] * 0.5, x[1], x[0]]
            case _:
                return [torch.zeros(x.shape[1:])] * STATES

    def read(self, x: Tensor, t: int, steps: int) -> Tensor:
        match self.script.reads:
            case "forward":
                return x[t]
            case "backward":
                return x[steps - 1 - t]
            case "next":
                return x[t + 1]
            case "previous":
                return x[t - 1]
            case "static":
                return x[0]
            case _:
                return x[t] + x[t + 1]

    def run_one(self, s: Statement, values: list, history: list, kind: str) -> None:
        number = s.number + 0.25 if kind == "other-number" else s.number
        a, b = (values[s.b], values[s.a]) if kind == "swap" else (values[s.a], values[s.b])
        tensor = a if isinstance(a, Tensor) else values[3]
        match s.op:
            case "add":
                values[s.target] = a + b
            case "sub":
                values[s.target] = a - b
            case "mul":
                values[s.target] = a * b
            case "scale":
                values[s.target] = a * number
            case "threshold":
                values[4] = (tensor > number).float()
            case "linear":
                values[s.target] = self.fc(tensor)
            case "detach":
                values[s.target] = tensor.detach()
            case "power":
                values[s.target] = tensor * number ** len(history)
            case "delay":
                values[s.target] = tensor - history[-2]
            case _:
                values[s.target] = torch.clamp(tensor, -1.0, 1.0)

    def result(self, out: list, total: Tensor, buffer: Tensor, values: list) -> list[Tensor]:
        match self.script.output:
            case "stack":
                found = [torch.stack(out, 1)]
            case "list":
                found = list(out)
            case "sum":
                found = [sum(out), total]
            case "buffer":
                found = [buffer]
            case "cat":
                found = [torch.cat(out, 0), torch.stack(out[1:])]
            case _:
                found = [out[-1]]
        return found + [v for v in values[:STATES] if isinstance(v, Tensor)]


@given(scripts)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_loops_compute_the_same_bits(script: Script) -> None:
    """A program with quirks at some steps is rolled up as far as it is regular, and no further."""
    torch.manual_seed(0)
    model = Scripted(script)
    tape = capture(model, (script.input(),), {})

    rolled = reroll(tape)

    check(rolled, tape, gather(tape, model, (script.input(),), {}))


@given(scripts, st.integers(1, 4))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_one_program_serves_both_lengths(script: Script, more: int) -> None:
    """Where two recordings are found to be one program, the first computes what the second does."""
    torch.manual_seed(0)
    model = Scripted(script)
    rolled = reroll(capture(model, (script.input(),), {}))
    longer = capture(model, (script.input(more),), {})

    if same_program(rolled, reroll(longer)):
        check(rolled, longer, gather(longer, model, (script.input(more),), {}))


@given(scripts.filter(lambda s: s.steps >= 4 and not s.quirks))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_regular_programs_are_rolled_up(script: Script) -> None:
    """What a program without quirks computes at every step is in a loop, or it is said why not."""
    torch.manual_seed(0)
    tape = capture(Scripted(script), (script.input(),), {})

    rolled = reroll(tape)

    calls = [n for n in tape.graph.nodes if n.target in (F.linear, torch.clamp, torch.sub)]
    per_step = len(calls) // script.steps
    assert rolled.loops or rolled.diagnostics or per_step == 0
