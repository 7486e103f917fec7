"""Every operator that ONNX models are made of computes what torch computes."""

from __future__ import annotations

import math

import numpy
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from torch import nn

import snncc
from snncc.errors import UnsupportedError
from snncc.export.onnx.expressions import Lanes, Term
from snncc.export.onnx.graph import OPERATORS, TYPES, GraphWriter
from snncc.ir import interpret
from snncc.ir.nodes import COMPARISONS, LOGICAL, Binary, Const, Expr, Op, Select, Unary, Var
from tests.export.networks import SPIKE
from tests.export.test_onnx import exported, run_sequence, run_steps, session_of

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.0, 1e-8, -1e-8, 1e-30, 20.0, -20.0, 88.0]
VALUES = torch.tensor([*SPECIAL, math.inf, -math.inf, math.nan, 0.999999, 1.000001, 1e30, -3.7])


def evaluated(expr: Expr, dtype: torch.dtype = torch.float32) -> numpy.ndarray:
    """Run an expression of x and y, over all pairs of values, by onnxruntime."""
    graph = GraphWriter()
    shape = (len(VALUES), len(VALUES))
    terms = {n: Term(graph.fresh(n), (shape,)) for n in "xy"}
    result = Lanes(graph, dtype, terms, 1).write(expr)
    kind = torch.bool if result.is_bool else dtype
    nodes = graph.finish([result.name])
    values = [helper.make_tensor_value_info(n, TYPES[dtype], shape) for n in "xy"]
    out = helper.make_tensor_value_info(result.name, TYPES[kind], None)
    body = helper.make_graph(nodes, "one", values, [out], list(graph.constants.values()))
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x, y = (v.to(dtype).numpy() for v in torch.meshgrid(VALUES, VALUES, indexing="ij"))
    return session.run(None, {v.name: {"x": x, "y": y}[v.name] for v in session.get_inputs()})[0]


def reference(expr: Expr, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Evaluate an expression by the reference interpreter."""
    x, y = (v.to(dtype) for v in torch.meshgrid(VALUES, VALUES, indexing="ij"))
    return interpret.evaluate(expr, {"x": x, "y": y}, x).expand(x.shape)


X, Y = Var("x"), Var("y")
UNARY = [op for op in interpret.UNARY if op is not Op.NOT]
BINARY = [op for op in interpret.BINARY if op not in LOGICAL]
# Operations that round once; the others are libraries' functions.
EXACT = {
    *(Op.NEG, Op.ABS, Op.FLOOR, Op.CEIL, Op.ROUND, Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MIN, Op.MAX)
} | COMPARISONS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", [*UNARY, *BINARY], ids=lambda op: op.value)
def test_operation_is_that_of_torch(op, dtype):
    """Each scalar operation agrees on all pairs of special values, NaN and infinities included."""
    expr = Unary(op, X) if op in UNARY else Binary(op, X, Y)
    found, expected = torch.from_numpy(evaluated(expr, dtype)), reference(expr, dtype)

    assert found.dtype is expected.dtype
    if op in EXACT:
        assert torch.equal(torch.nan_to_num(found.float()), torch.nan_to_num(expected.float()))
        assert torch.equal(found.isnan(), expected.isnan())
    elif op is Op.SIGN:  # torch gives 0 for the sign of NaN
        assert torch.equal(found[~X_IS_NAN], expected[~X_IS_NAN])
    else:
        bound = 1e-5 if dtype is torch.float32 else 1e-13
        least = 1e-8 if op is Op.SIGMOID else 0  # far below zero onnxruntime says 0
        torch.testing.assert_close(found, expected, rtol=bound, atol=least, equal_nan=True)


X_IS_NAN = torch.meshgrid(VALUES, VALUES, indexing="ij")[0].isnan()


@pytest.mark.parametrize("op", [Op.AND, Op.OR, Op.XOR, Op.EQ, Op.NE], ids=lambda op: op.value)
def test_operation_of_bools_is_that_of_torch(op):
    """Bools are combined as bools; a select of them is one."""
    a, b = Binary(Op.GT, X, Const(0.5)), Unary(Op.NOT, Binary(Op.LE, Y, X))
    expr = Select(Binary(op, a, b), Binary(Op.LT, X, Y), Const(True))

    assert numpy.array_equal(evaluated(expr), reference(expr).numpy())


class Around(nn.Module):
    """An operator before and after a neuron, applied to each step."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        out, v = [], 0.0
        for t in range(x.shape[0]):
            y = self.function(x[t])
            v = 0.5 * v + y
            s = SPIKE(v - 0.25)
            v = v - s
            out.append(torch.cat([s, v], 1))
        return torch.stack(out)


def norm(kind, *args, **options):
    """Return a norm with random statistics and affine parameters, in evaluation mode."""
    torch.manual_seed(2)
    made = kind(*args, **options).eval()
    for tensor in [*made.parameters(), *made.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 2.0)
    return made


FLAT, LINE, PLANE = (5, 2, 6), (5, 2, 2, 9), (5, 2, 2, 7, 9)
LAYERS = {
    "linear": (FLAT, nn.Linear(6, 4)),
    "linear without bias": (FLAT, nn.Linear(6, 4, bias=False)),
    "linear of rows": (LINE, nn.Linear(9, 3)),
    "conv1d": (LINE, nn.Conv1d(2, 4, 3, stride=2, padding=1)),
    "conv1d same": (LINE, nn.Conv1d(2, 4, 4, padding="same", dilation=3)),
    "conv2d": (PLANE, nn.Conv2d(2, 4, (3, 2), 2, (1, 2), (2, 1), groups=2)),
    "conv2d valid": (PLANE, nn.Conv2d(2, 4, 3, padding="valid", bias=False)),
    "conv3d": ((4, 2, 2, 5, 4, 5), nn.Conv3d(2, 3, (3, 2, 3), padding=1)),
    "max pool": (PLANE, lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max pool, dilated": (PLANE, lambda x: F.max_pool2d(x, 2, 1, 0, 2)),
    "max pool, rounded up": (PLANE, lambda x: F.max_pool2d(x, (2, 3), ceil_mode=True)),
    "max pool 1d": (LINE, lambda x: F.max_pool1d(x, 2)),
    "mean pool": (PLANE, lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "mean pool, uncounted": (PLANE, lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "mean pool, rounded up": (PLANE, lambda x: F.avg_pool2d(x, 2, ceil_mode=True)),
    "mean pool, both": (
        PLANE,
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    ),
    "mean pool 1d": (LINE, lambda x: F.avg_pool1d(x, 2)),
    "adaptive mean": (PLANE, lambda x: F.adaptive_avg_pool2d(x, (3, 1))),
    "adaptive mean 1d": (LINE, lambda x: F.adaptive_avg_pool1d(x, 4)),
    "adaptive mean, larger": (PLANE, lambda x: F.adaptive_avg_pool2d(x, (9, 18))),
    "adaptive max": (PLANE, lambda x: F.adaptive_max_pool2d(x, (3, 4))),
    "batch norm": (PLANE, norm(nn.BatchNorm2d, 2)),
    "batch norm, plain": (PLANE, norm(nn.BatchNorm2d, 2, affine=False)),
    "batch norm of features": (FLAT, norm(nn.BatchNorm1d, 6)),
    "layer norm": (LINE, norm(nn.LayerNorm, 9)),
    "layer norm, plain": (LINE, norm(nn.LayerNorm, (2, 9), elementwise_affine=False)),
    "group norm": ((5, 2, 4, 3, 5), norm(nn.GroupNorm, 2, 4)),
    "instance norm": (PLANE, norm(nn.InstanceNorm2d, 2, affine=True)),
    "instance norm, running": (LINE, norm(nn.InstanceNorm1d, 2, track_running_stats=True)),
    "gelu": (LINE, lambda x: F.gelu(x) + F.gelu(x, approximate="tanh")),
    "einsum": (LINE, lambda x: torch.einsum("bcn, bdn -> bcd", x, x)),
    "cumulative sum": (LINE, lambda x: torch.cumsum(x, -1) + x.cumsum(1)),
    "softmax": (LINE, lambda x: torch.softmax(x, -1)),
    "log softmax": (LINE, lambda x: torch.log_softmax(x, 1)),
    "product": (LINE, lambda x: x @ x.transpose(-2, -1)),
    "sum": (PLANE, lambda x: x.sum((2, 3), keepdim=True).expand_as(x) * 0.1),
    "mean and extremes": (PLANE, lambda x: x.mean(-1) + x.amax(-1) - x.amin(-1)),
    "max over an axis": (PLANE, lambda x: x.max(-1).values + x.min(3)[0]),
    "flatten": (PLANE, lambda x: x.flatten(1)),
    "unflatten": (LINE, lambda x: x.unflatten(-1, (3, 3)).permute(0, 1, 3, 2)),
    "reshape by size": (PLANE, lambda x: x.reshape(x.shape[0], -1, x.size(3))),
    "halves": (FLAT, lambda x: torch.cat([x[:, 3:], x[:, :3], x[:, 1:6:2]], 1)),
    "stack": (FLAT, lambda x: torch.stack([x, 2 * x], 1)),
    "flip": (LINE, lambda x: x.flip((1, 2))),
    "roll": (LINE, lambda x: torch.roll(x, (1, -4, 9), (1, 2, -1)) + torch.roll(x, 0, 1)),
    "repeat": (FLAT, lambda x: x.repeat(1, 3)),
    "picked": (FLAT, lambda x: x.index_select(1, torch.tensor([5, 0, 3]))),
    "squeeze": (FLAT, lambda x: x[:, None].squeeze(1)),
    "relu and clamp": (FLAT, lambda x: torch.relu(x - 0.5) + x.clamp(0.2, 0.6)),
    "logsigmoid": (FLAT, lambda x: F.logsigmoid(8.0 * x) + torch.expm1(-x)),
    "masked": (FLAT, lambda x: torch.where(x > 0.5, x, torch.zeros_like(x))),
    "filled": (FLAT, lambda x: x + torch.ones(x.shape[0], 6)),
    "residual": (FLAT, nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_that_of_torch(tmp_path, name):
    """A layer before a neuron gives PyTorch's spikes and potentials, at other sizes too."""
    shape, function = LAYERS[name]
    torch.manual_seed(0)
    model = Around(function).eval()
    bundle = exported(tmp_path / "net", model, torch.rand(shape))
    other = torch.rand(shape[0] + 2, shape[1] + 1, *shape[2:])
    with torch.no_grad():
        expected = model(other)
    sequence, steps = run_sequence(bundle, other)[0], run_steps(bundle, other, steps=len(other))[0]

    assert bundle.manifest["dynamic"] == ["time", "batch"]
    assert snncc.verify_bundle(bundle.folder).ok
    torch.testing.assert_close(sequence, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(steps, expected, rtol=1e-5, atol=1e-6)


class Voting(nn.Module):
    """The class that has the most spikes, and where extremes are."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = snncc.nn.LIF(0.5)

    def forward(self, x):
        s = self.lif(x)
        count = s.sum(0)
        lows = torch.stack([x_t.argmin(1, keepdim=True) for x_t in x])
        return count.argmax(-1), x.max(-1)[1], lows, count.argmax()


def test_positions_of_extremes(tmp_path):
    """The first of equal elements is meant, over a batch and over time."""
    torch.manual_seed(0)
    model, x = Voting().eval(), torch.rand(6, 3, 5).mul(4).round()
    bundle = exported(tmp_path / "net", model, x)
    other = torch.rand(9, 4, 5).mul(4).round()
    with torch.no_grad():
        expected = model(other)

    assert snncc.verify_bundle(bundle.folder).ok
    for found in (run_sequence(bundle, other), run_steps(bundle, other, steps=9)):
        for y, wanted in zip(found, expected, strict=True):
            assert torch.equal(torch.as_tensor(y), wanted)


def test_rolled_batches_are_refused(tmp_path):
    """How far is not known before the size is."""
    model = Around(lambda x: torch.roll(x, 1, 0))

    with pytest.raises(UnsupportedError, match="is dynamic"):
        exported(tmp_path / "net", model, torch.rand(FLAT))


class Wired(nn.Module):
    """Two loops that feed back: one from a later layer, one with a norm inside."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 4), nn.Linear(4, 5)
        self.norm = norm(nn.LayerNorm, 4)

    def forward(self, x):
        s = torch.zeros(x.shape[1], 4)
        u, v = torch.zeros(x.shape[1], 5), torch.zeros(x.shape[1], 4)
        out, count = [], torch.zeros(x.shape[1], 4)
        for t in range(x.shape[0]):
            u = 0.75 * u + x[t] + 0.25 * self.down(s)
            r = SPIKE(u - 1.0)
            u = u - r
            v = self.norm(0.5 * v + self.up(r))
            s = SPIKE(v - 0.5)
            count = count + s
            out.append(v)
        return torch.stack(out), count


def test_feedback_between_layers(tmp_path):
    """Norms and products inside of a recurrence are inside of the scan."""
    torch.manual_seed(3)
    model = Wired().eval()
    bundle = exported(tmp_path / "net", model, torch.rand(6, 2, 5))
    x = torch.rand(11, 3, 5)
    with torch.no_grad():
        expected = model(x)

    for found in (run_sequence(bundle, x), run_steps(bundle, x, steps=11)):
        for y, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)


def test_neurons_of_the_package(tmp_path):
    """Every neuron that snncc itself offers runs as a step and as a sequence."""
    torch.manual_seed(4)
    for number, made in enumerate(NEURONS):
        model = nn.Sequential(nn.Linear(5, 8), made).eval()
        bundle = exported(tmp_path / str(number), model, torch.rand(6, 2, 5) * 2)

        assert snncc.verify_bundle(bundle.folder).ok, made


NEURONS = [
    snncc.nn.IF(),
    snncc.nn.LIF(),
    snncc.nn.CubaLIF(),
    snncc.nn.AdaptiveLIF(),
    snncc.nn.LI(),
    snncc.nn.DynamicDecay(8),
    snncc.nn.HDLIF(6),
    snncc.nn.HDLIF(6, 8, mem_bn=True),
]


def test_values_beyond_the_type_are_refused(tmp_path):
    """A mean that counts padding where windows reach beyond it has no one meaning in ONNX."""
    model = Around(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True))

    with pytest.raises(UnsupportedError, match="counts padding"):
        exported(tmp_path / "net", model, torch.rand(PLANE))


def test_allowed_operators_are_standard():
    """Every operator that a reader lets pass is one of ONNX's own."""
    for name in OPERATORS:
        assert onnx.defs.has(name, "")


def test_models_are_the_same_each_time(tmp_path):
    """Exporting twice writes the same bytes."""
    model, x = Around(nn.Linear(6, 4)), torch.rand(FLAT)
    first, second = (exported(tmp_path / n, model, x) for n in "ab")

    assert first.manifest["files"] == second.manifest["files"]
    assert session_of(first.folder / "net.onnx").get_inputs()[0].shape == ["time", "batch", 6]
