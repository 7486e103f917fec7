"""Torch operators as operations of an exported library.

`apply` evaluates an operator on tensors that stand for arrays and writes down the operation that
computes the same.  A result that shares memory with an argument is a view and needs none.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
from torch import Tensor

from snncc.codegen.prepare import find_live, prepare
from snncc.export.names import operator_name
from snncc.export.network.nodes import Array, Copy, Lookup, Operand, Pointwise, Steps
from snncc.export.network.tensor_operators import HANDLERS
from snncc.ir import sequence_ops
from snncc.ir.custom_gradient import CustomGradient
from snncc.ir.neuron_call import NeuronCall
from snncc.ir.nodes import Const, Let, Op, Unary, Var
from snncc.ir.printer import IR_DIALECT, print_recurrence, spell
from snncc.ir.program import NeuronProgram
from snncc.ir.sharing import shares_memory
from snncc.ir.step_call import StepCall
from snncc.ir.walk import is_bool
from snncc.passes.base import Rejection
from snncc.passes.scalars.expressions import expression_of, literal, operands
from snncc.passes.scalars.scalar_ops import SCALAR_OPS, Scope

if TYPE_CHECKING:
    from snncc.export.network.trace import Tracer


def apply(tracer: Tracer, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what stands for the result of an operator.

    Raises:
        UnsupportedError: The operator has no form in a library.
    """
    if isinstance(target, NeuronCall | StepCall):
        return _fused(tracer, target, args)
    if target is operator.getitem and isinstance(args[0], tuple | list):
        return args[0][args[1]]
    if isinstance(target, sequence_ops.Folded):
        count, x = target.count, args[0]
        folded = [y.flatten(0, 1) for y in args[:count]]
        flat = apply(tracer, target.operator, (*folded, *args[count:]), kwargs)
        return flat.reshape(*x.shape[:2], *flat.shape[1:])
    with torch.no_grad():
        value: Any = target(*args, **kwargs)
    if not isinstance(value, Tensor | tuple | list):
        return value
    if isinstance(value, Tensor) and shares_memory(value, (args, kwargs)):
        return value
    if target in HANDLERS:
        return HANDLERS[target](tracer, value, *args, **kwargs)
    if isinstance(value, Tensor):
        if target in SCALAR_OPS or isinstance(target, CustomGradient):
            return _elementwise(tracer, value, target, args, kwargs)
        if target in _ARRANGING:
            return _arranged(tracer, value, args[0])
    raise tracer.refusal(f"the operator '{operator_name(target)}' has no form in a library")


def apply_counted(tracer: Tracer, target: Any, args: tuple[Any, ...]) -> Any:
    """Return what stands for a value that depends on the number of steps."""
    if target is operator.mul:
        count = next(x for x in args if isinstance(x, Steps))
        factor = next(x for x in args if not isinstance(x, Steps))
        return Steps(count.factor * factor)
    if isinstance(target, sequence_ops.StepCount):
        return _step_count(tracer, target, args[0])
    if target is sequence_ops.numbers_until:
        values, rank, _, dtype, _ = args
        table = torch.tensor(values, dtype=dtype).reshape(-1, *(1,) * rank)
        return _looked_up(tracer, table)
    if target is sequence_ops.steps_until:
        return _looked_up(tracer, args[0].movedim(args[1], 0).contiguous())
    if target in SCALAR_OPS:
        example = [1.0 if isinstance(x, Steps) else x for x in args]
        return _elementwise(tracer, target(*example), target, args, {})
    name = operator_name(target)
    raise tracer.refusal(f"'{name}' uses the number of steps in a way that no library has")


def _step_count(tracer: Tracer, target: sequence_ops.StepCount, steps: Steps) -> Any:
    """Return what stands for a number that Python computed from the number of steps."""
    if target.offset:
        number = f"{target.slope} * steps {target.offset:+d}"
        raise tracer.refusal(f"a number follows the steps as '{number}', which no library counts")
    whole = Steps(steps.factor * target.slope)
    if not target.is_inverse:
        return whole
    one = torch.ones((), dtype=torch.float64 if tracer.result.is_double else torch.float32)
    return apply_counted(tracer, torch.div, (one, whole))


def _looked_up(tracer: Tracer, table: Tensor) -> Tensor:
    """Write down that a row of a table is taken, a row for each step."""
    stand, result = tracer.make(table[:1])
    tracer.add(Lookup(tracer.array(table.clone()), result))
    limit = tracer.result.limit or len(table)
    tracer.result.limit = min(limit, len(table))
    return stand


def operand_of(tracer: Tracer, value: Any) -> Operand:
    """Return an operand of elementwise arithmetic; a single constant is written as a number."""
    if isinstance(value, Steps):
        return value
    if not isinstance(value, Tensor):
        return Const(value)
    known = value.untyped_storage().data_ptr() in tracer.buffers
    if not known and value.numel() == 1:
        return Const(float(value))
    return tracer.array(value)


def _fused(tracer: Tracer, target: NeuronCall | StepCall, args: tuple[Any, ...]) -> list[Tensor]:
    """Write down one step of a neuron, or a fused step of a recurrent loop."""
    if isinstance(target, NeuronCall):
        return _neuron(tracer, target.program, args)
    program, steps = NeuronProgram(target.recurrence), (x[None] for x in args)
    return [value[0] for value in _neuron(tracer, program, (1, *steps))]


def _neuron(tracer: Tracer, program: NeuronProgram, args: tuple[Any, ...]) -> list[Tensor]:
    """Write down one step of a neuron; a state that only it reads is updated where it lies."""
    assert tracer.node is not None
    forward = program.forward
    _, *tensors = args
    names = (*forward.step_inputs, *forward.lane_inputs)
    steps = len(forward.step_inputs)
    inside = [x[0] if i < steps else x for i, x in enumerate(tensors)]
    given = dict(zip(names, inside, strict=True))
    with torch.no_grad():
        values = NeuronCall(program)(1, *tensors)
    starts = {state.name: state.initial for state in forward.states}
    sources: Any = tracer.node.args
    nodes = dict(zip(names, sources[len(sources) - len(names) :], strict=True))
    results: list[tuple[Array, str]] = []
    stands: list[Tensor] = []
    updates = {state.name: state.update for state in forward.states}
    for i, (name, value) in enumerate(
        zip((*forward.outputs, *forward.finals), values, strict=True)
    ):
        if i < len(forward.outputs):
            stand, array = tracer.make(value, f"{forward.name}_{name}")
            results.append((tracer.array(stand[0]), name))
            stands.append(stand)
            continue
        start = starts[name]
        assert isinstance(start, Var)
        home, source = given[start.name], nodes[start.name]
        if source in tracer.state_nodes and len(source.users) == 1 and home.shape == value.shape:
            array, stand = tracer.array(home), home
        else:
            stand, array = tracer.make(value, f"{forward.name}_{name}")
        results.append((array, updates[name]))
        stands.append(stand)
    taken = {*names, *starts, *(let.name for let in forward.lets)}
    lets = prepare(forward.lets, taken)
    live = find_live(lets, (), [name for _, name in results])
    inputs = list(given.items())
    for state in forward.states:
        assert isinstance(state.initial, Var)
        inputs.append((state.name, given[state.initial.name]))
    tracer.add(
        Pointwise(
            name=forward.name,
            comment=print_recurrence(forward),
            shape=tuple(values[0].shape[1:] if forward.outputs else values[0].shape),
            inputs=tuple((n, operand_of(tracer, v)) for n, v in inputs if n in live),
            lets=tuple(let for let in lets if let.name in live),
            results=tuple(results),
        )
    )
    return stands


def _elementwise(
    tracer: Tracer, value: Tensor, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Write down an elementwise operator, or the forward graph of a custom gradient."""
    assert tracer.node is not None
    inputs: dict[str, Any] = {}

    def read(argument: Any) -> Any:
        if isinstance(argument, Tensor | Steps):
            name = f"a{len(inputs)}"
            inputs[name] = argument
            return Var(name)
        return literal(argument)

    scope = Scope(lambda e: is_bool(e, frozenset()))
    expr = expression_of(target, scope, *operands(args, kwargs, read))
    if isinstance(expr, Rejection):
        raise tracer.refusal(expr.reason)
    if is_bool(expr, frozenset()):
        expr = Unary(Op.FLOAT, expr)
    stand, result = tracer.make(value)
    lets = prepare((Let("r", expr),), ["r", *inputs])
    tracer.add(
        Pointwise(
            name=tracer.node.name,
            comment=f"{tracer.node.name} = {spell(expr, IR_DIALECT)}",
            shape=tuple(value.shape),
            inputs=tuple((n, operand_of(tracer, v)) for n, v in inputs.items()),
            lets=lets,
            results=((result, "r"),),
        )
    )
    return stand


def _arranged(tracer: Tracer, value: Tensor, x: Tensor) -> Tensor:
    """Write down a copy of all elements in order."""
    stand, result = tracer.make(value)
    tracer.add(Copy(tracer.array(x), result))
    return stand


# Operators that keep the order of elements and, where their result is no view, copy them.
_ARRANGING = frozenset({torch.reshape, torch.flatten, torch.clone})
