"""Kernels for GPUs, in an interpreter or on the CPU: bitwise equality with eager PyTorch."""

import math
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from snncc.errors import LaunchError, TargetError
from snncc.ir import interpret
from snncc.ir.nodes import (
    Binary,
    Const,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    Select,
    State,
    Unary,
    Var,
)
from snncc.ir.program import NeuronProgram, Place
from snncc.passes.gradients.differentiate import differentiate
from snncc.passes.gradients.plan_storage import plan_storage
from snncc.runtime.operators import Neuron
from tests.neuron_programs import eager_lif, lif
from tests.runtime.test_neuron import LAYOUTS, STORAGES, compare, make_neuron

pytestmark = [
    # Triton 3.6 turns arrays of one element into numbers in a way that NumPy deprecates.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 4, 33), (9,), (2, 1500), (37, 3, 50)], ids=str)
def test_equals_eager(shape, storage, dtype, target):
    """Every storage gives the results of eager PyTorch: one program and several, T over a chunk."""
    x, v0 = torch.rand(shape, dtype=dtype) * 1.5, torch.rand(shape[1:], dtype=dtype)

    compare(make_neuron(storage, target=target), x, v0)


@pytest.mark.parametrize("storage", ["scratch", "bits"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, storage, target):
    """Inputs may lie in memory in any way."""
    x = LAYOUTS[layout](6, 5, 40)

    compare(make_neuron(storage, target=target), x, torch.rand(5, 40))


@pytest.mark.parametrize("layout", ["batch-first", "gaps", "rows-with-gaps", "every-second-step"])
def test_inputs_are_read_where_they_lie(layout, monkeypatch, target):
    """No input is copied unless its lanes lie a sector of memory apart."""
    monkeypatch.setattr("snncc.runtime.gpu.calls.densify_steps", None)
    x = LAYOUTS[layout](6, 5, 40)

    compare(make_neuron(target=target), x, torch.rand(40))


@pytest.mark.parametrize("v0", [(), (40,), (5, 1), (1, 40), (5, 40)], ids=str)
@pytest.mark.parametrize("storage", ["scratch", "bits"])
def test_broadcast_parameters(v0, storage, target):
    """Lane inputs broadcast from the right; their gradients are sums over lanes."""
    compare(make_neuron(storage, target=target), torch.rand(6, 5, 40), torch.rand(v0))


@pytest.mark.parametrize("v0", [(), (40,), (5, 1)], ids=str)
def test_expanded_parameters(v0, target):
    """Elements that share memory have gradients of their own."""
    compare(make_neuron(target=target), torch.rand(6, 5, 40), torch.rand(v0).expand(5, 40))


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_channels(size, memory_format, target):
    """One value a channel, whether neighbouring lanes share it or not."""
    x = torch.rand(3 * 2, 8, size, size).contiguous(memory_format=memory_format)

    compare(make_neuron(target=target), x.unflatten(0, (3, 2)), torch.rand(8, 1, 1))


ROWS = {
    "innermost": ((3, 70, 64), (64,)),
    "no-power-of-two": ((2, 90, 96), (1, 96)),
    "no-divisor": ((2, 1310, 3), (3,)),
    "middle": ((1, 300, 8, 5), (8, 1)),
    "around": ((2, 70, 4, 2, 8), (4, 1, 8)),
}


@pytest.mark.parametrize("name", ROWS)
def test_sums_over_rows(name, interpreted, emulated):
    """Lanes that share an element a row apart are added up, to the same bits in both languages."""
    shape, v0 = ROWS[name]
    dtype = torch.float64 if name == "no-divisor" else torch.float32
    x, start = torch.rand(shape, dtype=dtype) * 1.5, torch.rand(v0, dtype=dtype)
    gradients = []
    for target in ("triton", "cuda"):
        neuron, leaf = make_neuron(target=target), start.clone().requires_grad_()
        compare(neuron, x, start)
        _, (v,) = neuron([x], [leaf])
        gradients += torch.autograd.grad(v.square().sum(), leaf)
        assert any(spec.gpu.tiled for spec in neuron.specs())

    assert torch.equal(*gradients)
    gradients[0].add_(leaf)  # is no view that torch refuses to change


def test_sums_beside_numbers_of_lanes(target):
    """One kernel adds up the gradients of some inputs and writes a number a lane for others."""
    p, q, v = Var("p"), Var("q"), Var("v")
    lets = (Let("h", Binary(Op.ADD, Binary(Op.MUL, p, v), Binary(Op.MUL, q, Var("x")))),)
    names = ("q", "v0", "p", "w0")
    inputs = (Input("x", Rank.STEP), *(Input(name, Rank.LANE) for name in names))
    states = (State("v", Var("v0"), "h"), State("w", Var("w0"), "h"))
    forward = Recurrence("leaky", inputs, states, lets, ("h", "w"))
    adjoint = differentiate(forward)
    program = NeuronProgram(forward, adjoint, plan_storage(forward, adjoint, Place.SCRATCH))
    x, *leaves = (torch.rand(s) for s in [(3, 5, 40), (), (5, 1), (5, 40), (5, 40)])
    wide = [leaf.double().requires_grad_() for leaf in leaves]
    (h, w), _ = Neuron(program, target=target)([x], [leaf.requires_grad_() for leaf in leaves])
    steps, before = [wide[1].expand(5, 40)], wide[3]
    for x_t in x.double():
        steps.append(wide[2] * steps[-1] + wide[0] * x_t)
    seen = torch.stack([before, *steps[1:-1]])
    gradients = torch.autograd.grad(h.sum() + w.square().sum(), leaves)
    expected = torch.autograd.grad(sum(steps[1:]).sum() + seen.square().sum(), wide)

    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-5)


def test_parameter_gradients_are_deterministic(target):
    """Equal calls give equal bits."""
    x, v0 = torch.rand(5, 3000), torch.rand((), requires_grad=True)
    gradients = []
    for _ in range(2):
        _, (v,) = make_neuron(target=target)([x], [v0])
        gradients += torch.autograd.grad(v.sum(), v0)

    assert torch.equal(*gradients)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("storage", ["scratch", "bits"])
def test_empty(shape, storage, target):
    """No steps leave the initial state; no lanes leave nothing."""
    x = torch.rand(shape, requires_grad=True)
    v0 = torch.rand(shape[1:], requires_grad=True)
    (s,), (v,) = make_neuron(storage, target=target)([x], [v0])
    (s.sum() + v.sum()).backward()

    assert s.shape == shape
    assert torch.equal(v, v0)
    assert torch.equal(x.grad, torch.zeros(shape))
    assert torch.equal(v0.grad, torch.ones(shape[1:]))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_special_numbers(target):
    """NaN and infinity behave as in eager PyTorch."""
    x = torch.tensor([0.5, math.inf, -math.inf, math.nan, 1.0]).repeat(4, 20)
    (s,), (v,) = make_neuron(target=target)([x], [torch.zeros(())])
    s_ref, v_ref = eager_lif(x, torch.zeros(()))

    assert torch.equal(s, s_ref)
    torch.testing.assert_close(v, v_ref.expand(100), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("storage", STORAGES)
def test_half_inputs_have_a_state_in_float32(storage, dtype, target):
    """Half types are what is read and written; in between the numbers are those of float32."""
    x = (torch.rand(19, 3, 40) * 1.5).to(dtype).requires_grad_()
    v0 = torch.rand(40).to(dtype).requires_grad_()
    (s,), (v,) = make_neuron(storage, target=target)([x], [v0])
    wide = [leaf.detach().float().requires_grad_() for leaf in (x, v0)]
    s_ref, v_ref = eager_lif(*wide)
    seeds = torch.rand(19, 3, 40).to(dtype), torch.rand(3, 40).to(dtype)
    gradients = torch.autograd.grad((s, v), (x, v0), seeds)
    expected = torch.autograd.grad((s_ref, v_ref), wide, [seed.float() for seed in seeds])

    assert s.dtype == v.dtype == gradients[0].dtype == gradients[1].dtype == dtype
    assert torch.equal(s.float(), s_ref)
    pairs = [(v, v_ref), (gradients[0], expected[0])]
    # Triton's interpreter cuts bfloat16 off where a GPU rounds to the nearest.
    eps = torch.finfo(dtype).eps if dtype is torch.bfloat16 else 0.0
    for actual, reference in pairs:
        torch.testing.assert_close(actual, reference.to(dtype), rtol=eps, atol=0)
    # The sum over the batch is rounded once more, to the half type.
    assert torch.allclose(gradients[1].float(), expected[1], rtol=torch.finfo(dtype).eps)


def test_mixed_types(target):
    """A half input with a float32 parameter computes in float32, as torch promotes it."""
    x, v0 = torch.rand(5, 3, 40).half(), torch.rand(40)
    (s,), (v,) = make_neuron(target=target)([x], [v0])
    s_ref, v_ref = eager_lif(x, v0)

    assert s.dtype == v.dtype == torch.float32
    assert torch.equal(s, s_ref)
    assert torch.equal(v, v_ref)


EXACT = ("low", "other", "back", "whole", "sum", "x")


def curves():
    """Return a recurrence with every operation that needs care in Triton."""
    x, v = Var("x"), Var("v")
    lets = [
        Let("double", Unary(Op.EXP, Unary(Op.NEG, x))),
        Let("float", Unary(Op.SIGMOID, Var("double"))),
        Let("tl", Binary(Op.SUB, x, Binary(Op.SUB, v, Binary(Op.MUL, x, Const(-2.0))))),
        Let("low", Binary(Op.LT, x, Const(float("inf")))),
        Let("high", Binary(Op.GE, v, Const(float("nan")))),
        Let(
            "both",
            Binary(Op.AND, Unary(Op.NOT, Var("low")), Binary(Op.OR, Var("high"), Const(True))),
        ),
        Let("other", Binary(Op.XOR, Binary(Op.EQ, x, v), Var("both"))),
        Let("picked", Select(Var("other"), Unary(Op.TANH, x), Unary(Op.SQRT, Unary(Op.ABS, v)))),
        Let("flat", Select(Var("other"), Const(0.1), Const(1e-40))),
        Let("thirds", Binary(Op.DIV, Const(1.0), Const(3.0))),
        Let("negative", Unary(Op.NEG, Binary(Op.MUL, x, Const(0.0)))),
        Let("back", Binary(Op.DIV, Const(1.0), Var("negative"))),
        Let("whole", Binary(Op.SUB, Unary(Op.ROUND, x), Unary(Op.FLOOR, v))),
        Let("wave", Binary(Op.ADD, Unary(Op.SIN, x), Unary(Op.COS, v))),
        Let("τ", Binary(Op.POW, Unary(Op.ABS, x), Const(1.5))),
        Let("n", Binary(Op.MIN, Var("picked"), Binary(Op.MAX, Var("τ"), Unary(Op.SIGN, x)))),
        Let("log", Unary(Op.LOG, Binary(Op.ADD, Unary(Op.ABS, x), Unary(Op.CEIL, v)))),
        Let("small", Binary(Op.ADD, Unary(Op.EXPM1, x), Unary(Op.LOG1P, Unary(Op.ABS, v)))),
        Let("sum", Binary(Op.ADD, Binary(Op.MUL, Const(0.1), Var("flat")), Var("thirds"))),
        Let("next", Binary(Op.MUL, Binary(Op.ADD, Var("n"), Var("tl")), Const(0.25))),
        Let("one", Const(1.0)),
    ]
    return Recurrence(
        name="curves",
        inputs=(Input("x", Rank.STEP), Input("p", Rank.LANE)),
        states=(
            State("v", Const(-0.5), "next"),
            State("w", Var("p"), "v"),
            State("u", Const(0.0), "one"),
        ),
        lets=tuple(lets),
        outputs=(*EXACT, "n", "wave", "τ", "log", "float", "small"),
        finals=("v", "w", "u"),
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_operation(dtype, target):
    """Each operation gives what torch gives, whatever the user's names are."""
    recurrence = curves()
    x = torch.tensor([0.5, 1.5, -2.5, -0.3, 0.0, 7.0], dtype=dtype).repeat(5, 3)
    p = torch.rand(18, dtype=dtype)
    outputs, finals = Neuron(NeuronProgram(recurrence), target=target)([x], [p])
    expected = interpret.run(recurrence, {"x": x, "p": p})
    names = (*recurrence.outputs, *recurrence.finals)

    # Torch's own maths functions differ in the last place between a vector and a single number.
    eps = 4 * torch.finfo(dtype).eps
    for name, value in zip(names, [*outputs, *finals], strict=True):
        exact = name in EXACT
        torch.testing.assert_close(
            value,
            expected[name],
            rtol=0 if exact else eps,
            atol=0 if exact else eps,
            equal_nan=True,
        )


def test_cpu_tensors_need_the_interpreter(interpreted, monkeypatch):
    """Without the interpreter a Triton kernel is refused on the CPU."""
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(TargetError, match="cannot run on the CPU") as error:
        make_neuron(target="triton")([torch.ones(3, 4)], [torch.ones(4)])

    assert error.value.code == "target.triton-on-cpu"


def test_missing_triton(monkeypatch):
    """Where Triton is not installed the error says so."""

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(TargetError, match="Triton is not installed") as error:
        make_neuron(target="triton")([torch.ones(3, 4)], [torch.ones(4)])

    assert error.value.code == "target.no-triton"


def test_old_triton(monkeypatch):
    """A Triton that flushes quotients to zero is refused."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.5.1")
    with pytest.raises(TargetError, match=r"Triton 3\.5\.1 is too old") as error:
        make_neuron(target="triton")([torch.ones(3, 4)], [torch.ones(4)])

    assert error.value.code == "target.triton-version"


@pytest.mark.parametrize(
    ("x", "v0", "text", "code"),
    [
        (torch.ones(3, 4, dtype=torch.int64), torch.ones(4), "'x' is int64", "launch.dtype"),
        (torch.ones(3, 4), torch.ones(4, device="meta"), "on cpu and meta", "launch.device"),
        (torch.ones(()), torch.ones(4), "'x' has no time axis", "launch.rank"),
        (torch.ones(3, 4), torch.ones(5), "lanes \\[5\\]", "launch.sizes"),
    ],
    ids=["dtype", "device", "rank", "sizes"],
)
def test_arguments_are_checked(x, v0, text, code, target):
    """A message names the argument and both values."""
    with pytest.raises(LaunchError, match=text) as error:
        make_neuron(target=target)([x], [v0])

    assert error.value.code == code


def test_new_sizes_need_no_new_kernel(target):
    """Lengths, batches and lane counts are run-time numbers."""
    neuron = Neuron(lif(Place.MEMORY, saved=("h",)), target=target)
    for shape in [(4, 8), (5, 3, 7), (33, 2, 1000)]:
        x = torch.rand(shape, requires_grad=True)
        (s,), _ = neuron([x], [torch.zeros(())])
        s.sum().backward()

    assert len(neuron.specs()) == 2
