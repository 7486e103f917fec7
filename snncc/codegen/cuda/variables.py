"""The variables of a CUDA kernel: their names, and how its arrays are addressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from snncc.codegen.base import Access, Argument, Slot, SlotKind
from snncc.codegen.c.expressions import C_TYPE, c_names, dialect
from snncc.codegen.cuda.preamble import HALF_ELEMENTS, element_type, macros
from snncc.codegen.gpu import CONSTANTS, IMPLIED, slots, strided_groups, values
from snncc.codegen.kernel_ir import Carry, Kernel, Step
from snncc.ir.names import Names
from snncc.ir.nodes import Const, Expr, Op, Unary, Var
from snncc.ir.printer import call, spell

# Words of C++ that are none of C, and names that emitted code uses for itself.
WORDS = """
    alignas alignof and and_eq bitand bitor catch class compl concept const_cast consteval constexpr
    constinit co_await co_return co_yield decltype delete dynamic_cast explicit export false friend
    mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public
    reinterpret_cast requires static_assert static_cast template this thread_local throw true try
    typeid typename using virtual wchar_t char8_t char16_t char32_t xor xor_eq
    threadIdx blockIdx blockDim gridDim warpSize __global__ __device__ __shared__
    LANE THREADS VECTOR ALIGNED VARIANT HALVES FIRST SPREAD WIDTH ROW_OF LANE_OF EACH_LANE INLINE
    FIRST_SUM NEXT_SUM
    snncc_read snncc_write snncc_fold snncc_set snncc_real snncc_pack snncc_round
    n t j k first group lane live sweeps open most counts
"""


_INTEGERS = {
    SlotKind.STEPS: "int",
    SlotKind.LANES: "LANE",
    SlotKind.ACROSS: "LANE",
    SlotKind.EXTENT: "LANE",
    SlotKind.TIME: "long long",
    SlotKind.STRIDE: "long long",
}


_ROUNDINGS = {op: call(f"snncc_round<{element}>") for op, element in HALF_ELEMENTS.items()}


class Variables:
    """The variables of one kernel.

    Attributes:
        names: For each IR name the variable that holds it for one lane.
        real: The working type.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.real = C_TYPE[kernel.dtype]
        lanes = (f"lane{group}" for group in range(kernel.groups))
        own = (name for a in kernel.arguments for name in macros(a, kernel))
        taken = {*WORDS.split(), *lanes, *own, *(slot.name for slot in slots(kernel))}
        self.names = c_names(dict.fromkeys(values(kernel)), taken)
        self._fresh = Names({*taken, *self.names.values()})
        self._arrays: dict[tuple[str, str], str] = {}

    def array(self, value: str, kind: str) -> str:
        """Return the variable that holds a value for all lanes of a thread."""
        return self._array(self.names[value], value, kind)

    def offsets(self, argument: Argument) -> str:
        """Return the variable that holds where the lanes of an argument lie."""
        if argument.access not in IMPLIED:
            return "lane"
        return self._array(argument.name, argument.name, "at")

    def _array(self, name: str, value: str, kind: str) -> str:
        key = value, kind
        if key not in self._arrays:
            self._arrays[key] = self._fresh.fresh(f"{name}_{kind}")
        return self._arrays[key]

    def groups(self, argument: Argument) -> tuple[int, ...]:
        """Return the groups of lanes whose numbers say where a lane of an argument lies."""
        last = self._kernel.groups - 1
        dense = (last,) if argument.access is Access.ROWS else ()
        return (*strided_groups(argument, self._kernel.groups), *dense)

    def offset(self, argument: Argument) -> str:
        """Return where a lane of an argument with strides lies."""
        factors = strided_groups(argument, self._kernel.groups)
        return " + ".join(
            f"lane{g} * {argument.name}_{g}" if g in factors else f"lane{g}"
            for g in self.groups(argument)
        )

    def lane_groups(self, strided: Sequence[Argument]) -> list[str]:
        """Return the lines that take the number of a lane apart, for arrays with strides."""
        used = {group for argument in strided for group in self.groups(argument)}
        lines = ["LANE lane0 = lane[k];"]
        for group in range(self._kernel.groups - 1, 0, -1):
            if group in used:
                lines.append(f"const LANE lane{group} = lane0 % extent{group};")
            lines.append(f"lane0 /= extent{group};")
        return lines

    def spell(self, expr: Expr) -> str:
        """Return the text of an expression."""
        spelling = dialect(self._kernel.dtype, self.names)
        operations = {**spelling.operations, **_ROUNDINGS, Op.QUOTIENT: call("snncc_quotient")}
        return spell(expr, replace(spelling, operations=operations))

    def as_float(self, name: str, step: Step) -> str:
        """Return the text of a value of a step, a bool as 0 or 1."""
        return self.spell(Unary(Op.FLOAT, Var(name)) if name in step.bools else Var(name))

    def initial(self, carry: Carry) -> Expr:
        """Return the value of a carry before the first step."""
        if isinstance(carry.initial, Const):
            return Const(float(carry.initial.value))
        return carry.initial


def indent(lines: list[str]) -> list[str]:
    """Return lines inside of a block; directives of the preprocessor stay where they are."""
    return [line if line.startswith("#") else f"  {line}" for line in lines]


def parameters(slots: Sequence[Slot]) -> list[str]:
    """Return the lines that declare the parameters of a kernel."""
    declared = []
    for slot in slots:
        if slot.kind in CONSTANTS:
            continue
        kind = _INTEGERS.get(slot.kind)
        if slot.argument is not None and slot.kind is SlotKind.ARRAY:
            const = "" if slot.argument.written else "const "
            kind = f"{const}{element_type(slot.argument)} *__restrict__"
        declared.append(f"    {kind} {slot.name},")
    return [*declared[:-1], declared[-1].replace(",", ")")]
