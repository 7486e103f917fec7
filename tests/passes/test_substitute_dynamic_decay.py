"""A dynamic decay in place of LIF neurons: its start, numbers, gradients and parameters."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snncc
from snncc.errors import EquivalenceError, FormError, OptionError
from snncc.ir.numerics import Numerics
from snncc.nn import HDLIF, IF, LI, LIF, AdaptiveLIF, ATan, CubaLIF, DynamicDecay, SlidingPSN


class Net(nn.Module):
    """Two spiking layers and a readout that does not spike."""

    def __init__(self, first, second):
        super().__init__()
        self.a, self.first = nn.Linear(3, 5), first
        self.b, self.second = nn.Linear(5, 4), second
        self.out = LI(0.8)

    def forward(self, x):
        return self.out(self.second(self.b(self.first(self.a(x)))))[-1]


class Above(nn.Module):
    """Spikes of potentials above a threshold, as the surrogate of a `DynamicDecay`."""

    def __init__(self, v_threshold):
        super().__init__()
        self.v_threshold, self.spike = v_threshold, ATan()

    def forward(self, h):
        return self.spike(h - self.v_threshold)


def potentials(x):
    """A LIF neuron of decay 0.5 that gives its potentials before and after the reset too."""
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = 0.5 * v + x[t]
        s = ATan()(h - 0.6)
        v = h * (1.0 - s)
        out.append((s, h, v))
    s, h, v = (torch.stack(each) for each in zip(*out, strict=True))
    return s, h, v


def gate_of(fast, name="neuron1"):
    return fast.dynamic_decay[name]


def perturbed(fast, scale=0.3):
    """Return a compiled model whose gates depend on the input."""
    with torch.no_grad():
        for parameter in fast.dynamic_decay.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return fast


def test_numbers_by_hand():
    """Decay 0.5, one tap of ln(3)/2: the decays of u = 2, 4, -2 are 3/4, 9/10 and 1/4."""
    x = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64).reshape(3, 1, 1)
    fast = snncc.compile(potentials, mode="dynamic_decay", kernel_size=1, tau=1.0)
    fast(x)
    gate = gate_of(fast)
    assert gate.bias.item() == 0.0
    assert gate.gain.item() == 2.0
    with torch.no_grad():
        gate.weight.fill_(math.log(3.0) / 2.0)
    s, h, v = fast(x)

    expected = torch.tensor([0.5, 0.85, -1.2875], dtype=torch.float64)
    torch.testing.assert_close(h.flatten(), expected, rtol=1e-14, atol=0)
    assert torch.equal(v, h)  # there is no reset
    assert s.flatten().tolist() == [0.0, 1.0, 0.0]


def test_published_numbers():
    """With a gain of one, potentials are those of the worked example of the paper's equations."""
    x = torch.tensor([1.0, 2.5, -0.5, 3.0], dtype=torch.float64).reshape(4, 1, 1)
    fast = snncc.compile(potentials, example_inputs=(x,), mode="dynamic_decay")
    gate = gate_of(fast)
    with torch.no_grad():
        gate.gain.fill_(1.0)
        gate.bias.fill_(1.0)
        gate.weight.copy_(torch.tensor([[0.0, 0.0, 0.5, -0.25]]))

    expected = torch.tensor([0.787217, 2.075, 1.30415, 2.89401], dtype=torch.float64)
    torch.testing.assert_close(fast(x)[1].flatten(), expected, rtol=1e-5, atol=0)


@given(
    st.floats(0.01, 0.999), st.sampled_from([0.25, 1.0, 3.0]), st.integers(1, 5), st.integers(0, 99)
)
@settings(max_examples=10, deadline=None)
def test_start_is_the_neuron_without_reset(decay, tau, kernel_size, seed):
    """Before training the potential is that of the reset-free LIF neuron, up to rounding."""
    torch.manual_seed(seed)
    x = torch.randn(50, 2, 3, dtype=torch.float64)

    def neuron(x):
        v, potentials = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = decay * v + x[t]
            v = h - ATan()(h - 1.0)
            potentials.append(h)
        return torch.stack(potentials)

    fast = snncc.compile(
        neuron, mode="dynamic_decay", kernel_size=kernel_size, tau=tau, target="torch"
    )
    h = torch.zeros_like(x[0])
    for t, actual in enumerate(fast(x)):
        h = decay * h + x[t]
        torch.testing.assert_close(actual, h, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"v_reset": None}, {"v_reset": -0.25}, {"detach_reset": True}, {"reset": "none"}],
)
def test_start_has_the_spikes_of_the_network_without_reset(options, dtype):
    """Whatever the reset was; a learnable decay per neuron starts the gate of its channel."""
    torch.manual_seed(0)
    shared = {"learnable": True, "shape": (4,)}
    model = Net(LIF(0.9, **options), LIF(0.5, v_threshold=0.25, **shared, **options)).to(dtype)
    with torch.no_grad():
        model.second.decay.weight.copy_(torch.randn(4))
    x = torch.randn(30, 6, 3, dtype=dtype)
    fast = snncc.compile(model, mode="dynamic_decay")
    actual = fast(x)

    free = copy.deepcopy(model)
    free.first.reset_mode = free.second.reset_mode = "none"
    assert actual.std() > 0
    torch.testing.assert_close(actual, free(x), rtol=1e-5, atol=1e-6)
    assert fast.plans[0].numerics is Numerics.SUBSTITUTED
    assert fast.dynamic_decay.neuron2.bias.std() > 0


@pytest.mark.parametrize("shape", [(40, 3, 4), (7, 2, 4, 3, 2), (1, 1, 4)])
@pytest.mark.parametrize(("kernel_size", "chunk"), [(1, None), (3, None), (3, 3)])
def test_is_the_plain_serial_neuron(shape, kernel_size, chunk):
    """Spikes and all gradients are those of `DynamicDecay` under autograd, image planes too."""
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    model = LIF(0.8, v_threshold=0.5)
    options = {"mode": "dynamic_decay", "kernel_size": kernel_size, "tau": 0.5, "chunk": chunk}
    fast = perturbed(snncc.compile(model, example_inputs=(x,), **options))
    gate = gate_of(fast)
    plain = DynamicDecay(4, kernel_size, 0.5, surrogate=Above(0.5)).double()
    with torch.no_grad():
        plain.weight.copy_(gate.weight)
        plain.bias.copy_(gate.bias)
    y = x.detach().clone().requires_grad_()
    actual, expected = fast(x), plain(gate.gain.reshape(4, *(1,) * (y.dim() - 3)) * y)
    g = torch.randn_like(expected)
    actual.backward(g)
    expected.backward(g)

    assert torch.equal(actual, expected)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gate.weight.grad, plain.weight.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gate.bias.grad, plain.bias.grad, rtol=1e-9, atol=1e-12)


def test_length_and_batch_are_free():
    """One set of gates serves every length and batch, in training and evaluation, and a stream."""
    torch.manual_seed(0)
    model = Net(LIF(0.9), LIF(0.7, v_threshold=0.25))
    x = torch.randn(40, 6, 3)
    fast = perturbed(snncc.compile(model, example_inputs=(x,), mode="dynamic_decay"))
    gates = [id(p) for p in fast.parameters()]
    steps = snncc.compile(lambda x: model.first(model.a(x)), mode="dynamic_decay")
    whole = steps(x)

    assert torch.equal(steps(x[:9]), whole[:9])
    assert torch.equal(steps(x[:1]), whole[:1])
    assert torch.equal(steps(x[:, :1]), whole[:, :1])
    assert torch.equal(fast(x[:, :2]), fast(x)[:2])
    stream = fast.stream()
    with torch.no_grad():
        last = [stream(x_t) for x_t in x][-1]
    assert torch.equal(last, fast.eval()(x))
    assert [id(p) for p in fast.parameters()] == gates


def test_gates_learn():
    """An optimiser of the compiled model's parameters moves the gates and lowers the loss."""
    torch.manual_seed(0)
    x, target = torch.randn(30, 16, 3), torch.randn(16, 4)
    model = Net(LIF(0.9, v_threshold=0.5), LIF(0.9, v_threshold=0.5))
    fast = snncc.compile(model, example_inputs=(x,), mode="dynamic_decay")
    start = fast.state_dict()["dynamic_decay.neuron1.weight"].clone()
    optimiser = torch.optim.Adam(fast.parameters(), 0.02)
    losses = []
    for _ in range(30):
        loss = ((fast(x) - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]
    assert not torch.equal(fast.state_dict()["dynamic_decay.neuron1.weight"], start)


def test_parameters_are_those_of_the_compiled_model():
    """They have names of their own, are saved and loaded, copied and moved; the model has none."""
    torch.manual_seed(0)
    model = Net(LIF(0.9), LIF(0.7, v_threshold=0.25))
    x = torch.randn(20, 2, 3)
    fast = perturbed(snncc.compile(model, example_inputs=(x,), mode="dynamic_decay"))
    expected = fast(x)
    own = [f"dynamic_decay.neuron{n}.{part}" for n in (1, 2) for part in ("weight", "bias")]
    fresh = snncc.compile(copy.deepcopy(model), example_inputs=(x,), mode="dynamic_decay")
    changed = not torch.equal(fresh(x), expected)
    missing = fresh.load_state_dict(
        {k: v for k, v in fast.state_dict().items() if k != own[0]}, strict=False
    )
    fresh.load_state_dict(fast.state_dict())
    around = nn.Sequential(fast)

    assert [n for n, _ in fast.named_parameters() if n not in dict(model.named_parameters())] == own
    assert {*fast.state_dict()} - {*model.state_dict()} == {
        *own,
        "dynamic_decay.neuron1.gain",
        "dynamic_decay.neuron2.gain",
    }
    assert not hasattr(model, "dynamic_decay")
    assert changed
    assert missing.missing_keys == [own[0]]
    assert torch.equal(fresh(x), expected)
    assert torch.equal(copy.deepcopy(fast)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(fast))(x), expected)
    assert {f"0.{name}" for name in fast.state_dict()} == {*around.state_dict()}
    assert around.load_state_dict(around.state_dict()).missing_keys == []
    assert fast.double()(x.double()).dtype is torch.float64
    assert fast.dynamic_decay.neuron1.weight.dtype is torch.float64


def test_parameters_are_known_after_the_first_call():
    """An optimiser that is made too early would miss them; it gets an error."""
    fast = snncc.compile(Net(LIF(0.9), LIF(0.9)), mode="dynamic_decay")
    for early in (lambda: torch.optim.SGD(fast.parameters(), 0.1), fast.state_dict):
        with pytest.raises(OptionError, match="known after its first call") as caught:
            early()
        assert caught.value.code == "option.parameters"


def test_gates_made_in_inference_mode_learn():
    """Parameters outlive the call that makes them."""
    fast = snncc.compile(LIF(0.5), mode="dynamic_decay")
    x = torch.randn(6, 2, 3)
    with torch.inference_mode():
        expected = fast(x)

    y = fast(x)
    y.sum().backward()

    assert torch.equal(y, expected)
    assert gate_of(fast).bias.grad is not None


def test_a_name_that_is_taken_is_left_alone():
    """A model with an attribute of that name keeps it."""
    model = Net(LIF(0.9), LIF(0.9))
    model.dynamic_decay = nn.Linear(2, 2)
    fast = snncc.compile(model, example_inputs=(torch.rand(5, 2, 3),), mode="dynamic_decay")

    assert fast.dynamic_decay is model.dynamic_decay
    assert "dynamic_decay_.neuron1.weight" in fast.state_dict()


def delayed(x):
    """The reset of a spike acts one step later."""
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        reset = ATan()(v - 1.0).detach()
        v = 0.9 * v + x[t] - reset
        out.append(ATan()(v - 1.0))
    return torch.stack(out)


def counted(x):
    """Spikes are summed in the loop, and the last potential is returned."""
    v = total = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        h = v + (x[t] - v) / 2.0
        s = ATan()(h - 0.25)
        v = h - 0.25 * s
        total = total + s
    return total, v


def test_other_spellings():
    """A delayed reset is dropped as well; sums of spikes go on, and state is that of the neuron."""
    torch.manual_seed(0)
    x = torch.randn(25, 3, 4)
    free = LIF(0.9, reset="none")(x)
    total, v = snncc.compile(counted, mode="dynamic_decay")(x)
    h, count = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for x_t in x:
        h = 0.5 * h + x_t / 2.0
        count += (h >= 0.25).float()

    assert torch.equal(snncc.compile(delayed, mode="dynamic_decay")(x), free)
    assert torch.equal(total, count)
    torch.testing.assert_close(v, h)


def recurrent(x):
    w, v = torch.full((3, 3), 0.1), torch.zeros_like(x[0])
    s, out = torch.zeros_like(v), []
    for t in range(x.shape[0]):
        h = 0.9 * v + x[t] + s @ w
        s = ATan()(h - 1.0)
        v = h - s
        out.append(s)
    return torch.stack(out)


def carried(x, v):
    out = []
    for t in range(x.shape[0]):
        h = 0.9 * v + x[t]
        s = ATan()(h - 1.0)
        v = h - s
        out.append(s)
    return torch.stack(out), v


def by_pixel(x):
    v, out = torch.zeros_like(x[0]), []
    decay = torch.linspace(0.1, 0.9, 4)
    for t in range(x.shape[0]):
        h = decay * v + x[t]
        s = ATan()(h - 1.0)
        v = h - s
        out.append(s)
    return torch.stack(out)


def signs(x):
    """A spike without a comparison is one all the same."""
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = 0.5 * v + x[t]
        s = (torch.sign(h - 1.0) + 1.0) / 2.0
        v = h - s
        out.append(s)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("model", "shapes", "reason"),
    [
        (IF(), [(6, 2, 3)], "forgets nothing"),
        (LIF(1.5), [(6, 2, 3)], "not between 0 and 1"),
        (CubaLIF(), [(6, 2, 3)], "a state beside its membrane"),
        (AdaptiveLIF(), [(6, 2, 3)], "a state beside its membrane"),
        (HDLIF(6), [(6, 2, 3)], "does not spike with one height"),
        (DynamicDecay(3), [(6, 2, 3)], "a state beside its membrane"),
        (SlidingPSN(2), [(6, 2, 3)], "not one membrane"),
        (LI(0.9), [(6, 2, 3)], "no spiking neuron"),
        (signs, [(6, 2, 3)], "not one membrane"),
        (LIF(0.9), [(6, 3)], "no axis of channels"),
        (by_pixel, [(6, 2, 3, 4)], "differs within a channel"),
        (recurrent, [(6, 2, 3)], "a state stays outside of neurons"),
        (carried, [(6, 2, 3), (2, 3)], "without its last inputs"),
    ],
)
def test_other_neurons_are_refused(model, shapes, reason):
    """What a dynamic decay cannot stand for is refused with its line, never left as it is."""
    with pytest.raises(FormError) as caught:
        snncc.compile(model, mode="dynamic_decay", fallback="serial")(*map(torch.rand, shapes))
    assert caught.value.code == "form.dynamic-decay"
    assert reason in str(caught.value)
    assert (caught.value.location is None) == (reason == "no spiking neuron")


def test_neurons_may_not_change_later():
    """Another program with other neurons would bring parameters that nobody trains."""

    class Switching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = LIF(0.9), LIF(0.5)

        def forward(self, x):
            s = self.first(x)
            return s if self.training else self.second(s.flip(2))

    fast = snncc.compile(Switching(), example_inputs=(torch.rand(6, 2, 3),), mode="dynamic_decay")
    with pytest.raises(FormError, match="differ from those of the first call"):
        fast.eval()(torch.rand(6, 2, 3))


def test_no_part_of_the_compiler_takes_it_for_the_original():
    """`verify` refuses, and so does a compilation around it; the plan says what it is."""
    torch.manual_seed(0)
    x = torch.randn(12, 1, 3)
    model = Net(LIF(0.9), LIF(0.7, v_threshold=0.25))
    fast = perturbed(snncc.compile(model, example_inputs=(x,), mode="dynamic_decay"))

    with pytest.raises(EquivalenceError, match="other neurons"):
        snncc.verify(model, fast, x)
    with pytest.raises(FormError, match="part of a model"):
        snncc.compile(nn.Sequential(fast, nn.Linear(4, 2)))(x)
    assert "stands for the LIF" in str(fast)
    assert "dynamic decay" in str(snncc.explain(fast, x))


def test_exported_library_is_what_was_trained(tmp_path):
    """The library and its test vector are those of the dynamic decays."""
    torch.manual_seed(0)
    x = torch.randn(12, 1, 3)
    fast = snncc.compile(Net(LIF(0.9), LIF(0.7)), example_inputs=(x,), mode="dynamic_decay")
    snncc.export(perturbed(fast), tmp_path / "net", example_inputs=(x,))

    assert snncc.verify_bundle(tmp_path / "net").ok


@pytest.mark.parametrize("options", [{"kernel_size": 0}, {"tau": 0.0}, {"kernel_size": 2.0}])
def test_impossible_options_are_refused(options):
    """Sizes and the exponent are positive."""
    with pytest.raises(OptionError) as caught:
        snncc.compile(LIF(0.9), mode="dynamic_decay", **options)
    assert caught.value.code == "option.dynamic-decay"
