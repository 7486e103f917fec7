"""One way from torch calls to scalar expressions, for kernels, libraries and ONNX models."""

import pytest
import torch
import torch.fx

from snncc.frontend.operators.canonical import cast, full_like
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.nodes import Binary, Const, Op, Unary, Var
from snncc.ir.walk import is_bool
from snncc.passes.scalars.expressions import expression_of, literal, operands
from snncc.passes.scalars.scalar_ops import Scope

SCOPE = Scope(lambda e: is_bool(e, frozenset()))


def function(*calls, name="Fire", several=False):
    """Return a function of x whose forward graph is some calls, each on the result before."""
    graph = torch.fx.Graph()
    value = graph.placeholder("x")
    for target, args, kwargs in calls:
        value = graph.call_function(target, (value, *args), kwargs)
    graph.output((value, value) if several else value)
    return CustomGradient(name, graph, graph)


def test_functions_are_inlined():
    """Types and factors that are no operands stay what they are; functions may call functions."""
    inner = function((torch.sub, (0.5,), {"alpha": 1}), (torch.ge, (0,), {}), name="Inner")
    outer = function((inner, (), {}), (cast, (torch.float32,), {}))
    filled = function((full_like, (2.0,), {"dtype": torch.float64}))
    fires = Binary(Op.GE, Binary(Op.SUB, Var("v"), Const(0.5)), Const(0))

    assert expression_of(outer, SCOPE, [Var("v")], {}) == Unary(Op.FLOAT, fires)
    assert expression_of(filled, SCOPE, [Var("v")], {}) == Const(2.0)


def test_named_operands_are_read():
    """All but a factor: that is a number that the rule looks at."""
    args, kwargs = operands((1.0, None), {"max": 2, "alpha": 3}, literal)

    assert args == [Const(1.0), None]
    assert kwargs == {"max": Const(2), "alpha": 3}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (torch.sort, "'sort' is not elementwise"),
        (function((torch.sort, (), {})), "in 'Fire', 'sort' is not elementwise"),
        (function((torch.neg, (), {}), several=True), "'Fire' has several results"),
        (function((torch.sub, (1.0,), {"alpha": 2})), "in 'Fire', torch fuses the product"),
    ],
    ids=["operator", "inside", "results", "factor"],
)
def test_what_is_not_elementwise_is_refused(target, reason):
    """The reason names the function in which it is."""
    refused = expression_of(target, SCOPE, [Var("v")], {})

    assert not refused
    assert reason in refused.reason
