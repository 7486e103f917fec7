"""Write one step of a sweep as a C function over a block of lanes, and the calls of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from snncc.codegen.base import Argument, FloatType, Role
from snncc.codegen.c.expressions import C_TYPE, c_names, dialect
from snncc.codegen.kernel_ir import Load, Step, Store
from snncc.codegen.prepare import identifier
from snncc.ir.nodes import Expr, Op, Rank, Unary, Var
from snncc.ir.printer import spell

WORD = "uint32_t"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a step function: where the driver finds it, and how it is declared."""

    name: str
    declaration: str
    source: Load | Store | str  # a str names a carry

    @property
    def argument(self) -> Argument | None:
        """The kernel's argument behind the parameter, if there is one."""
        return None if isinstance(self.source, str) else self.source.argument


def parameters(step: Step, dtype: FloatType) -> tuple[Parameter, ...]:
    """Return the parameters of a step function: loads, carries and stores, in order."""
    real = C_TYPE[dtype]
    loads = [_load_parameter(load, real) for load in step.loads]
    carries = [
        Parameter(tile_name(c.name), f"{real} *restrict {tile_name(c.name)}", c.name)
        for c in step.carries
    ]
    return (*loads, *carries, *(_store_parameter(store, real) for store in step.stores))


def tile_name(carry: str) -> str:
    """Return the C name of the tile that holds a carry."""
    return f"{identifier(carry)}_state"


def scratch_name(value: str) -> str:
    """Return the C name of a value in the scratch."""
    return f"{identifier(value)}_scratch"


def _load_parameter(load: Load, real: str) -> Parameter:
    argument = load.argument
    if argument is None:
        name = scratch_name(load.name)
        return Parameter(name, f"const {real} *restrict {name}", load)
    if argument.packed:
        return Parameter(argument.name, f"const {WORD} {argument.name}", load)
    if argument.uniform:
        return Parameter(argument.name, f"const {real} {argument.name}", load)
    return Parameter(argument.name, f"const {real} *restrict {argument.name}", load)


def _store_parameter(store: Store, real: str) -> Parameter:
    argument = store.argument
    name = argument.name if argument else scratch_name(store.name)
    element = WORD if argument and argument.packed else real
    return Parameter(name, f"{element} *restrict {name}", store)


def step_function(name: str, step: Step, dtype: FloatType) -> list[str]:
    """Return the lines of the function that runs a step on one block."""
    params = parameters(step, dtype)
    if not params:
        return []
    values = [load.name for load in step.loads] + [carry.name for carry in step.carries]
    values += [let.name for let in step.lets]
    names = c_names(values, {param.name for param in params})
    body = [_read(param, step, dtype, names) for param in params if _is_read(param)]
    for let in step.lets:
        kind = "int" if let.name in step.bools else C_TYPE[dtype]
        text = spell(let.expr, dialect(dtype, names))
        body.append(f"const {kind} {names[let.name]} = {text};")
    for param in params:
        if isinstance(param.source, Store):
            body.append(f"{param.name}[n] = {_stored(param.source, step, dtype, names)};")
    body += [f"{tile_name(c.name)}[n] = {names[c.update]};" for c in step.carries]
    return [
        f"static inline void {name}(",
        *_comma_separated([param.declaration for param in params]),
        "{",
        "#pragma omp simd",
        "  for (int n = 0; n < BLOCK; n++) {",
        *(f"    {line}" for line in body),
        "  }",
        "}",
    ]


def _comma_separated(items: list[str]) -> list[str]:
    return [f"    {item}{')' if item is items[-1] else ','}" for item in items]


def _is_read(param: Parameter) -> bool:
    return not isinstance(param.source, Store)


def _read(param: Parameter, step: Step, dtype: FloatType, names: dict[str, str]) -> str:
    real = C_TYPE[dtype]
    if isinstance(param.source, str):
        return f"const {real} {names[param.source]} = {param.name}[n];"
    assert isinstance(param.source, Load)
    name, argument = names[param.source.name], param.source.argument
    if argument is not None and argument.packed:
        return f"const int {name} = (int)({param.name} >> n & 1u);"
    if argument is not None and argument.uniform:
        return f"const {real} {name} = {param.name};"
    if param.source.name in step.bools:
        return f"const int {name} = {param.name}[n] != 0;"
    return f"const {real} {name} = {param.name}[n];"


def _stored(store: Store, step: Step, dtype: FloatType, names: dict[str, str]) -> str:
    if store.argument is not None and store.argument.packed:
        return f"({WORD}){names[store.name]}"
    value: Expr = Var(store.name)
    if store.name in step.bools:
        value = Unary(Op.FLOAT, value)
    return spell(value, dialect(dtype, names))


def call_lines(function: str, step: Step, dtype: FloatType, *, partial: bool = False) -> list[str]:
    """Return the lines that run a step on the block that starts at lane ``b`` of a tile.

    They expect a pointer to the row of the tile (a value where it is uniform) under the name of
    the argument, with the suffix ``_row`` where it has a time axis.

    Args:
        function: The name of the step function.
        step: The step.
        dtype: The working type.
        partial: Whether the row ends before the block does.
    """
    real = C_TYPE[dtype]
    blocks, operands, writes = [], [], []
    for param in parameters(step, dtype):
        argument, block = param.argument, f"{param.name}_block"
        row = param.name if isinstance(param.source, str) else row_name(param)
        if isinstance(param.source, str) or argument is None:
            operands.append(f"{row} + b")
        elif isinstance(param.source, Store):
            blocks.append(f"_Alignas(64) {WORD if argument.packed else real} {block}[BLOCK];")
            operands.append(block)
            writes.append(_write(argument, row, block, partial=partial))
        elif argument.packed:
            operands.append(f"{row}[b / BLOCK]")
        elif argument.uniform:
            operands.append(row)
        elif not partial:
            operands.append(f"{row} + b")
        else:
            blocks.append(f"_Alignas(64) {real} {block}[BLOCK];")
            operands.append(f"snncc_read({row} + b, {block}, lanes)")
    if not operands:  # a backward step that no gradient passes through
        return []
    lines = [*blocks, f"{function}(", *_closed(_comma_separated(operands)), *writes]
    if any("lanes" in line for line in (*operands, *writes)) and partial:
        lines.insert(0, "const int lanes = (int)(width - b);")
    return lines


def row_name(param: Parameter) -> str:
    """Return the C name of what a parameter reads or writes in the row of this time step."""
    argument = param.argument
    return param.name if argument and argument.rank is Rank.LANE else f"{param.name}_row"


def _closed(lines: list[str]) -> list[str]:
    return [*lines[:-1], f"{lines[-1]};"]


def _write(argument: Argument, row: str, block: str, *, partial: bool) -> str:
    lanes = "lanes" if partial else "BLOCK"
    if argument.role is Role.GUESS and argument.packed:
        return f"changed |= snncc_settle({row} + b / BLOCK, snncc_pack({block}, {lanes}));"
    if argument.role is Role.GUESS:
        return f"changed |= snncc_replace({row} + b, {block}, {lanes});"
    if argument.packed:
        return f"{row}[b / BLOCK] = snncc_pack({block}, {lanes});"
    if partial:
        return f"memcpy({row} + b, {block}, (size_t)lanes * sizeof *{block});"
    return f"snncc_write({row} + b, {block}, stream);"


def fetched(step: Step) -> tuple[Argument, ...]:
    """Return the arguments whose rows a sweep should fetch ahead of time, to read them."""
    return tuple(load.argument for load in step.loads if _has_rows(load.argument))


def claimed(step: Step) -> tuple[Argument, ...]:
    """Return the arguments whose rows a sweep should fetch ahead of time, to write them."""
    return tuple(store.argument for store in step.stores if _has_rows(store.argument))


def _has_rows(argument: Argument | None) -> TypeGuard[Argument]:
    """Tell whether an argument has a row of numbers at each time step."""
    return (
        argument is not None
        and argument.rank is Rank.STEP
        and argument.role is not Role.GUESS
        and not argument.uniform
        and not argument.packed
    )
