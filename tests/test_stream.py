"""Streams: step after step, chunk after chunk, saved and loaded, are what the sequence gives."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import snncc
from snncc.errors import BundleError, LaunchError, OptionError, UnsupportedError
from snncc.nn import ATan

SPIKE = ATan()


class Dense(nn.Module):
    """Two layers and a sum, all in one loop over axis 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Linear(6, 20)
        self.layer2 = nn.Linear(20, 3)

    def forward(self, x):
        v = torch.zeros(x.shape[1], 20)
        total = torch.zeros(x.shape[1], 3)
        for t in range(x.shape[0]):
            h = 0.9 * v + self.layer1(x[t])
            s = SPIKE(h - 0.5)
            v = h * (1.0 - s)
            total = total + self.layer2(s)
        return total


class Conv(nn.Module):
    """A loop in each layer, time second, time folded into the batch, a mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dense = nn.Linear(16, 5)

    def lif(self, x):
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.shape[0]):
            v = 0.8 * v + x[t]
            s = SPIKE(v - 0.5)
            v = v - s.detach() * 0.5
            out.append(s)
        return torch.stack(out)

    def forward(self, x):
        x = x.transpose(0, 1)
        y = self.norm(self.conv(x.flatten(0, 1)))
        y = nn.functional.avg_pool2d(y, 2).reshape(x.shape[0], x.shape[1], 4, 2, 2)
        return self.lif(self.dense(self.lif(y).flatten(2))).mean(0)


class Kept(nn.Module):
    """Every step is an output, and the state survives the call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.v = torch.zeros(2, 8)

    def forward(self, x):
        out = []
        for t in range(x.shape[0]):
            self.v = 0.7 * self.v + self.layer(x[t])
            out.append(SPIKE(self.v - 0.4))
            self.v = self.v - out[-1]
        return torch.stack(out), self.v


class Readouts(nn.Module):
    """What a network may say at its end."""

    def forward(self, x):
        v = torch.zeros(x.shape[1:])
        seen, spikes = [], []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
            seen.append(v)
            spikes.append((v > 0.6).float())
        every = torch.stack(seen)
        count = torch.stack(spikes)
        return {
            "last": every[-1],
            "max": every.max(0)[0],
            "amin": every.amin(0),
            "mean": every.mean(0),
            "rate": count.sum(0) / x.shape[0],
            "all": every,
        }


class Numbered(nn.Module):
    """A number of its own at each step."""

    def forward(self, x):
        v = torch.zeros(x.shape[1:])
        for t in range(x.shape[0]):
            v = v * 0.9 + x[t] * 0.5**t
        return v


class Static(nn.Module):
    """The same input at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x):
        v, count = 0.0, 0.0
        for _ in range(5):
            v = 0.9 * v + self.layer(x)
            s = SPIKE(v - 1.0)
            v = v - s
            count = count + s
        return count / 5


CASES = {
    "dense": (Dense, (7, 2, 6), 0),
    "conv": (Conv, (2, 7, 2, 4, 4), 1),
    "kept": (Kept, (7, 2, 6), 0),
    "readouts": (Readouts, (7, 2, 6), 0),
    "numbered": (Numbered, (7, 2, 6), 0),
}
cases = pytest.mark.parametrize(("make", "shape", "axis"), CASES.values(), ids=CASES.keys())


def prepared(make, shape):
    """Return a model in evaluation mode and an input.

    Its weights are multiples of an eighth, so that products of any number of rows are the same.
    """
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        parameter.data.mul_(16).round_().div_(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model, torch.rand(shape).mul(8).round().div(8)


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


def assert_close(expected, actual):
    """Sums and means over time are taken in another order: a few roundings."""
    for a, b in zip(leaves(expected), leaves(actual), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@cases
def test_each_step_gives_the_results_so_far(make, shape, axis):
    """After step t a stream has given what the model gives for the first t steps."""
    model, x = prepared(make, shape)
    with torch.no_grad():
        fast = snncc.compile(model, example_inputs=(x,))
        stream = fast.stream()
        for t in range(shape[axis]):
            actual = stream(x.select(axis, t))
            again, _ = prepared(make, shape)
            expected = again(x.narrow(axis, 0, t + 1))
            so_far = [
                e[-1] if a.dim() < e.dim() else e
                for e, a in zip(leaves(expected), leaves(actual), strict=True)
            ]
            assert_close(so_far, actual)


@cases
def test_chunks_give_the_same_bits_of_state(make, shape, axis):
    """However a sequence is cut, the states at its end are the same."""
    model, x = prepared(make, shape)
    fast = snncc.compile(model, example_inputs=(x,))
    states = []
    for cuts in ([7], [1] * 7, [3, 4], [4, 1, 2]):
        stream = fast.stream()
        for part in x.split(cuts, axis):
            result = stream.chunk(part)
        states.append((stream.state, result, stream.steps))

    for state, _, steps in states[1:]:
        assert steps == 7
        assert state.keys() == states[0][0].keys()
        for name, value in state.items():
            is_sum = name.endswith("so_far")
            torch.testing.assert_close(
                value, states[0][0][name], rtol=1e-5 if is_sum else 0, atol=1e-6 if is_sum else 0
            )


@cases
def test_serial_mode_is_the_model(make, shape, axis):
    """Mode 'serial' takes whole sequences, step by step, and leaves the same state behind."""
    model, x = prepared(make, shape)
    reference, _ = prepared(make, shape)
    fast = snncc.compile(model, mode="serial")
    with torch.no_grad():
        for _ in range(2):
            assert_close(reference(x), fast(x))


def test_static_input_advances_by_one_step():
    """Without a time axis in the input each call is one more step of the same input."""
    model, x = prepared(Static, (2, 6))
    with torch.no_grad():
        stream = snncc.compile(model).stream(x)
        for _ in range(5):
            result = stream(x)

        assert_close(model(x), result)
        assert_close(model(x), snncc.compile(model, mode="serial")(x))


def test_saved_state_goes_on_where_it_was(tmp_path: Path):
    """Training on sequences, then steps, a file, and the rest of the sequence."""
    model, x = prepared(Dense, (7, 2, 6))
    fast = snncc.compile(model)
    fast(x).sum().backward()
    first = fast.stream()
    first.chunk(x[:3])
    first(x[3])
    first.save(tmp_path / "state.npz")
    second = fast.stream()
    second.load(tmp_path / "state.npz")

    assert second.steps == 4
    assert torch.equal(second.chunk(x[4:]), first.chunk(x[4:]))


def test_state_of_one_stream_is_its_own():
    """Two streams of one model do not share state, and the model keeps its own."""
    model, x = prepared(Kept, (7, 2, 6))
    before = model.v.clone()
    fast = snncc.compile(model, example_inputs=(x,))
    one, two = fast.stream(), fast.stream()
    one.chunk(x)

    assert torch.equal(model.v, before)
    assert two.state == {}
    assert not torch.equal(one.chunk(x)[0], two.chunk(x)[0])


def test_parameters_are_read_at_each_reset():
    """A stream goes on with the parameters it started with; a reset reads them anew."""
    model, x = prepared(Kept, (7, 2, 6))
    stream = snncc.compile(model).stream(x)
    stream(x[0])
    with torch.no_grad():
        model.v = model.v + 1.0
    stream.reset()

    assert stream.steps == 0
    assert torch.equal(stream.chunk(x)[1], snncc.compile(model)(x)[1])


def test_samples_start_anew_one_by_one():
    """A masked reset starts some samples anew and leaves the others."""
    model, x = prepared(Kept, (7, 2, 6))
    stream = snncc.compile(model).stream(x)
    stream.chunk(x)
    stream.reset(torch.tensor([True, False]))
    mixed = stream.chunk(x)[0]
    fresh = snncc.compile(model).stream(x).chunk(x)[0]
    onward = snncc.compile(model).stream(x)
    onward.chunk(x)

    assert torch.equal(mixed[:, 0], fresh[:, 0])
    assert torch.equal(mixed[:, 1], onward.chunk(x)[0][:, 1])


def test_mask_is_refused_where_steps_are_counted():
    """A mean divides by the steps so far, which are the same for all samples."""
    model, x = prepared(Conv, (2, 7, 2, 4, 4))
    stream = snncc.compile(model).stream(x)
    stream.chunk(x)

    with pytest.raises(LaunchError, match="counts its steps"):
        stream.reset(torch.tensor([True, False]))


def test_mask_of_another_size_is_refused():
    """The mask has one bool for each sample."""
    model, x = prepared(Kept, (7, 2, 6))
    stream = snncc.compile(model).stream(x)
    stream(x[0])

    with pytest.raises(LaunchError, match="no axis of 3 samples"):
        stream.reset(torch.tensor([True, False, True]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.rand(7, 2, 6), "has 3 axes; it takes 2"),
        (torch.rand(2, 6).double(), "float64; the stream was opened for torch.float32"),
        (3.0, "is float; the stream"),
        (torch.rand(4, 6), "before it was"),
    ],
    ids=["rank", "dtype", "number", "batch"],
)
def test_wrong_step_is_refused_and_changes_nothing(value, message):
    """After a refused step the stream goes on as if it had not been."""
    model, x = prepared(Dense, (7, 2, 6))
    fast = snncc.compile(model)
    stream, same = fast.stream(x), fast.stream(x)
    stream(x[0])
    same(x[0])
    with pytest.raises(LaunchError, match=message):
        stream(value)

    assert torch.equal(stream(x[1]), same(x[1]))


def test_stream_needs_an_example():
    """A model that was never called has no known inputs."""
    with pytest.raises(OptionError, match="needs to know the inputs"):
        snncc.compile(Dense()).stream()


def backwards(x):
    v = torch.zeros(x.shape[1:])
    for t in range(x.shape[0] - 1, -1, -1):
        v = 0.5 * v + x[t]
    return v


def normalised(x):
    x = x - x.mean(0)
    v = torch.zeros(x.shape[1:])
    for t in range(x.shape[0]):
        v = 0.5 * v + x[t]
    return v


def attending(x):
    weights = torch.softmax(torch.einsum("tbn,sbn->tsb", x, x), 1)
    x = torch.einsum("tsb,sbn->tbn", weights, x)
    v = torch.zeros(x.shape[1:])
    for t in range(x.shape[0]):
        v = 0.5 * v + x[t]
    return v


class Filtered(nn.Module):
    """A convolution over time, whose weights happen to be zero."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Conv1d(6, 6, 3, padding=1)
        nn.init.zeros_(self.filter.weight)

    def forward(self, x):
        x = self.filter(x.permute(1, 2, 0)).permute(2, 0, 1)
        v = torch.zeros(x.shape[1:])
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
        return v


def autoencoding(x):
    v, w, out = torch.zeros(x.shape[1:]), torch.zeros(x.shape[1:]), []
    for t in range(x.shape[0]):
        v = 0.5 * v + x[t]
    for t in range(x.shape[0]):
        w = 0.5 * w + v * x[t]
        out.append(w)
    return torch.stack(out)


@pytest.mark.parametrize("model", [backwards, normalised, attending, Filtered(), autoencoding])
def test_whole_sequence_is_needed(model):
    """What relates time steps other than by states is refused, with the line and the reason."""
    with pytest.raises(UnsupportedError) as caught:
        snncc.compile(model).stream(torch.rand(7, 2, 6))

    assert caught.value.code == "unsupported.stream"
    assert caught.value.notes


def test_numbers_end_with_the_sequence():
    """A model with numbers for seven steps has none for the eighth."""
    model, x = prepared(Numbered, (7, 2, 6))
    stream = snncc.compile(model).stream(x)
    stream.chunk(x)

    with pytest.raises(UnsupportedError, match="has numbers for 7"):
        stream(x[0])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", "npz", "pickle"])
def test_damaged_state_is_refused(tmp_path: Path, content):
    """A file that is no state of this stream leaves the stream as it was."""
    model, x = prepared(Dense, (7, 2, 6))
    stream = snncc.compile(model).stream(x)
    stream(x[0])
    before = stream.state
    path = tmp_path / "state.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "npz":
        numpy.savez(path, steps=1, other=numpy.zeros(3))
    else:
        numpy.savez(path, steps=numpy.array([Path()], dtype=object))

    with pytest.raises(BundleError, match="is not a state"):
        stream.load(path)
    assert stream.steps == 1
    assert all(torch.equal(value, before[name]) for name, value in stream.state.items())


def test_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch):
    """A file is replaced whole or not at all, and nothing is left behind."""
    model, x = prepared(Dense, (7, 2, 6))
    stream = snncc.compile(model).stream(x)
    stream(x[0])
    path = tmp_path / "state.npz"
    stream.save(path)
    old = path.read_bytes()

    def broken(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(numpy, "savez", broken)
    with pytest.raises(BundleError, match="disk full"):
        stream.save(path)

    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_steps_keep_no_graph():
    """A stream runs without gradients, whatever its input asks for."""
    model, x = prepared(Dense, (7, 2, 6))
    stream = snncc.compile(model).stream(x)
    for t in range(4):
        result = stream(x[t].clone().requires_grad_())

        assert not result.requires_grad
        assert not any(value.requires_grad for value in stream.state.values())


def test_results_stay_as_they_were_returned():
    """A result is not overwritten by the steps that follow."""
    model, x = prepared(Kept, (7, 2, 6))
    stream = snncc.compile(model).stream(x)
    seen = [stream(x[t]) for t in range(7)]
    again = snncc.compile(model).stream(x)

    for t in range(7):
        for a, b in zip(seen[t], again(x[t]), strict=True):
            assert torch.equal(a, b)


def test_new_weights_reach_the_next_sequence():
    """What depends on parameters alone is computed once, and anew at each reset."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            decay, v = torch.sigmoid(self.w), torch.zeros(x.shape[1:])
            for t in range(x.shape[0]):
                v = decay * v + x[t]
            return v

    model, x = prepared(Gated, (7, 2, 6))
    fast = snncc.compile(model)
    stream = fast.stream(x)
    for t in range(3):
        stream(x[t])
    with torch.no_grad():
        model.w += 2.0
    stream.reset()
    for t in range(7):
        result = stream(x[t])

    assert torch.equal(result, fast(x))


def resume(stream, state, x):
    """Load a state and take a step from it."""
    stream.load_state(state, 3)
    stream(x)


@pytest.mark.parametrize("is_fresh", [True, False], ids=["fresh", "running"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v.double(), "float64"),
        (lambda v: v.long(), "int64"),
        (lambda v: v[:1], "not [2, 20]"),
        (lambda v: torch.cat([v, v], 1), "not [2, 20]"),
        (lambda v: v.new_zeros(()), "not [2, 20]"),
        (lambda v: v[:0], "not [2, 20]"),
        (lambda v: v[None], "not [2, 20]"),
        (lambda v: torch.cat([v, v[:1]]), "not [2, 20]"),
    ],
    ids=["double", "integer", "one row", "wide", "number", "empty", "axis", "batch"],
)
def test_states_that_do_not_fit_are_refused(change, reason, is_fresh):
    """Names that are right are not enough; after a reset the stream is as new."""
    model, x = prepared(Dense, (7, 2, 6))
    fast = snncc.compile(model)
    stream = fast.stream(x)
    stream.chunk(x[:3])
    state = {name: change(value) for name, value in stream.state.items()}
    if is_fresh:
        stream = fast.stream(x)
    with pytest.raises(LaunchError) as caught:
        resume(stream, state, x[3])

    assert caught.value.code == "launch.stream-state"
    assert reason in caught.value.notes[0]
    stream.reset()
    assert torch.equal(stream.chunk(x), fast(x))


def test_a_step_allocates_its_results_and_nothing_else():
    """From the third step on, states stay where they are and no other memory is asked for."""
    model, x = prepared(Dense, (7, 2, 6))
    stream = snncc.compile(model).stream(x)
    for t in range(3):
        stream(x[t])
    places = [value.data_ptr() for value in stream._states]
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = stream(x[3])
    taken = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())

    assert result.numel() * result.element_size() == taken
    assert places == [value.data_ptr() for value in stream._states]


class Trained(nn.Module):
    """Norm and dropout in training, and a mask that is drawn once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x):
        mask = torch.nn.functional.dropout(torch.ones(x.shape[1:]), 0.5)
        v, out = torch.zeros(x.shape[1:]), []
        for t in range(x.shape[0]):
            v = 0.5 * v + self.dropout(self.norm(x[t])) * mask
            out.append(SPIKE(v - 0.25))
        return torch.stack(out)


def test_streams_in_training_mode_draw_and_learn_as_the_sequence():
    """The masks are those of the sequence; the statistics of the model are not touched."""
    model, x = prepared(Trained, (7, 4, 6))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = snncc.compile(model, example_inputs=(x,))
    stream = fast.stream()
    torch.manual_seed(5)
    actual = torch.stack([stream(x_t) for x_t in x])
    after = torch.rand(())

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.manual_seed(5)
    assert torch.equal(fast(x), actual)
    assert torch.equal(torch.rand(()), after)


def test_a_stream_says_what_it_is():
    """Its text names what a step takes, how far it is, and what it carries."""
    x = torch.rand(5, 2, 6)
    step = snncc.compile(Dense()).stream(x)
    assert repr(step) == "Stream without gradients, no steps taken"

    step(x[0])
    first, *lines = repr(step).splitlines()
    assert first == "Stream without gradients, 1 step taken"
    assert lines[0] == "  takes x [2, 6]"
    sizes = {"v": [2, 20], "total": [2, 3]}
    assert lines[1:] == [
        f"  holds {name} {sizes[name.partition('.')[2]]} float32 on cpu" for name in step.state
    ]


@pytest.mark.parametrize("mode", ["serial", "online"])
def test_the_state_is_not_in_memory_of_the_user(mode):
    """Inputs and outputs may be overwritten after a step, or after a chunk."""

    def model(x):
        v, out = torch.zeros_like(x[0]), []
        for x_t in x:
            v = 0.5 * v + x_t
            out.append(v)
        return torch.stack(out), v

    x = torch.rand(8, 2, 3, generator=torch.Generator().manual_seed(0))
    _, expected = snncc.compile(model, mode=mode)(x)
    stream = snncc.compile(model, mode=mode).stream(x)
    for part in (x[0], x[1], x[2:5], x[5:6], x[6], x[7]):
        given = part.clone()
        out, total = (stream.chunk if given.dim() == 3 else stream)(given)
        result = total.clone()
        for tensor in (given, out, total):
            tensor.fill_(7.0)
    assert torch.equal(expected, result)
