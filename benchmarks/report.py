"""Write ``docs/performance.md`` from the stored results: ``python -m benchmarks.report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"

HEAD = """# Performance

Written by `python -m benchmarks.report` from `benchmarks/results`; every figure was measured.
Variants of a case take turns in one process with the default allocator; times are medians.
Compare ratios within a table: times differ from machine to machine and from run to run.
"""
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
"""
PARALLEL = """One layer of 64 neurons without reset, one sample, forward and backward.
"""
LIBRARIES = """One training step of networks of library neurons and layers, without the optimizer.
"Fastest / this" is the time of the library's own fastest path over that of the variant.
"Over products" is the time over that of the convolutions and linear layers as torch does them.
"""


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    for folder in sorted(p for p in RESULTS.iterdir() if p.is_dir()):
        for name, text in (
            ("neuron", NEURON),
            ("network", NETWORK),
            ("libraries", LIBRARIES),
            ("recurrent", RECURRENT),
            ("compile_time", COMPILE),
            ("latency", LATENCY),
            ("parallel", PARALLEL),
        ):
            file = folder / f"{name}.json"
            if file.exists():
                result = json.loads(file.read_text(encoding="utf-8"))
                parts += [f"## {name.replace('_', ' ')}, {folder.name}\n", text]
                parts += [machine(result["machine"]), table(result["records"])]
    PAGE.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def machine(facts: dict[str, Any]) -> str:
    """Return one paragraph on where and when the figures were measured."""
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    text = f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, {versions}; "
    text += f"{facts['date'][:10]}, load before the run {facts['load_average_at_start']}.\n"
    return text


def table(records: list[dict[str, Any]]) -> str:
    """Return the records as a Markdown table with the columns that any record has."""
    columns = [c for c in COLUMNS if any(c in r for r in records)]
    lines = ["| " + " | ".join(COLUMNS[c] for c in columns) + " |"]
    lines.append("|" + "---|" * len(columns))
    lines += ["| " + " | ".join(cell(r, c) for c in columns) + " |" for r in records]
    return "\n".join(lines) + "\n"


COLUMNS = {
    "case": "case",
    "variant": "variant",
    "median_ms": "median ms",
    "eager_over_this": "eager / this",
    "fastest_over_this": "fastest / this",
    "of_copy": "of copy",
    "over_products": "over products",
    "first_step_mib": "first step MiB",
    "peak_mib": "peak MiB",
    "step_us": "us a step",
    "psn_over_this": "PSN / this",
    "state_bytes": "state B",
    "weight_bytes": "weights B",
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


def cell(record: dict[str, Any], column: str) -> str:
    """Return one cell."""
    value = record.get(column)
    if value is None:
        return ""
    if column == "of_copy":
        return f"{100 * value:.0f} %"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    main()
