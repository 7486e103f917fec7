"""Write ``docs/performance.md`` from the stored results: ``python -m benchmarks.report``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import report_gpu
from benchmarks.tables import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"

HEAD = """# Performance

How fast snncc is, against what, and under which conditions; `make bench` measures your machine.
Variants of a case take turns in one process with the default allocator; times are medians.
Compare ratios within a table: times differ from machine to machine and from run to run.
`python -m benchmarks.report` writes this page from `benchmarks/results`; every figure was measured.
"""
# The question that each section answers.
QUESTIONS = {
    "neuron": "How fast is one layer of neurons, and how far from the bandwidth of memory?",
    "network": "How fast is a training step of a network, and how much memory does it take?",
    "libraries": "What do networks of SpikingJelly and snnTorch gain?",
    "recurrent": "What do recurrent weights cost?",
    "compile_time": "How long does the first call take?",
    "latency": "How long does one step take at batch one, in Python, C and ONNX?",
    "online": "How long does a training step take that ends at its time step?",
    "whole_numbers": "What do 8 and 16 bits cost and save?",
    "parallel": "How does the time of neurons without reset grow with the sequence?",
    "forms": "When do chunks of time pay, and how well does `auto` choose?",
    "hard_reset": "When does `parallel_reset` pay, forward?",
    "hard_reset_training": "When does `parallel_reset` pay in training?",
    "sweeps": "How many sweeps does `fpt` take, and how wrong are a few?",
    "devices": "What does splitting time over processes gain?",
    "asynchronous": "What does a queue of spikes cost?",
}
NEURON = """One layer of leaky integrate-and-fire neurons with the arctangent surrogate.
"Of copy" is the time that the unavoidable bytes take at the bandwidth of `Tensor.copy_` in the
same rounds (20 bytes per neuron-step for float32 training), over the time of the variant.
That copy runs, like snncc, right after eager mode, which leaves other data in the caches; "copy
again" runs right after a copy and shows how much of the input the caches hold.
"""
NETWORK = """One training step of a 700-128-128-128-20 network, without the optimizer.
"Over products" is the time over that of the network's matrix products alone.
Memory is what a fresh process adds to its start; the first step records and compiles.
"""
RECURRENT = """One training step of a 40-128-20 network; the hidden layer hears its own last spikes.
"Over products" is the time over that of the products of the plain network, taken over all steps
at once, which a recurrence cannot do with the product of its feedback.
"""
COMPILE = """The first training step of that network in a fresh process, against T.
Second and third sizes are the first steps with one and two more time steps and samples: the second
records again, with two short trials, and from the third on nothing is recorded.
"""
LATENCY = """One step of a 700-128-128-20 network at batch one, on one thread.
The C library skips the weights of inputs that are zero; the times include its own loop.
The ONNX models are exported from the same network and run by onnxruntime: step by step from Python,
and the whole sequence in one call.
An empty call takes and returns what a step does and computes nothing: what is above is the step.
"""
ONLINE = """Training with a gradient after each step of a 700-128-128-20 network, or of two
convolutions and a linear layer, without the optimizer: serial code whose states are detached, a
stream of mode `online`, all steps in one call of it, and neurons of other libraries.
"Kept" is the most that autograd holds for backward at once.  A stream keeps a recorded step in
memory of its own, which is not counted.
"""
WHOLE_NUMBERS = """C libraries of two networks at batch one, on one thread, compiled with -O3 for
any x86-64: in floats, and in [whole numbers](export.md#whole-numbers).
"Spikes that differ" are those of the model that a library does not have, or the other way round,
among all spikes and silences of the example, "spikes".
"""
PARALLEL = """One layer of 64 neurons without reset, one sample, forward and backward.
"""
FORMS = """Training steps of one layer, from one lane to many: fused time, chunks of time side by
side (backward; forward too where no spike changes a state), and parallel resets.
"Estimated" is what mode `auto` expects at prices that were fitted on these very runs: for
each case the one of three passes that took least.
"""
HARD_RESET_TRAINING = """Training steps of that layer; backward runs by chunks as well where
its sizes say that this pays. "Backward scan" is mode `scan`, whose forward is fused time here.
"""
HARD_RESET = """One layer of LIF neurons with a decay of 0.9 and hard reset, one sample: forward,
and training steps, in which backward runs by chunks where its sizes say that this pays.
Chunks of time at once, over the same kernels in one run over all steps; "again" tells how many
chunks had to run again, and how many steps in serial order after that.
"""
SWEEPS = """Sweeps of one layer of LIF neurons with soft reset, on normal currents.
The first rows are times of a training step; chunks have 32 steps.
"Wrong" is the share of spikes that are not the serial ones.
"""
DEVICES = """Training steps whose time is split over two processes of one thread each, on two
cores; the states of a layer of neurons are handed over in M blocks ([processes.md](processes.md)).
"Formula" is what one process of one thread and a hand-over make of the cost model, in each
direction; a hand-over here is one to the next rank and one back.
"""
ASYNCHRONOUS = """A chain of four layers in mode `async`, some spikes at a time, against the same
layers in fused time: forward, and training steps without the optimizer.
Spikes and forward steps are those of one sample.  "Reference" is the same queue in torch operators
on all neurons at once; its results are those of the kernels, bit by bit, or nothing is timed.
"""
LIBRARIES = """One training step of networks of library neurons and layers, without the optimizer.
"Fastest / this" is the time of the library's own fastest path over that of the variant.
"Over products" is the time over that of the convolutions and linear layers as torch does them,
"share of products" that of the same products as compiled code does them over the time of a step.
"""
COLUMNS = {
    "case": "case",
    "variant": "variant",
    "median_ms": "median ms",
    "eager_over_this": "eager / this",
    "fastest_over_this": "fastest / this",
    "of_copy": "of copy",
    "over_products": "over products",
    "products_share": "share of products",
    "first_step_mib": "first step MiB",
    "peak_mib": "peak MiB",
    "step_us": "us a step",
    "kept_kib": "kept KiB",
    "psn_over_this": "PSN / this",
    "spike_rate": "spikes a step",
    "sweeps_of_a_chunk": "sweeps of a chunk",
    "sweeps_of_all_steps": "sweeps of all steps",
    "wrong_after_3": "wrong after 3",
    **{f"wrong_at_decay_{d}": f"wrong, decay {d}" for d in (0.25, 0.5, 0.9, 0.99, 1.0)},
    "ns_per_neuron_step": "ns a neuron-step",
    "fused_over_this": "fused / this",
    "float_over_this": "float / this",
    "estimated_ms": "estimated ms",
    "one_over_this": "1 process, 1 thread / this",
    "formula_ms": "formula ms",
    "chosen_over_best_mean": "chosen / best, mean",
    "chosen_over_best_worst": "chosen / best, worst",
    "rate": "spikes a step",
    "again": "again",
    "state_bytes": "state B",
    "weight_bytes": "weights B",
    "work_bytes": "work B",
    "code_bytes": "code B",
    "spikes": "spikes",
    "forward_steps": "forward steps",
    "events_per_second": "events a second",
    "archive_bytes": "archive B",
    "first_step_ms": "first step ms",
    "capture_ms": "capture ms",
    "reroll_ms": "re-roll ms",
    "passes_ms": "passes ms",
    "codegen_ms": "code ms",
    "load_ms": "load ms",
    "later_step_ms": "later step ms",
    "second_sizes_ms": "second sizes ms",
    "third_sizes_ms": "third sizes ms",
    "spikes_differ": "spikes that differ",
    "skipped": "note",
}
_SHARE = "wrong_at_decay_0.5"


def main() -> None:
    """Write the page."""
    # What came of the cases of compatibility.md is no measurement.
    folders = sorted(p for p in RESULTS.iterdir() if p.is_dir() and p.name != "compatibility")
    parts = [HEAD, contents(folders)]
    for folder in folders:
        for name, text in (
            ("neuron", NEURON),
            ("network", NETWORK),
            ("libraries", LIBRARIES),
            ("recurrent", RECURRENT),
            ("compile_time", COMPILE),
            ("latency", LATENCY),
            ("online", ONLINE),
            ("whole_numbers", WHOLE_NUMBERS),
            ("parallel", PARALLEL),
            ("forms", FORMS),
            ("hard_reset", HARD_RESET),
            ("hard_reset_training", HARD_RESET_TRAINING),
            ("sweeps", SWEEPS),
            ("devices", DEVICES),
            ("asynchronous", ASYNCHRONOUS),
        ):
            file = folder / f"{name}.json"
            if file.exists():
                result = json.loads(file.read_text(encoding="utf-8"))
                parts += [f"## {name.replace('_', ' ')}, {folder.name}\n", text]
                parts += [machine(result["machine"]), *tables(result["records"])]
        parts += report_gpu.sections(folder)
    parts += [report_gpu.not_measured(RESULTS)]
    PAGE.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def contents(folders: list[Path]) -> str:
    """Return which question is answered where."""
    lines = ["| question | section |", "|---|---|"]
    for name, question in QUESTIONS.items():
        found = [folder.name for folder in folders if (folder / f"{name}.json").exists()]
        links = [f"[{where}](#{name.replace('_', '-')}-{where})" for where in found]
        lines += [f"| {question} | {', '.join(links)} |"] if found else []
    links = [
        f"[{folder.name}](#gpu-{folder.name})" for folder in folders if report_gpu.found(folder)
    ]
    lines += [f"| What was measured on a GPU? | {', '.join(links)} |"] if links else []
    return "\n".join(lines) + "\n"


def machine(facts: dict[str, Any]) -> str:
    """Return one paragraph on where and when the figures were measured."""
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    text = f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, {versions}; "
    text += f"{facts['date'][:10]}, load before the run {facts['load_average_at_start']}.\n"
    return text


def tables(records: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table for each kind of records that follow one another: of times, counts, shares."""
    for _, group in groupby(records, key=lambda r: ("sweeps_of_all_steps" in r, _SHARE in r)):
        yield table(list(group), COLUMNS)


if __name__ == "__main__":
    main()
