"""Streams of models that take, or return, lists with one item for each step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import snncc
from snncc.errors import LaunchError, UnsupportedError
from snncc.nn import ATan

SPIKE = ATan()
STEPS = 7


def lif(v, x):
    h = 0.5 * v + x
    s = SPIKE(h - 1.0)
    return h - s, s


def frames(x):
    """Takes frames, gives spikes."""
    v, out = torch.zeros_like(x[0]), []
    for frame in x:
        v, s = lif(v, frame)
        out.append(s)
    return out


def recorded(x):
    """Lists beside a tensor, a last state and what is no tensor."""
    v = torch.zeros_like(x[0])
    spikes, potentials = [], []
    for t in range(x.shape[0]):
        v, s = lif(v, x[t])
        spikes.append(s)
        potentials.append(v)
    return {"lists": (spikes, tuple(potentials)), "v": v, "all": torch.stack(spikes), "name": "a"}


def pairs(x):
    """A list of tuples."""
    v, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        v, s = lif(v, x[:, t])
        out.append((s, {"v": v.sum(1)}))
    return out


def from_the_start(x):
    """A list that begins with the state before the first step."""
    v = torch.full_like(x[0], 0.25)
    seen = [v]
    for x_t in x:
        v, _ = lif(v, x_t)
        seen.append(v)
    return seen


def from_nothing(x):
    """The state is None at first."""
    v, out = None, []
    for x_t in x:
        v = 0.75 * x_t if v is None else 0.5 * v + x_t
        s = SPIKE(v - 1.0)
        v = v - s
        out.append(s)
    return out, v


def together(x):
    """Frames and masks of a dict; every frame is looked at again behind the loop."""
    v, out = torch.zeros_like(x["frames"][0]), []
    for frame, mask in zip(x["frames"], x["masks"], strict=True):
        v, s = lif(v, frame * mask)
        out.append(s)
    return out, torch.stack(x["frames"]).sum(0)


class Feedback(nn.Module):
    """Spikes come back through weights, so that the loop stays a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter((torch.rand(4, 4) * 8).round() / 8 - 0.5)

    def forward(self, x):
        v, s, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        for x_t in x:
            v, s = lif(v, x_t + s @ self.weight)
            out.append(s)
        return out


def dyadic(*shape):
    """Return numbers of which all sums and halves are exact."""
    return torch.rand(shape).mul(8).round().div(4)


def listed(steps):
    return list(dyadic(steps, 3, 4).unbind(0))


MODELS = {
    "frames": (frames, listed),
    "recorded": (recorded, lambda steps: dyadic(steps, 3, 4)),
    "pairs": (pairs, lambda steps: dyadic(3, steps, 4)),
    "from the start": (from_the_start, lambda steps: dyadic(steps, 3, 4)),
    "from nothing": (from_nothing, lambda steps: dyadic(steps, 3, 4)),
    "frames from nothing": (from_nothing, listed),
    "together": (together, lambda steps: {"frames": listed(steps), "masks": listed(steps)}),
    "feedback": (Feedback(), lambda steps: dyadic(steps, 3, 4)),
}


def cut(x, start, end):
    """Return some steps of an input."""
    if isinstance(x, dict):
        return {name: value[start:end] for name, value in x.items()}
    return x[:, start:end] if isinstance(x, torch.Tensor) and len(x) == 3 else x[start:end]


def at(x, t):
    """Return one step of an input."""
    if isinstance(x, dict):
        return {name: value[t] for name, value in x.items()}
    return x[:, t] if isinstance(x, torch.Tensor) and len(x) == 3 else x[t]


def lists_of(value):
    """Return the lists and tuples of tensors, or of other items, in a result."""
    if isinstance(value, dict):
        return [x for each in value.values() for x in lists_of(each)]
    is_outer = isinstance(value, tuple) and isinstance(value[0], list)
    if is_outer:
        return [x for each in value for x in lists_of(each)]
    return [value] if isinstance(value, list | tuple) else []


def assert_same(expected, actual):
    pairs = zip(pytree.tree_leaves(expected), pytree.tree_leaves(actual), strict=True)
    assert pytree.tree_structure(expected) == pytree.tree_structure(actual)
    for a, b in pairs:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(("model", "make"), MODELS.values(), ids=MODELS.keys())
def test_chunk_returns_lists_of_its_steps(model, make):
    torch.manual_seed(0)
    x = make(STEPS)
    stream = snncc.compile(model).stream(x)
    with torch.no_grad():
        assert_same(model(x), stream.chunk(x))
        stream.reset()
        expected, parts, start = lists_of(model(x)), [], 0
        for steps in (2, 1, 4):
            parts.append(lists_of(stream.chunk(cut(x, start, start + steps))))
            start += steps
    for i, items in enumerate(expected):
        assert_same(list(items), [row for part in parts for row in part[i]])


@pytest.mark.parametrize(("model", "make"), MODELS.values(), ids=MODELS.keys())
def test_step_takes_and_returns_an_item(model, make, tmp_path: Path):
    torch.manual_seed(1)
    x = make(STEPS)
    fast = snncc.compile(model)
    stream, other = fast.stream(x), fast.stream(x)
    with torch.no_grad():
        expected = lists_of(model(x))
    before = len(expected[0]) - STEPS
    for t in range(STEPS):
        if t == 3:  # from a chunk to a stream of its own, and on
            stream.save(tmp_path / "state.npz")
            other.load(tmp_path / "state.npz")
            assert_same(pytree.tree_leaves(stream(at(x, t))), pytree.tree_leaves(other(at(x, t))))
            continue
        row = pytree.tree_leaves(stream(at(x, t)) if t < 3 else other(at(x, t)))
        for items in expected:
            leaves = pytree.tree_leaves(items[t + before])
            assert_same(leaves, row[: len(leaves)])
            row = row[len(leaves) :]


def test_one_sample_starts_its_lists_anew():
    x, mask = listed(STEPS), torch.tensor([True, False, True])
    stream = snncc.compile(frames).stream(x)
    stream.chunk(x)
    stream.reset(mask)
    again, goes_on = frames(x), frames([*x, *x])[STEPS:]
    for a, b, x_t in zip(again, goes_on, x, strict=True):
        assert torch.equal(torch.where(mask[:, None], a, b), stream(x_t))


def test_mode_serial_gives_the_lists_of_the_model():
    x = dyadic(STEPS, 3, 4)
    assert_same(recorded(x), snncc.compile(recorded, mode="serial")(x))


def test_steps_learn_from_lists():
    """As from tensors with a time axis; what is no tensor is returned beside them."""
    x, gradients = listed(STEPS), []
    model = Feedback()
    for serial in (
        lambda x: ([None, model(x), x[0].shape[1], "a"]),
        lambda x: ([None, torch.stack(model(list(x))), 4, "a"]),
    ):
        model.weight.grad = None
        frames = x if not gradients else torch.stack(x)
        step = snncc.compile(serial, mode="online").stream(frames)
        for x_t in x:
            nothing, s, *facts = step(x_t)
            s.sum().backward()
            assert (nothing, facts) == (None, [4, "a"])
        gradients.append(model.weight.grad)

    assert gradients[0].any()
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("wrong", "note"),
    [
        (torch.rand(STEPS, 3, 4), "a list with an item for each step, not Tensor"),
        ([], "a list with an item for each step"),
        ([torch.rand(3, 4), torch.rand(2, 4)], "equal size"),
    ],
)
def test_chunk_wants_a_list_where_the_model_does(wrong, note):
    stream = snncc.compile(frames).stream(listed(STEPS))
    with pytest.raises(LaunchError) as refusal:
        stream.chunk(wrong)
    assert refusal.value.code == "launch.count"
    assert note in refusal.value.notes[0]


def test_list_of_some_steps_has_no_stream():
    with pytest.raises(UnsupportedError) as refusal:
        snncc.compile(lambda x: recorded(x)["lists"][0][::2]).stream(dyadic(STEPS, 3, 4))
    assert "picked out" in refusal.value.notes[0]
