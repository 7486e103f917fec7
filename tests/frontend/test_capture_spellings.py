"""One canonical operator for each meaning, however the user spells it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from snncc.frontend.operators.meaning import meaning_of
from tests.frontend.recordings import check, names, node, randn

Function = Callable[[Tensor, Tensor], Tensor]


def in_place(method: str, *args: object) -> Function:
    return lambda x, y: getattr(x.clone(), method)(*(y if a == "y" else a for a in args))


def augmented(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda x, y: function(x.clone(), y)


SPELLINGS: dict[str, list[Function]] = {
    "add": [
        lambda x, y: x + y,
        lambda x, y: x.add(y),
        lambda x, y: torch.add(x, y),
        lambda x, y: torch.add(input=x, other=y),
        lambda x, y: 2 + x,
        lambda x, y: torch.Tensor.add(x, y),
        augmented(operator.iadd),
        in_place("add_", "y"),
        lambda x, y: x.add(y, alpha=2),
        lambda x, y: torch.add(x.detach(), y.detach(), out=torch.empty(4, 4)),
    ],
    "sub": [
        lambda x, y: x - y,
        lambda x, y: 1 - x,
        lambda x, y: torch.subtract(x, y),
        lambda x, y: torch.rsub(x, y),
        augmented(operator.isub),
        lambda x, y: x.sub(y, alpha=0.5),
    ],
    "mul": [lambda x, y: x * y, lambda x, y: 0.5 * x, lambda x, y: x.multiply(y),
            augmented(operator.imul), in_place("mul_", 0.5)],
    "div": [
        lambda x, y: x / y,
        lambda x, y: torch.true_divide(x, y),
        lambda x, y: x.detach() // y.detach(),
        lambda x, y: 3 // y.detach(),
        augmented(operator.itruediv),
    ],
    "neg": [lambda x, y: -x, lambda x, y: torch.negative(x), in_place("neg_")],
    "pow": [lambda x, y: x**2, lambda x, y: 2**x, lambda x, y: torch.pow(x, 3)],
    "remainder": [lambda x, y: x % 0.7, lambda x, y: 3 % y.detach(), in_place("remainder_", 0.5)],
    "maximum": [lambda x, y: torch.max(x, y), lambda x, y: x.maximum(y), lambda x, y: x.max(y)],
    "minimum": [lambda x, y: torch.min(x, other=y)],
    "clamp": [
        lambda x, y: x.clamp(-1, 1),
        lambda x, y: x.clamp(max=0.5),
        lambda x, y: x.clamp_min(0.0),
        lambda x, y: torch.clip(x, min=0.1),
        in_place("clamp_", -0.5, 0.5),
    ],
    "relu": [lambda x, y: F.relu(x), lambda x, y: x.relu(), lambda x, y: nn.ReLU()(x),
             lambda x, y: F.relu(x.clone(), inplace=True), in_place("relu_")],
    "sigmoid": [lambda x, y: x.sigmoid(), lambda x, y: F.sigmoid(x),
                lambda x, y: torch.special.expit(x), lambda x, y: nn.Sigmoid()(x),
                in_place("sigmoid_")],
    "tanh": [lambda x, y: F.tanh(x), lambda x, y: nn.Tanh()(x)],
    "abs": [lambda x, y: abs(x), lambda x, y: torch.absolute(x)],
    "where": [
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: x.where(x > 0, y),
        lambda x, y: x.masked_fill(x > 0, 0.5),
        in_place("masked_fill_", torch.eye(4, dtype=torch.bool), 2.0),
    ],
    "matmul": [lambda x, y: x @ y, lambda x, y: torch.mm(x, y), lambda x, y: x.matmul(y)],
    "gt": [lambda x, y: (x > y), lambda x, y: x.gt(y), lambda x, y: operator.lt(0.3, x),
           lambda x, y: torch.greater(x, y)],
    "ge": [lambda x, y: x >= 0.1, lambda x, y: torch.greater_equal(x, y)],
    "eq": [lambda x, y: x == y, lambda x, y: x.eq(0)],
    "ne": [lambda x, y: x != y, lambda x, y: torch.not_equal(x, 0)],
    "logical_and": [lambda x, y: (x > 0) & (y > 0), lambda x, y: (x > 0).logical_and(y > 0)],
    "logical_or": [lambda x, y: (x > 0) | (y > 0)],
    "logical_xor": [lambda x, y: (x > 0) ^ (y > 0)],
    "logical_not": [lambda x, y: ~(x > 0), lambda x, y: torch.logical_not(x > 0)],
    "cast": [
        lambda x, y: x.double(),
        lambda x, y: x.to(torch.float64),
        lambda x, y: x.type(torch.float64),
        lambda x, y: x.to(y.double()),
        lambda x, y: (x > 0).float(),
        lambda x, y: (x > 0).type_as(x),
        in_place("gt_", 0.0),
    ],
    "detach": [lambda x, y: x.detach(), lambda x, y: x.data, in_place("detach_")],
    "reshape": [
        lambda x, y: x.view(2, 8),
        lambda x, y: x.view(-1),
        lambda x, y: x.reshape((8, 2)),
        lambda x, y: x.view_as(y),
        lambda x, y: x.reshape_as(y),
        lambda x, y: x.ravel(),
    ],
    "transpose": [lambda x, y: x.t(), lambda x, y: x.T, lambda x, y: x.mT,
                  lambda x, y: x.transpose(-1, 0), lambda x, y: torch.swapaxes(x, 0, 1)],
    "permute": [lambda x, y: x.permute(1, 0), lambda x, y: x.permute((1, -2)),
                lambda x, y: x.movedim(0, 1)],
    "expand": [lambda x, y: x.expand(2, 4, 4), lambda x, y: x[0].expand_as(y),
               lambda x, y: torch.broadcast_to(x, (3, 4, 4))],
    "select": [
        lambda x, y: x[1],
        lambda x, y: x[:, 2],
        lambda x, y: x[..., -1],
        lambda x, y: x.select(1, 0),
        lambda x, y: x.unbind(0)[3],
    ],
    "sum": [lambda x, y: x.sum(), lambda x, y: x.sum(-1), lambda x, y: torch.sum(x, dim=(0, 1))],
    "mean": [lambda x, y: x.mean(dim=0, keepdim=True)],
    "softmax": [lambda x, y: F.softmax(x, dim=-1), lambda x, y: nn.Softmax(dim=1)(x)],
    "stack": [lambda x, y: torch.stack([x, y]), lambda x, y: torch.stack((x, y), dim=-1)],
    "cat": [lambda x, y: torch.cat([x, y], -1), lambda x, y: torch.concatenate([x, y])],
    "linear": [lambda x, y: F.linear(x, y)],
    "conv1d": [lambda x, y: F.conv1d(x[None], y[:, :, None], padding=1)],
    "max_pool1d": [lambda x, y: F.max_pool1d(x[None], 2)],
    "batch_norm": [lambda x, y: F.batch_norm(x, None, None, training=True)],
    "rand": [lambda x, y: torch.rand(4, 4), lambda x, y: torch.rand((x.shape[0], 2))],
    "draw": [lambda x, y: torch.rand_like(x), in_place("uniform_", 0, 2), in_place("normal_")],
    "einsum": [lambda x, y: torch.einsum("ij,kj->ik", x, y)],
    "lerp": [lambda x, y: x.lerp(y, 0.25), in_place("lerp_", "y", 0.5)],
    "norm": [lambda x, y: x.norm()],
    "argmax": [lambda x, y: x.argmax(1)],
    "leaky_relu": [lambda x, y: F.leaky_relu(x, 0.2)],
    "full": [lambda x, y: torch.zeros(4, 4), lambda x, y: torch.ones(x.shape), lambda x, y:
             x.new_zeros(2), lambda x, y: torch.full((2,), 0.5), lambda x, y: torch.tensor(0.5),
             lambda x, y: torch.as_tensor([1.0, 1.0])],
    "full_like": [lambda x, y: torch.zeros_like(x), lambda x, y: torch.ones_like(x), in_place(
        "zero_"), in_place("fill_", 3), lambda x, y: torch.full_like(x, 2)],
    "arange": [lambda x, y: torch.arange(4), lambda x, y: torch.arange(x.shape[0])],
}  # fmt: skip
CASES = [(name, n, f) for name, functions in SPELLINGS.items() for n, f in enumerate(functions)]


@pytest.mark.parametrize(
    ("name", "function"), [(n, f) for n, _, f in CASES], ids=[f"{n}-{i}" for n, i, _ in CASES]
)
def test_spelling_has_one_canonical_operator(name: str, function: Function) -> None:
    """Each spelling is recorded as the same operator, and computes the same."""
    tape = check(function, randn(4, 4), randn(4, 4, seed=1))

    last = node(tape, tape.graph.output_node().args[0][0].name)
    assert name == last.target.__name__


def test_dims_are_not_negative() -> None:
    """Dims count from the front, indices stay as they were written."""
    tape = check(lambda x: x.sum(-1)[..., -2].unsqueeze(-1).transpose(-1, -2), randn(2, 3, 4))

    assert [n.args[1:] for n in tape.graph.nodes if n.op == "call_function"] == [
        (2, False),
        (1, -2),
        (1,),
        (1, 0),
    ]


def test_defaults_are_filled_in() -> None:
    """A layer is recorded with all its arguments, by position."""
    tape = check(lambda x, w: F.conv2d(x, w, padding=1), randn(1, 2, 4, 4), randn(3, 2, 3, 3))

    assert node(tape, "conv2d").args[2:] == (None, 1, 1, 1, 1)


def test_functional_layer_is_one_node() -> None:
    """What a function of torch.nn.functional calls inside is not recorded."""
    tape = check(lambda x: F.layer_norm(x, (4,)), randn(2, 4))

    assert names(tape) == ["layer_norm"]


def test_max_over_a_dim_gives_elements_of_a_tuple() -> None:
    """A function with several results is followed by one node for each that is used."""
    tape = check(lambda x: x.max(dim=1)[0] + x.max(-1).indices, randn(3, 4))

    assert names(tape) == ["max", "getitem", "max", "getitem", "add"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.chunk(2, -1)[1],
        lambda x: x.split([1, 3], dim=1)[1],
        lambda x: x.split(2)[0],
        lambda x: x.split(1)[1],
        lambda x: x[1:3, None, ::2],
        lambda x: x[0, 1],
        lambda x: x[:, [0, 2]],
        lambda x: x[x > 0].sum(),
        lambda x: x[torch.tensor([1, 0])],
        lambda x: torch.stack(list(x)),
        lambda x: sum(row * n for n, row in enumerate(x)),
        lambda x: x.unflatten(0, (2, 2)).flatten(1).squeeze().repeat(2, 1).flip(0),
        lambda x: torch.cumsum(x, -1) + x.roll(1, 0) + x.tril() + x.diagonal().sum(),
        lambda x: torch.addcmul(x, x, x, value=0.5) + torch.outer(x[0], x[1]),
        lambda x: x.double().float().half().float() + x.to(torch.int64),
        lambda x: (x * 3).round() + x.floor() + x.trunc() + torch.sign(x).square(),
        lambda x: F.pad(x, (1, 1)) + F.normalize(x, dim=0).sum() + F.softplus(x).sum(),
        lambda x: F.avg_pool2d(x[None, None], 2) + F.adaptive_avg_pool2d(x[None, None], 1),
        lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2, 3])),
        lambda x: torch.broadcast_tensors(x, x[0])[1] * 2,
        lambda x: torch.atleast_3d(x).mean((0, 1)) + torch.logsumexp(x, 0).sum(),
    ],
)
def test_other_operators_mean_what_they_do(function: Callable[[Tensor], Tensor]) -> None:
    """Operators that share no table line are recorded so that they replay."""
    check(function, randn(4, 4), gradient_error=1e-6)


@pytest.mark.parametrize(
    ("device", "dtype", "divisor", "expected"),
    [
        ("cuda", torch.float32, 3.0, (torch.mul, 0.3333333432674408)),
        ("cuda", torch.bfloat16, 3, (torch.mul, 0.3333333432674408)),
        ("cuda", torch.float64, -3.0, (torch.mul, -1.0 / 3.0)),
        ("cuda", torch.float32, 0.0, (torch.mul, math.inf)),
        ("cuda", torch.float32, 2.0**-130, (torch.mul, math.inf)),
        ("cuda", torch.float32, 0.25, (torch.div, 0.25)),
        ("cuda", torch.complex64, 3.0, (torch.div, 3.0)),
        ("cpu", torch.float32, 3.0, (torch.div, 3.0)),
    ],
)
def test_division_by_a_number(device: str, dtype: torch.dtype, divisor: float, expected) -> None:
    """A GPU multiplies by the reciprocal, rounded to the type in which it computes."""
    with FakeTensorMode():
        x = torch.empty(2, dtype=dtype, device=device)
        call = meaning_of("__truediv__", torch.Tensor.__truediv__)((x, divisor), {})

    assert (call.target, call.args[1]) == expected
