"""The reference interpreter of recurrences: torch operations, one step after another.

It defines the meaning of the IR.  It never reads ``form``.  Run on tensors that require gradients
it is differentiable, with the user's surrogate gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from snncc.ir.nodes import (
    Binary,
    Const,
    Detach,
    Expr,
    Let,
    Op,
    Recurrence,
    Select,
    Surrogate,
    Unary,
    Var,
)
from snncc.ir.once import once

# Types in which serial code rounds after every operation, and kernels at the end of a step alone.
HALVES = (torch.float16, torch.bfloat16)

UNARY: Mapping[Op, Callable[[Tensor], Tensor]] = {
    Op.NEG: torch.neg,
    Op.ABS: torch.abs,
    Op.SIGN: torch.sign,
    Op.EXP: torch.exp,
    Op.EXPM1: torch.expm1,
    Op.LOG: torch.log,
    Op.LOG1P: torch.log1p,
    Op.SQRT: torch.sqrt,
    Op.SIGMOID: torch.sigmoid,
    Op.LOGSIGMOID: F.logsigmoid,
    Op.TANH: torch.tanh,
    Op.SIN: torch.sin,
    Op.COS: torch.cos,
    Op.FLOOR: torch.floor,
    Op.CEIL: torch.ceil,
    Op.ROUND: torch.round,
    Op.FLOAT16: lambda x: x.to(torch.float16).to(x.dtype),
    Op.BFLOAT16: lambda x: x.to(torch.bfloat16).to(x.dtype),
    Op.NOT: torch.logical_not,
}
BINARY: Mapping[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.ADD: torch.add,
    Op.SUB: torch.sub,
    Op.MUL: torch.mul,
    Op.DIV: torch.div,
    Op.POW: torch.pow,
    Op.MIN: torch.minimum,
    Op.MAX: torch.maximum,
    Op.LT: torch.lt,
    Op.LE: torch.le,
    Op.GT: torch.gt,
    Op.GE: torch.ge,
    Op.EQ: torch.eq,
    Op.NE: torch.ne,
    Op.AND: torch.logical_and,
    Op.OR: torch.logical_or,
    Op.XOR: torch.logical_xor,
}


def run(
    recurrence: Recurrence, inputs: Mapping[str, Tensor], length: int | None = None
) -> dict[str, Tensor]:
    """Run a recurrence over time, one step after another.

    Args:
        recurrence: The recurrence; its ``form`` is ignored.
        inputs: For each STEP input a tensor that broadcasts to [T, *lanes], for each LANE input
            one that broadcasts to [*lanes]; all of one float dtype, or of a half type and wider
            single numbers: then every operation is rounded to the half type, as by torch.
        length: T, needed only where the recurrence has no STEP input.

    Returns:
        For each output a tensor of shape [T, *lanes], for each final one of shape [*lanes]; the
        final where a state is both.
    """
    names = (*recurrence.outputs, *recurrence.finals)
    return dict(zip(names, run_in_order(recurrence, inputs, length), strict=True))


def run_in_order(
    recurrence: Recurrence, inputs: Mapping[str, Tensor], length: int | None = None
) -> list[Tensor]:
    """Run a recurrence like `run`; return its outputs in order, then its finals."""
    steps = {name: inputs[name] for name in recurrence.step_inputs}
    lanes = {name: inputs[name] for name in recurrence.lane_inputs}
    length = next(iter(steps.values())).shape[0] if steps else int(length or 0)
    shape = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        *(x.shape[1:] for x in steps.values()), *(p.shape for p in lanes.values())
    )
    like = min(inputs.values(), key=lambda x: x.dtype.itemsize)
    state = {
        s.name: evaluate(s.initial, lanes, like).to(like.dtype).expand(shape)
        for s in recurrence.states
    }
    history: dict[str, list[Tensor]] = {name: [] for name in recurrence.outputs}
    order = range(length - 1, -1, -1) if recurrence.reverse else range(length)
    for t in order:
        values = run_step(recurrence, {n: x[t] for n, x in steps.items()} | lanes, state)
        for name, seen in history.items():
            seen.append(_float(values[name], like).expand(shape))
        state = {s.name: values[s.update] for s in recurrence.states}
    outputs = [_stack(history[name], recurrence, shape, like) for name in recurrence.outputs]
    return outputs + [state[name].expand(shape) for name in recurrence.finals]


def run_step(
    recurrence: Recurrence, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Evaluate every let of one step and return all values by name."""
    values = {**inputs, **state}
    like = min(values.values(), key=lambda x: x.dtype.itemsize)
    for let in recurrence.lets:
        values[let.name] = evaluate_let(let, values, like)
    return values


def evaluate_let(let: Let, values: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Evaluate a let; where it has a surrogate, the result carries the surrogate's gradient."""
    if let.surrogate is None:
        return evaluate(let.expr, values, like)
    rule = let.surrogate
    with torch.no_grad():
        value = evaluate(let.expr, values, like)
    args = tuple(values[name] for name in rule.args)
    if not any(arg.requires_grad for arg in args):
        return value
    scope = {name: x.detach() for name, x in values.items()} | {let.name: value}
    result: Tensor = _SurrogateFunction.apply(  # type: ignore[no-untyped-call]
        rule, scope, value, *args
    )
    return result


class _SurrogateFunction(torch.autograd.Function):
    """Returns a value computed elsewhere; its gradient is the surrogate's."""

    @staticmethod
    def forward(
        ctx: Any, rule: Surrogate, scope: dict[str, Tensor], value: Tensor, *args: Tensor
    ) -> Tensor:
        ctx.rule, ctx.scope = rule, scope
        ctx.save_for_backward(*args)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        # The values of the scope have no history, so that a second derivative would lack terms.
        def run(cotangent: Tensor, *args: Tensor) -> list[Tensor]:
            values = ctx.scope | {ctx.rule.cotangent: cotangent}
            for let in ctx.rule.lets:
                values[let.name] = evaluate(let.expr, values, cotangent)
            results = [evaluate(r, values, cotangent) for r in ctx.rule.results]
            return [
                r.expand(cotangent.shape).sum_to_size(arg.shape)
                for r, arg in zip(results, args, strict=True)
            ]

        return (None, None, None, *once(run, (*cotangents, *ctx.saved_tensors)))


def evaluate(expr: Expr, values: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Evaluate an expression; literals take the dtype and device of ``like``."""
    match expr:
        case Const(value):
            return _literal(value, like)
        case Var(name):
            return values[name]
        case Unary(Op.FLOAT, arg):
            return evaluate(arg, values, like).to(like.dtype)
        case Unary(op, arg):
            return UNARY[op](evaluate(arg, values, like))
        case Binary(Op.POW, base, Const(exponent)):
            return torch.pow(evaluate(base, values, like), exponent)
        case Binary(op, lhs, rhs):
            return BINARY[op](evaluate(lhs, values, like), evaluate(rhs, values, like))
        case Select(condition, if_true, if_false):
            return torch.where(
                evaluate(condition, values, like),
                evaluate(if_true, values, like),
                evaluate(if_false, values, like),
            )
        case Detach(arg):
            return evaluate(arg, values, like).detach()
        case _:
            assert_never(expr)


def _literal(value: float | bool, like: Tensor) -> Tensor:
    """Return a number; torch does not round one that stands beside a tensor of a half type."""
    if isinstance(value, bool):
        return torch.tensor(value, device=like.device)
    if like.dtype in HALVES:
        return torch.tensor(value, dtype=torch.float32)
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def _float(value: Tensor, like: Tensor) -> Tensor:
    is_other = value.dtype == torch.bool or like.dtype in HALVES
    return value.to(like.dtype) if is_other else value


def _stack(seen: list[Tensor], recurrence: Recurrence, shape: torch.Size, like: Tensor) -> Tensor:
    if not seen:
        return torch.empty((0, *shape), dtype=like.dtype, device=like.device)
    return torch.stack(seen[::-1] if recurrence.reverse else seen)
