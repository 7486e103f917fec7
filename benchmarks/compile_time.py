"""What the first training step costs: with an empty kernel cache, with a filled one, against T.

Each number comes from a fresh process, since a process that compiled once is warm. The first step
holds everything that happens once: capture, re-rolling, the passes, code generation, the C compiler
(or, with the filled cache, only loading), and the step itself. What is left of it behind the stages
and a later step is called loading. Importing is not part of it. Then two more steps are taken, each
of one time step and one sample more: the first of them records again, the second does not.

With ``--inductor`` the same loop is also given to ``torch.compile``, with an empty cache of its
own; choose lengths for it, because it unrolls the loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

import snncc
from benchmarks import harness
from benchmarks.harness import Record
from benchmarks.network import make_model, training_step

LENGTHS = (10, 100, 1000)
QUICK_LENGTHS = (8, 16)
BATCH = 8
LATER_STEPS = 5


def compile_with(tool: str, model: nn.Module) -> nn.Module:
    """Return the model given to one of the compilers, or as it is."""
    compilers: dict[str, Callable[[nn.Module], nn.Module]] = {
        "snncc": snncc.compile,
        "torch.compile": torch.compile,
    }
    return compilers[tool](model) if tool in compilers else model


def measure_here(tool: str, T: int) -> Record:
    """Time the first step, later ones, and steps of other sizes in this process."""
    model, x, labels = make_model(T, BATCH)
    start = time.perf_counter()
    compiled = compile_with(tool, model)
    step = training_step(compiled, x, labels)
    step()
    first = (time.perf_counter() - start) * 1e3
    later = statistics.median([timed(step) for _ in range(LATER_STEPS)])
    record: Record = {"first_step_ms": first, "later_step_ms": later}
    if isinstance(compiled, snncc.CompiledModule):
        stages = stages_of(compiled, x)
        record |= stages | {"load_ms": first - later - sum(stages.values())}
    for name, more in (("second_sizes_ms", 1), ("third_sizes_ms", 2)):
        _, x, labels = make_model(T + more, BATCH + more)
        record[name] = timed(training_step(compiled, x, labels))
    return record


def timed(step: Callable[[], object]) -> float:
    """Return the milliseconds that a step takes."""
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def stages_of(compiled: snncc.CompiledModule, x: torch.Tensor) -> Record:
    """Return the milliseconds of each stage of a compilation that is done."""
    seconds = compiled.specialize(x).recording.timings.seconds
    alone = {name: seconds[name] * 1e3 for name in ("capture", "reroll", "codegen")}
    passes = sum(seconds.values()) * 1e3 - sum(alone.values())
    order = {"capture": 0.0, "reroll": 0.0, "passes": passes, "codegen": 0.0} | alone
    return {f"{name}_ms": spent for name, spent in order.items()}


def measure(T: int, *, inductor: bool) -> list[Record]:
    """Time the first steps for one length, each in a process of its own."""
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "SNNCC_CACHE_DIR": f"{folder}/snncc",
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        }
        variants = [("eager", "eager"), ("snncc", "empty cache"), ("snncc", "filled cache")]
        if inductor:
            variants.append(("torch.compile", "empty cache"))
        for tool, state in variants:
            command = ("--child", tool, "--lengths", str(T))
            child = harness.run_child("benchmarks.compile_time", *command, environment=environment)
            variant = tool if tool == state else f"{tool}, {state}"
            records.append({"case": f"T={T}", "variant": variant, **child})
    return records


STAGES = ("capture_ms", "reroll_ms", "passes_ms", "codegen_ms", "load_ms")
COLUMNS = {
    "variant": "",
    "first_step_ms": ".0f",
    **dict.fromkeys(STAGES, ".0f"),
    "later_step_ms": ".1f",
    "second_sizes_ms": ".0f",
    "third_sizes_ms": ".1f",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    parser: argparse.ArgumentParser = harness.parser("First training step against its length.")
    parser.add_argument("--lengths", nargs="+", type=int, help="numbers of time steps")
    parser.add_argument("--inductor", action="store_true", help="also torch.compile the loop")
    parser.add_argument("--child", choices=("eager", "snncc", "torch.compile"))
    arguments = parser.parse_args(argv)
    lengths = arguments.lengths or (QUICK_LENGTHS if arguments.quick else LENGTHS)
    if arguments.child:
        print(json.dumps(measure_here(arguments.child, lengths[0])))
        return []
    records: list[Record] = []
    for T in lengths:
        rows = measure(T, inductor=arguments.inductor)
        harness.show(f"T={T}, B={BATCH}", rows, COLUMNS)
        records += rows
    stem = harness.write("compile_time", records, arguments)
    picture = harness.plot_bars(records, stem, "first_step_ms")
    print(f"results: {stem.with_suffix('.json')}, {picture}")
    return records


if __name__ == "__main__":
    main()
