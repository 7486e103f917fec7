"""Write the function of a CUDA kernel: its parameters, its loop over time, its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

from snncc.codegen.base import Access, Argument, Role
from snncc.codegen.cuda.preamble import element_type, is_dense, macros
from snncc.codegen.cuda.solving import UNROLL, each_lane, keep_found, solving_chunk
from snncc.codegen.cuda.variables import Variables, indent, parameters
from snncc.codegen.gpu import (
    IMPLIED,
    followed,
    guarded,
    lane_inputs,
    packed_stores,
    slots,
    solved_loads,
    step_loads,
)
from snncc.codegen.kernel_ir import Carry, Kernel, Load, Solve, Step, Store, Sweep
from snncc.ir.nodes import Var


class Writer:
    """Writes one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.slots = slots(kernel)
        self.vars = Variables(kernel)
        self.lanes = lane_inputs(kernel)

    def function(self, name: str) -> list[str]:
        """Return the lines of the kernel."""
        body = [
            *self.lane_index(),
            *self.lane_loads(),
            *self.start(self.kernel.main.step.carries),
            *self.loop(),
            *self.finals(),
        ]
        return [
            f'extern "C" __global__ void __launch_bounds__(THREADS, 1) {name}(',
            *parameters(self.slots),
            "{",
            *indent(body),
            "}",
        ]

    # Lanes

    def lane_index(self) -> list[str]:
        """Return the lines that number the lanes of a thread."""
        strided = [a for a in self.kernel.arguments if a.access in IMPLIED]
        lines = [
            "const LANE n = LANE_OF(FIRST);",
            "LANE lane[VECTOR];",
            "bool live[VECTOR];",
            *(f"long long {self.vars.offsets(argument)}[VECTOR];" for argument in strided),
        ]
        inside = [
            "lane[k] = ALIGNED ? n + k : LANE_OF(FIRST + k * SPREAD);",
            "live[k] = (ALIGNED ? n : lane[k]) < lanes;",
        ]
        if strided:
            inside += self.vars.lane_groups(strided)
        for argument in strided:
            inside.append(f"{self.vars.offsets(argument)}[k] = {self.vars.offset(argument)};")
        return [*lines, *each_lane(inside)]

    def lane_loads(self) -> list[str]:
        """Return the lines that read the inputs without a time axis."""
        lines = []
        for value, argument in self.lanes.items():
            if argument.access is Access.UNIFORM:
                name = self.vars.names[value]
                lines.append(f"const {self.vars.real} {name} = snncc_real(*{argument.name});")
                continue
            read, name = self.vars.array(value, "read"), self.vars.array(value, "lane")
            lines.append(f"{element_type(argument)} {read}[VECTOR];")
            lines.append(f"{self.vars.real} {name}[VECTOR];")
            lines.append(self.read(argument, read, argument.name, "true"))
            lines += each_lane([f"{name}[k] = snncc_real({read}[k]);"])
        return lines

    def read(self, argument: Argument, to: str, row: str, now: str) -> str:
        """Return the line that reads the lanes of a row."""
        dense = str(is_dense(argument)).lower()
        return f"snncc_read<{dense}>({to}, {row}, {self.vars.offsets(argument)}, live, {now});"

    def write(self, argument: Argument, row: str, values: str, now: str) -> str:
        """Return the line that writes the lanes of a row."""
        dense = str(is_dense(argument)).lower()
        return f"snncc_write<{dense}>({row}, {values}, {self.vars.offsets(argument)}, live, {now});"

    # Time

    def loop(self) -> list[str]:
        """Return the loop over time."""
        main, recompute = self.kernel.main, self.kernel.recompute
        if recompute is not None:
            return self.recomputing_loop(main, recompute)
        if self.kernel.solve is not None:
            return self.solving_loop(main, self.kernel.solve)
        own = step_loads(main.step)
        head = "for (int first = 0; first < steps; first += GROUP) {"
        if main.backwards:
            head = _from_the_end("GROUP")
        index = dict.fromkeys((load.name for load in own), "j")
        body = [*self.keep_checkpoints(), *self.ahead(own, "GROUP", "first"), *self.words(main)]
        body += [*self.steps(main, "first", index), *self.store_words(main)]
        return [head, *indent(body), "}"]

    def recomputing_loop(self, main: Sweep, recompute: Sweep) -> list[str]:
        """Return the loop over chunks, each run forward and then backwards.

        The reverse steps of a group are under a condition: a group after the last step is skipped,
        and values that a compiler could compute early do not fill registers.
        """
        first = step_loads(recompute.step)
        read = {load.argument for load in first}
        own = [load for load in step_loads(main.step) if load.argument not in read]
        within = dict.fromkeys((load.name for load in first), "j")
        index = {load.name: "group + j" for load in main.step.loads}
        index |= dict.fromkeys((load.name for load in own), "j")
        reverse = [
            *self.ahead(own, "GROUP", "first + group"),
            *self.steps(main, "first + group", index),
        ]
        ends = [
            f"{self.vars.array(name, 'kept')}[CHUNK][k] = {self.vars.array(name, 'carry')}[k];"
            for name in followed(self.kernel)
        ]
        body = [
            *self.ahead(first, "CHUNK", "first"),
            *self.restore(recompute.step.carries),
            *self.declare_kept(recompute.step),
            UNROLL,
            "for (int j = 0; j < CHUNK; j++) {",
            *indent(self.step(recompute, within)),
            "}",
            *each_lane(ends),
            UNROLL,
            "for (int group = CHUNK - GROUP; group >= 0; group -= GROUP) {",
            "  if (first + group < steps) {",
            *indent(indent(reverse)),
            "  }",
            "}",
        ]
        return [_from_the_end("CHUNK"), *indent(body), "}"]

    def solving_loop(self, main: Sweep, solve: Solve) -> list[str]:
        """Return the loop over chunks, each swept until its spikes are those it was given."""
        index = {load.name: "j" for load in solve.sweep.step.loads}
        within = {load.name: "group + j" for load in main.step.loads}
        body = [
            *self.keep_checkpoints(),
            *self.ahead(solved_loads(self.kernel, solve), "CHUNK", "first"),
            *solving_chunk(self.vars, solve, self.step(solve.sweep, index)),
            UNROLL,
            "for (int group = 0; group < CHUNK; group += GROUP) {",
            *indent(self.words(main)),
            *indent(self.steps(main, "first + group", within)),
            *indent(self.store_words(main, "(first + group)")),
            "}",
        ]
        count = self.write(solve.counts, solve.counts.name, "counts", "true")
        return [
            "int most = 0;",
            "for (int first = 0; first < steps; first += CHUNK) {",
            *indent(body),
            "}",
            "int counts[VECTOR];",
            *each_lane(["counts[k] = most;"]),
            count,
        ]

    def ahead(self, loads: Sequence[Load], count: str, base: str) -> list[str]:
        """Return the lines that issue the loads of several steps."""
        lines, inside = [], []
        for load in loads:
            argument = load.argument
            assert argument is not None
            kind, name = element_type(argument), argument.name
            if argument.packed:
                word = self.vars.array(load.name, "word")
                row = f"{name} + {_parenthesized(base)} / GROUP * {name}_t"
                lines.append(f"{kind} {word}[VECTOR];")
                lines.append(self.read(argument, word, row, "true"))
                continue
            ahead, row = self.vars.array(load.name, "ahead"), f"{name} + t * {name}_t"
            if argument.access is Access.UNIFORM:
                lines.append(f"{kind} {ahead}[{count}];")
                inside.append(f"{ahead}[j] = {name}[t < steps ? t * {name}_t : 0];")
            else:
                lines.append(f"{kind} {ahead}[{count}][VECTOR];")
                inside.append(self.read(argument, f"{ahead}[j]", row, "t < steps"))
        if inside:
            inside = [f"const int t = {base} + j;", *inside]
            lines += [UNROLL, f"for (int j = 0; j < {count}; j++) {{", *indent(inside), "}"]
        return lines

    def steps(self, sweep: Sweep, base: str, index: Mapping[str, str]) -> list[str]:
        """Return the lines of the steps of a group that starts at ``base``."""
        order = "int j = 0; j < GROUP; j++"
        if sweep.backwards:
            order = "int j = GROUP - 1; j >= 0; j--"
        inside = [f"const int t = {base} + j;", *self.step(sweep, index)]
        return [UNROLL, f"for ({order}) {{", *indent(inside), "}"]

    def step(self, sweep: Sweep, index: Mapping[str, str]) -> list[str]:
        """Return the lines of one step of all lanes of a thread."""
        step = sweep.step
        rows = [s for s in step.stores if _is_row(s.argument)]
        written = dict.fromkeys(self.vars.array(store.name, "now") for store in rows)
        lines = [f"{self.vars.real} {array}[VECTOR];" for array in written]
        inside = [*self.step_values(sweep, index), *self.lets(step)]
        inside += dict.fromkeys(self.result(store, step) for store in step.stores)
        inside += self.advance(step.carries, guarded(self.kernel, sweep))
        lines += each_lane(inside)
        for store in rows:
            argument, now = store.argument, self.vars.array(store.name, "now")
            assert argument is not None
            row = f"{argument.name} + t * {argument.name}_t"
            lines.append(self.write(argument, row, now, "t < steps"))
        return lines

    def step_values(self, sweep: Sweep, index: Mapping[str, str]) -> list[str]:
        """Return the lines that give names to the values which a step starts from, for a lane."""
        step, real = sweep.step, self.vars.real
        lines = []
        for load in step.loads:
            kind = "bool" if load.name in step.bools else real
            text = self.loaded(load, index.get(load.name, "j"))
            if text:
                lines.append(f"const {kind} {self.vars.names[load.name]} = {text};")
        for carry in step.carries:
            array = self.vars.array(carry.name, "carry")
            lines.append(f"const {real} {self.vars.names[carry.name]} = {array}[k];")
        return lines

    def loaded(self, load: Load, index: str) -> str:
        """Return the text of a loaded value of a lane; nothing where it has its name already."""
        argument = load.argument
        if load.after:
            return f"{self.vars.array(load.after, 'kept')}[{index} + 1][k]"
        if argument is None:
            return f"{self.vars.array(load.name, 'kept')}[{index}][k]"
        uniform = argument.access is Access.UNIFORM
        if load.name in self.lanes:
            return "" if uniform else f"{self.vars.array(load.name, 'lane')}[k]"
        if argument.packed:
            shift = f"({index})" if argument.role is Role.GUESS else "j"
            return f"({self.vars.array(load.name, 'word')}[k] >> {shift} & 1) != 0"
        if argument.role is Role.GUESS:
            return f"{self.vars.array(load.name, 'kept')}[{index}][k]"
        ahead = f"{self.vars.array(load.name, 'ahead')}[{index}]"
        return f"snncc_real({ahead if uniform else f'{ahead}[k]'})"

    def lets(self, step: Step) -> list[str]:
        """Return the lines of the computations of a step."""
        return [
            f"const {'bool' if let.name in step.bools else self.vars.real}"
            f" {self.vars.names[let.name]} = {self.vars.spell(let.expr)};"
            for let in step.lets
        ]

    def result(self, store: Store, step: Step) -> str:
        """Return the line that puts a value of a lane where it is written or kept."""
        name = self.vars.names[store.name]
        if store.argument is None:
            return f"{self.vars.array(store.name, 'kept')}[j][k] = {name};"
        if store.argument.role is Role.GUESS:
            return keep_found(self.vars, store.name, store.argument)
        if store.argument.packed:
            return f"{self.vars.array(store.name, 'word')}[k] |= (int){name} << j;"
        return f"{self.vars.array(store.name, 'now')}[k] = {self.vars.as_float(store.name, step)};"

    # Carries

    def start(self, carries: Iterable[Carry]) -> list[str]:
        """Return the lines that set carries to their values before the first step."""
        lines, inside = [], []
        for carry in carries:
            array = self.vars.array(carry.name, "carry")
            lines.append(f"{self.vars.real} {array}[VECTOR];")
            inside.append(f"{array}[k] = {self.initial(carry)};")
        return [*lines, *each_lane(inside)]

    def initial(self, carry: Carry) -> str:
        """Return the text of the value of a carry of a lane before the first step."""
        start = self.vars.initial(carry)
        if isinstance(start, Var) and self.lanes[start.name].access is not Access.UNIFORM:
            return f"{self.vars.array(start.name, 'lane')}[k]"
        return self.vars.spell(start)

    def advance(self, carries: Sequence[Carry], held: Iterable[str]) -> list[str]:
        """Return the lines that give carries their values after the step."""
        lines = []
        for carry in carries:
            name, value = self.vars.names[carry.name], self.vars.names[carry.update]
            if carry.update == carry.name:
                continue
            if carry.name in held:
                value = f"t < steps ? {value} : {name}"
            lines.append(f"{self.vars.array(carry.name, 'carry')}[k] = {value};")
        return lines

    def declare_kept(self, step: Step) -> list[str]:
        """Return the lines that declare what the steps of a chunk keep."""
        longer = set(followed(self.kernel))
        return [
            f"{'bool' if store.name in step.bools else self.vars.real}"
            f" {self.vars.array(store.name, 'kept')}"
            f"[CHUNK{' + 1' if store.name in longer else ''}][VECTOR];"
            for store in step.stores
        ]

    def keep_checkpoints(self) -> list[str]:
        """Return the lines of a forward kernel that keep carries at the start of a chunk."""
        checkpoints = self.kernel.checkpoints
        if not checkpoints:
            return []
        inside = [
            self.write(c.argument, _chunk_row(c.argument), self.vars.array(c.name, "carry"), "true")
            for c in checkpoints
        ]
        return ["if (first > 0 && first % CHUNK == 0) {", *indent(inside), "}"]

    def restore(self, carries: Iterable[Carry]) -> list[str]:
        """Return the lines that set carries to their values at the start of a chunk."""
        places = {checkpoint.name: checkpoint.argument for checkpoint in self.kernel.checkpoints}
        lines, inside = [], []
        for carry in carries:
            argument, array = places[carry.name], self.vars.array(carry.name, "carry")
            kept = self.vars.array(carry.name, "restored")
            lines.append(f"{element_type(argument)} {kept}[VECTOR];")
            lines.append(f"{self.vars.real} {array}[VECTOR];")
            lines.append(self.read(argument, kept, _chunk_row(argument), "first > 0"))
            inside.append(
                f"{array}[k] = first > 0 ? snncc_real({kept}[k]) : {self.initial(carry)};"
            )
        return [*lines, *each_lane(inside)]

    # Words and results

    def words(self, sweep: Sweep) -> list[str]:
        """Return the lines that start the words into which bools are packed."""
        return [
            f"int {self.vars.array(store.name, 'word')}[VECTOR] = {{}};"
            for store in packed_stores(sweep)
        ]

    def store_words(self, sweep: Sweep, base: str = "first") -> list[str]:
        """Return the lines that write the words into which bools were packed."""
        lines = []
        for store in packed_stores(sweep):
            argument, word = store.argument, self.vars.array(store.name, "word")
            assert argument is not None
            row = f"{argument.name} + {base} / GROUP * {argument.name}_t"
            lines.append(self.write(argument, row, word, "true"))
        return lines

    def finals(self) -> list[str]:
        """Return the lines that write the carries after the last step."""
        lines: list[str] = []
        for final in self.kernel.main.finals:
            argument, carry = final.argument, self.vars.array(final.name, "carry")
            assert argument is not None
            if argument.folded:
                *_, fold = macros(argument, self.kernel)
                place = f"FIRST_SUM(WIDTH / {fold}), NEXT_SUM"
                lines.append(f"snncc_fold<{fold}>({argument.name}, {carry}, live, {place});")
            else:
                lines.append(self.write(argument, argument.name, carry, "true"))
        return lines


def _is_row(argument: Argument | None) -> TypeGuard[Argument]:
    """Tell whether a step writes to a row of an argument."""
    return argument is not None and not argument.packed and argument.role is not Role.GUESS


def _from_the_end(count: str) -> str:
    """Return the head of a loop over pieces of ``count`` steps, the last one first."""
    start = f"(steps + {count} - 1) / {count} * {count} - {count}"
    return f"for (int first = {start}; first >= 0; first -= {count}) {{"


def _chunk_row(argument: Argument) -> str:
    """Return the addresses of the states at the start of this chunk."""
    return f"{argument.name} + (first / CHUNK - 1) * {argument.name}_t"


def _parenthesized(base: str) -> str:
    return f"({base})" if " " in base else base
