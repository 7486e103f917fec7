"""Write the function of a Triton kernel: its parameters, its loop over time, its results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from snncc.codegen.base import Access, Argument, Role, SlotKind
from snncc.codegen.gpu import (
    CONSTANTS,
    IMPLIED,
    guarded,
    lane_inputs,
    packed_stores,
    slots,
    solved_loads,
    step_loads,
)
from snncc.codegen.kernel_ir import Carry, Kernel, Load, Solve, Store, Sweep
from snncc.codegen.triton.recomputing import recomputing_loop
from snncc.codegen.triton.solving import Solving, keep_found
from snncc.codegen.triton.span import CHUNK, GROUP, Span
from snncc.codegen.triton.text import indent
from snncc.codegen.triton.variables import Variables
from snncc.ir.nodes import Const, Rank


class Writer:
    """Writes one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.slots = slots(kernel)
        self.vars = Variables(kernel)

    def function(self, name: str) -> list[str]:
        """Return the lines of the kernel."""
        loop = self.loop()
        finals = self.finals()
        start = [*self.lane_loads(), *self.start(self.kernel.main.step.carries)]
        constants = self.vars.constants.lines(self.kernel.dtype)
        parameters = [
            f"    {slot.name}: tl.constexpr," if slot.kind in CONSTANTS else f"    {slot.name},"
            for slot in self.slots
        ]
        body = [*self.lane_index(), *self.pointers(), *constants, *start, *loop, *finals]
        return ["@triton.jit", f"def {name}(", *parameters, "):", *indent(body)]

    # Lanes and addresses

    def lane_index(self) -> list[str]:
        """Return the lines that number the lanes of a program."""
        lines = ["n = tl.program_id(0).to(lanes.dtype) * BLOCK + tl.arange(0, BLOCK)"]
        if self.kernel.tiled:
            lines = [
                "n = tl.program_id(0).to(lanes.dtype)",
                "row = n // across * (BLOCK // WIDTH) + tl.arange(0, BLOCK) // WIDTH",
                "n = (row * across + n % across) * WIDTH + tl.arange(0, BLOCK) % WIDTH",
            ]
        lines.append("live = n < lanes")
        if all(argument.access not in IMPLIED for argument in self.kernel.arguments):
            return lines
        lines.append("lane0 = n")
        for group in range(self.kernel.groups - 1, 0, -1):
            lines.append(f"lane{group} = lane0 % extent{group}")
            lines.append(f"lane0 = lane0 // extent{group}")
        return lines

    def pointers(self) -> list[str]:
        """Return the lines that place the lanes of arrays that have a time axis."""
        return [
            f"{self.vars.place(argument)} = {self.vars.address(argument)}"
            for argument in self.kernel.arguments
            if argument.rank is Rank.STEP
        ]

    def lane_loads(self) -> list[str]:
        """Return the lines that read the inputs without a time axis."""
        return [
            f"{self.vars.names[value]} = "
            + self.vars.whole(
                argument, f"tl.load({self.vars.address(argument)}{self.vars.lane_mask(argument)})"
            )
            for value, argument in lane_inputs(self.kernel).items()
        ]

    # Time

    def loop(self) -> list[str]:
        """Return the loop over time."""
        main, recompute = self.kernel.main, self.kernel.recompute
        if recompute is not None:
            return recomputing_loop(self, main, recompute)
        if self.kernel.solve is not None:
            return self.solving_loop(main, self.kernel.solve)
        own = step_loads(main.step)
        head = _from_the_end("GROUP") if main.backwards else "for first in range(0, steps, GROUP):"
        index = dict.fromkeys((load.name for load in own), "j")
        body = [*self.keep_checkpoints(), *self.ahead(own, GROUP), *self.words(main)]
        body += [*self.steps(main, GROUP, index), *self.store_words(main)]
        return [head, *indent(body)]

    def solving_loop(self, main: Sweep, solve: Solve) -> list[str]:
        """Return the loop over chunks, each swept until its spikes are those it was given."""
        loads = solved_loads(self.kernel, solve)
        solving = Solving(self.vars, solve)
        index = {load.name: "j" for load in solve.sweep.step.loads}
        inside = self.step(solve.sweep, Span("first + j", "1"), index)
        within = {load.name: "group + j" for load in main.step.loads}
        body = [
            *self.keep_checkpoints(),
            *self.ahead(loads, CHUNK),
            *solving.chunk(inside),
            "for group in tl.static_range(0, CHUNK, GROUP):",
            *indent(self.words(main)),
            *indent(self.steps(main, Span("first + group", "GROUP"), within)),
            *indent(self.store_words(main, "first + group")),
        ]
        return [
            f"{solving.most} = 0",
            "for first in range(0, steps, CHUNK):",
            *indent(body),
            *solving.counts(),
        ]

    def ahead(self, loads: Sequence[Load], span: Span) -> list[str]:
        """Return the lines that issue the loads of several steps."""
        lines, inside = [], []
        for load in loads:
            argument = load.argument
            assert argument is not None
            if argument.packed:
                group = _times(span.first, " // GROUP")
                row = f"{self.vars.place(argument)} + {group} * {argument.name}_t"
                word = self.vars.tuple_of(load.name, "word")
                lines.append(f"{word} = tl.load({row}, mask=live).to(tl.int32)")
                continue
            row, ahead = self.vars.row(argument), self.vars.tuple_of(load.name, "ahead")
            mask = f", mask={span.mask}"
            if argument.access is Access.UNIFORM:
                mask = "" if span.whole else ", mask=t < steps"
            lines.append(f"{ahead} = ()")
            lines.append(
                f"{row} = {self.vars.place(argument)} + {_times(span.first)} * {argument.name}_t"
            )
            inside.append(f"{ahead} += (tl.load({row}{mask}),)")
            inside.append(f"{row} += {argument.name}_t")
        if inside:
            exists = [] if span.whole else [f"t = {span.first} + j", "now = live & (t < steps)"]
            lines += [f"for j in tl.static_range({span.count}):", *indent([*exists, *inside])]
        return lines

    def steps(self, sweep: Sweep, span: Span, index: dict[str, str]) -> list[str]:
        """Return the lines of several steps."""
        stored = [s.argument for s in sweep.step.stores if s.argument and not s.argument.packed]
        start, order = span.first, f"tl.static_range({span.count})"
        if sweep.backwards:
            start = f"{span.first} + {span.count} - 1"
            order = f"tl.static_range({span.count} - 1, -1, -1)"
        lines = [
            f"{self.vars.row(a)} = {self.vars.place(a)} + {_times(start)} * {a.name}_t"
            for a in stored
        ]
        inside = self.step(sweep, Span(f"{span.first} + j", "1", span.whole), index)
        return [*lines, f"for j in {order}:", *indent(inside)]

    def step(self, sweep: Sweep, span: Span, index: dict[str, str]) -> list[str]:
        """Return the lines of one step, up to the carries of a sweep that recomputes."""
        step = sweep.step
        stores = [store for store in step.stores if store.argument is not None]
        held = frozenset() if span.whole else guarded(self.kernel, sweep)
        lines = []
        if not span.whole and (stores or (held and step.carries)):
            lines.append(f"t = {span.first}")
        if not span.whole and any(_is_written(store.argument) for store in stores):
            lines.append("now = live & (t < steps)")
        for load in step.loads:
            lines += self.read(load, index.get(load.name, "j"))
        lines += [f"{self.vars.names[let.name]} = {self.vars.spell(let.expr)}" for let in step.lets]
        for store in stores:
            lines += self.store(store, sweep, span)
        if sweep is not self.kernel.recompute:
            lines += self.advance(step.carries, held)
        return lines

    def read(self, load: Load, index: str) -> list[str]:
        """Return the line that gives a loaded value its name, where it needs one."""
        name, argument = self.vars.names[load.name], load.argument
        if load.after:
            return [f"{name} = {self.vars.tuple_of(load.after, 'kept')}[{index} + 1]"]
        if argument is None:
            return [f"{name} = {self.vars.tuple_of(load.name, 'kept')}[{index}]"]
        if argument.rank is Rank.LANE:
            return []
        if argument.packed:
            shift = f"({index})" if argument.role is Role.GUESS and " " in index else "j"
            return [f"{name} = ({self.vars.tuple_of(load.name, 'word')} >> {shift} & 1) != 0"]
        if argument.role is Role.GUESS:
            return [f"{name} = {self.vars.tuple_of(load.name, 'kept')}[{index}]"]
        value = f"{self.vars.tuple_of(load.name, 'ahead')}[{index}]"
        return [f"{name} = {self.vars.whole(argument, value)}"]

    def store(self, store: Store, sweep: Sweep, span: Span) -> list[str]:
        """Return the lines that write a value of a step and move on to the row of the next."""
        argument = store.argument
        assert argument is not None
        if argument.role is Role.GUESS:
            return keep_found(self.vars, store.name, argument)
        if argument.packed:
            word = self.vars.tuple_of(store.name, "word")
            return [f"{word} |= {self.vars.names[store.name]}.to(tl.int32) << j"]
        row, value = self.vars.row(argument), self.vars.as_float(store.name, sweep.step)
        advance = "-=" if sweep.backwards else "+="
        return [
            f"tl.store({row}, {value}, mask={span.mask})",
            f"{row} {advance} {argument.name}_t",
        ]

    def keep(self, stores: Iterable[Store]) -> list[str]:
        """Return the lines that keep values of a step in registers."""
        return [
            f"{self.vars.tuple_of(s.name, 'kept')} += ({self.vars.names[s.name]},)" for s in stores
        ]

    # Carries

    def start(self, carries: Iterable[Carry]) -> list[str]:
        """Return the lines that set carries to their values before the first step."""
        return [f"{self.vars.names[carry.name]} = {self.vars.initial(carry)}" for carry in carries]

    def advance(self, carries: Sequence[Carry], still: Iterable[str]) -> list[str]:
        """Return the lines that give carries their values after the step, all at once."""
        lines, values = [], {carry.name: self.vars.names[carry.update] for carry in carries}
        for carry in carries:
            if carry.update in values and carry.update != carry.name:
                held = self.vars.tuple_of(carry.update, "before")
                lines.append(f"{held} = {self.vars.names[carry.update]}")
                values[carry.name] = held
        for carry in carries:
            name, value = self.vars.names[carry.name], values[carry.name]
            if carry.name in still:
                value = f"tl.where(t < steps, {value}, {name})"
            if carry.update != carry.name:
                lines.append(f"{name} = {value}")
        return lines

    def keep_checkpoints(self) -> list[str]:
        """Return the lines of a forward kernel that keep carries at the start of a chunk."""
        checkpoints = self.kernel.checkpoints
        if not checkpoints:
            return []
        lines = ["begins = live & (first > 0) & (first % CHUNK == 0)"]
        for checkpoint in checkpoints:
            row = self.chunk_row(checkpoint.argument)
            lines.append(f"tl.store({row}, {self.vars.names[checkpoint.name]}, mask=begins)")
        return lines

    def restore(self, carries: Iterable[Carry], first: str) -> list[str]:
        """Return the lines that set carries to their values at the start of a chunk."""
        places = {checkpoint.name: checkpoint.argument for checkpoint in self.kernel.checkpoints}
        lines = []
        for carry in carries:
            row = self.chunk_row(places[carry.name], first)
            name = self.vars.names[carry.name]
            lines.append(f"{name} = tl.load({row}, mask=live & ({first} > 0))")
            lines.append(f"{name} = tl.where({first} > 0, {name}, {self.vars.initial(carry)})")
        return lines

    def chunk_row(self, argument: Argument, first: str = "first") -> str:
        """Return the addresses of the states at the start of a chunk."""
        return f"{self.vars.place(argument)} + ({first} // CHUNK - 1) * {argument.name}_t"

    # Words and results

    def words(self, sweep: Sweep) -> list[str]:
        """Return the lines that start the words into which bools are packed."""
        return [
            f"{self.vars.tuple_of(store.name, 'word')} = tl.full((BLOCK,), 0, tl.int32)"
            for store in packed_stores(sweep)
        ]

    def store_words(self, sweep: Sweep, base: str = "first") -> list[str]:
        """Return the lines that write the words into which bools were packed."""
        lines = []
        for store in packed_stores(sweep):
            assert store.argument is not None
            row = f"{self.vars.place(store.argument)} + {_times(base, ' // GROUP')}"
            row += f" * {store.argument.name}_t"
            word = self.vars.tuple_of(store.name, "word")
            lines.append(f"tl.store({row}, {word}.to(tl.int8), mask=live)")
        return lines

    def finals(self) -> list[str]:
        """Return the lines that write the carries after the last step."""
        lines: list[str] = []
        for final in self.kernel.main.finals:
            argument, name = final.argument, self.vars.names[final.name]
            assert argument is not None
            if argument.folded:
                lines += self.fold(argument, name)
            else:
                lines.append(f"tl.store({self.vars.address(argument)}, {name}, mask=live)")
        return lines

    def fold(self, argument: Argument, name: str) -> list[str]:
        """Return the lines that write the sums of a carry over rows, then neighbouring lanes."""
        fold = next(
            s.name for s in self.slots if s.argument == argument and s.kind is SlotKind.FOLD
        )
        zero = self.vars.spell(Const(0.0))
        width = "WIDTH" if self.kernel.tiled else "BLOCK"
        count = f"{width} // {fold}"
        rows = [f"{name} = halve({name}, 1, WIDTH)"] if self.kernel.tiled else []
        places = [f"sums = tl.program_id(0).to(lanes.dtype) * ({count}) + tl.arange(0, {count})"]
        if self.kernel.tiled:  # sums of one column lie side by side, in the order of the rows
            places = [
                f"sums = tl.program_id(0) % across * ({count}) + tl.arange(0, {count})",
                "sums = sums * (tl.num_programs(0) // across) + tl.program_id(0) // across",
            ]
        return [
            f"{name} = tl.where(live, {name}, {zero})",
            *rows,
            f"{name} = halve({name}, {count}, {count})",
            *places,
            f"tl.store({argument.name} + sums, {name})",
        ]


def _is_written(argument: Argument | None) -> bool:
    """Tell whether an argument has a row that a step writes."""
    return argument is not None and not argument.packed and argument.role is not Role.GUESS


def _from_the_end(count: str) -> str:
    """Return the head of a loop over pieces of ``count`` steps, the last one first."""
    return (
        f"for first in range((steps + {count} - 1) // {count} * {count} - {count}, -1, -{count}):"
    )


def _times(base: str, divided: str = "") -> str:
    """Return a step as a factor, in parentheses where it is a sum."""
    factor = f"({base})" if " " in base else base
    return f"{factor}{divided}"
