"""The variables of a Triton kernel: their names, and how its arrays are addressed."""

from __future__ import annotations

from snncc.codegen.base import Access, Argument
from snncc.codegen.gpu import slots, strided_groups, values
from snncc.codegen.kernel_ir import Carry, Kernel, Step
from snncc.codegen.triton.expressions import (
    TRITON_TYPE,
    Constants,
    dialect,
    expand,
    python_names,
)
from snncc.ir.names import Names
from snncc.ir.nodes import Const, Expr, Op, Unary, Var
from snncc.ir.printer import spell

# Names that emitted code uses for itself.
RESERVED = frozenset(
    [
        "tl",
        "triton",
        "libdevice",
        "range",
        "float",
        "add",
        "either",
        "halve",
        "n",
        "row",
        "sums",
        "j",
        "t",
        "first",
        "group",
        "live",
        "now",
        "whole",
        "left",
        "early",
        "REST",
        "begins",
        "changed",
    ]
)


class Variables:
    """The variables of one kernel.

    Attributes:
        names: For each IR name the variable that holds it.
        constants: Numbers that are kept in variables.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._real = TRITON_TYPE[kernel.dtype]
        lanes = (f"lane{group}" for group in range(kernel.groups))
        fresh = self._fresh = Names({*RESERVED, *lanes, *(slot.name for slot in slots(kernel))})
        self.names = python_names(dict.fromkeys(values(kernel)), fresh)
        self.constants = Constants(fresh)
        self._places: dict[str, str] = {}
        self._rows: dict[str, str] = {}
        self._tuples: dict[str, str] = {}

    def own(self, wish: str) -> str:
        """Return a variable that holds no value of the neuron."""
        return self._fresh.fresh(wish)

    def place(self, argument: Argument) -> str:
        """Return the variable that holds the addresses of an argument at the first step."""
        if argument.name not in self._places:
            self._places[argument.name] = self._fresh.fresh(f"{argument.name}_at")
        return self._places[argument.name]

    def row(self, argument: Argument) -> str:
        """Return the variable that holds the addresses of an argument at some step."""
        if argument.name not in self._rows:
            self._rows[argument.name] = self._fresh.fresh(f"{argument.name}_row")
        return self._rows[argument.name]

    def address(self, argument: Argument) -> str:
        """Return the addresses of the lanes of an argument."""
        name, groups = argument.name, self._kernel.groups
        if argument.access is Access.UNIFORM:
            return name
        if argument.access is Access.FLAT:
            return f"{name} + n"
        terms = [f"lane{g} * {name}_{g}" for g in strided_groups(argument, groups)]
        if argument.access is Access.ROWS:
            terms.append(f"lane{groups - 1}")
        return " + ".join([name, *terms])

    def lane_mask(self, argument: Argument) -> str:
        """Return what a load of an argument without a time axis is given besides its address."""
        return "" if argument.access is Access.UNIFORM else ", mask=live"

    def whole(self, argument: Argument, value: str) -> str:
        """Return a loaded value as a block of the working type."""
        value = f"{value}.to({self._real})"
        return f"tl.broadcast_to({value}, (BLOCK,))" if argument.access is Access.UNIFORM else value

    def tuple_of(self, value: str, kind: str) -> str:
        """Return the variable that holds a value at several steps."""
        key = f"{value} {kind}"
        if key not in self._tuples:
            self._tuples[key] = self._fresh.fresh(f"{self.names[value]}_{kind}")
        return self._tuples[key]

    def spell(self, expr: Expr) -> str:
        """Return the text of an expression whose value is a block."""
        expr = self.constants.value(expand(expr))
        return spell(expr, dialect(self._kernel.dtype, self.names | self.constants.names()))

    def as_float(self, name: str, step: Step) -> str:
        """Return the text of a value of a step, a bool as 0 or 1."""
        return self.spell(Unary(Op.FLOAT, Var(name)) if name in step.bools else Var(name))

    def initial(self, carry: Carry) -> str:
        """Return the text of the value of a carry before the first step."""
        if isinstance(carry.initial, Const):
            return self.spell(Const(float(carry.initial.value)))
        return self.names[carry.initial.name]
