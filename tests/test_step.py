"""Models of one time step: ``snncc.compile(model, step=True)``."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import snncc
from tests.compatibility.neurons import lif, spike


class Cell(nn.Module):
    """A cell that makes its state from None."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, state: Any = None, gain: float = 1.0) -> Any:
        current = gain * self.fc(x)
        v = torch.zeros_like(current) if state is None else state
        v, s = lif(v, current)
        return s, v


class Two(NamedTuple):
    i: Tensor
    v: Tensor


def two_states(x: Tensor, i: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    i = 0.5 * i + x
    v = 0.75 * v + i
    s = spike(v - 1.0)
    return s, i, v - s


def nested(x: dict[str, Tensor], state: Two) -> tuple[dict[str, Any], Two]:
    s, i, v = two_states(x["a"] + x["b"][..., :1], *state)
    return {"spikes": s, "nothing": None, "rates": [s.mean(-1)]}, Two(i, v)


def test_state_goes_in_and_comes_out() -> None:
    """Chunk after chunk gives what the whole sequence gives."""
    torch.manual_seed(0)
    model = Cell()
    fast = snncc.compile(model, step=True)
    x = torch.randn(12, 3, 4)
    whole, last = fast(x, None)
    outputs, v = [], None
    for chunk in x.split(4):
        s, v = fast(chunk, v)
        outputs.append(s)
    expected, w = [], None
    for x_t in x:
        s, w = model(x_t, w)
        expected.append(s)

    torch.testing.assert_close(torch.stack(expected), whole)
    torch.testing.assert_close(torch.cat(outputs), whole)
    torch.testing.assert_close(last, w)
    torch.testing.assert_close(last, v)
    assert len(fast.plans[0].neurons) == 1


def test_several_states() -> None:
    """As many positional arguments as are passed are states."""
    fast = snncc.compile(two_states, step=True, time_dim=1)
    x, i, v = torch.randn(3, 8, 4), torch.rand(3, 4), torch.rand(3, 4)
    s, i_last, v_last = fast(x, i, v)
    for t in range(8):
        s_t, i, v = two_states(x[:, t], i, v)

        assert torch.equal(s_t, s[:, t])
    assert torch.equal(i, i_last)
    assert torch.equal(v, v_last)


def test_nested_inputs_outputs_and_states() -> None:
    """Every tensor among the inputs and outputs has a time axis; states keep their class."""
    fast = snncc.compile(nested, step=True)
    x = {"a": torch.randn(6, 2, 3), "b": torch.randn(6, 2, 5)}
    state = Two(torch.zeros(2, 3), torch.zeros(2, 3))
    y, last = fast(x, state)

    for t in range(6):
        y_t, state = nested({k: v[t] for k, v in x.items()}, state)
        assert torch.equal(y_t["spikes"], y["spikes"][t])
        torch.testing.assert_close(y_t["rates"][0], y["rates"][0][t])
    assert y["nothing"] is None
    assert isinstance(last, Two)
    assert torch.equal(state.v, last.v)


def test_keywords_go_to_every_step() -> None:
    """What is no state is passed by name."""
    model = Cell()
    fast = snncc.compile(model, step=True)
    x = torch.randn(5, 2, 4)
    v = None
    for x_t in x:
        _, v = model(x_t, v, gain=2.0)

    torch.testing.assert_close(fast(x, None, gain=2.0)[1], v)


def test_verify_and_explain_follow_the_option() -> None:
    """The certificate is that of the loop around the step, gradients of parameters included."""
    model = Cell()
    fast = snncc.compile(model, step=True)
    x = torch.randn(5, 2, 4)
    report = snncc.verify(model, fast, x, None)

    assert report.ok, report
    assert "grad fc.weight" in {c.name for c in report.comparisons}
    assert "fused time" in str(snncc.explain(fast, x, None))


def test_steps_inside_other_models() -> None:
    """A compiled step is part of a model that is compiled around it."""
    fast = snncc.compile(Cell(), step=True)
    outer = nn.Sequential(nn.Linear(4, 4))

    def model(x: Tensor) -> Tensor:
        result: Tensor = fast(outer(x), None)[0]
        return result.mean(0)

    x = torch.randn(6, 2, 4)

    torch.testing.assert_close(snncc.compile(model)(x), model(x))


@pytest.mark.parametrize(
    ("step", "args", "code", "says"),
    [
        (Cell(), (torch.randn(5, 2, 4),), "option.step-state", "'state'"),
        (Cell(), (torch.randn(5, 2, 4), None, 1.0), "option.step-state", "2 states"),
        (two_states, (torch.randn(5, 2),) * 3, "option.time-dim", "no axis 2"),
        (nested, ({"a": torch.ones(5, 2, 3), "b": torch.ones(4, 2, 3)}, None), "option.time-dim",
         "5 and 4"),
        (Cell(), (), "option.time-dim", "None"),
        (Cell(), (torch.randn(0, 2, 4), None), "unsupported.empty-sequence", "no step"),
    ],
    ids=["no-state", "state-is-lost", "no-axis", "lengths", "no-input", "empty"],
)  # fmt: skip
def test_wrong_calls(step: Any, args: tuple[Any, ...], code: str, says: str) -> None:
    """A call that no loop around the step could make is refused at every call."""
    dim = 2 if says == "no axis 2" else 0
    fast = snncc.compile(copy.deepcopy(step), step=True, time_dim=dim)
    for _ in range(2):
        with pytest.raises(snncc.SnnccError, match=says) as refusal:
            fast(*args)

        assert code == refusal.value.code


def test_another_length_is_checked_when_nothing_is_recorded() -> None:
    """A program that serves any length does not take sequences of two lengths."""
    fast = snncc.compile(nested, step=True)
    state = Two(torch.zeros(2, 3), torch.zeros(2, 3))
    for T in (6, 8, 7):
        fast({"a": torch.randn(T, 2, 3), "b": torch.randn(T, 2, 3)}, state)
    with pytest.raises(snncc.OptionError, match="6 and 8"):
        fast({"a": torch.randn(6, 2, 3), "b": torch.randn(8, 2, 3)}, state)


def test_structure_that_changes_is_refused() -> None:
    """A step that returns another structure at its second call is refused."""
    calls = []

    def step(x: Tensor) -> Any:
        calls.append(0)
        return (x, x) if len(calls) == 2 else x

    with pytest.raises(snncc.OptionError, match="step 1") as refusal:
        snncc.compile(step, step=True)(torch.randn(5, 2))

    assert refusal.value.code == "option.step-output"


@pytest.mark.parametrize(
    ("options", "code"),
    [({"step": 1.5}, "option.step"), ({"time_dim": 1}, "option.time-dim"),
     ({"step": True, "time_dim": "T"}, "option.time-dim")],
)  # fmt: skip
def test_options_are_checked(options: dict[str, Any], code: str) -> None:
    """A wrong option is an error at the call of compile."""
    with pytest.raises(snncc.OptionError) as refusal:
        snncc.compile(Cell(), **options)

    assert code == refusal.value.code
