"""What the benchmarks share: the order of the runs, the machine, the files, the tables, the plots.

Method. The variants of a case run in turn, round after round, so that a disturbance hits all of
them; medians are compared, and ratios are formed only between numbers of the same run. Nothing is
subtracted. A variant that cannot run is listed with the reason. Each case has a process of its own,
because the allocator of the C library remembers: what a case cost by default was seen to depend on
which cases ran before it. ``--malloc reused`` takes page faults on fresh memory out of the picture.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from rich.console import Console
from rich.table import Table

mpl.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
# Taken on import, before the benchmark itself is the load.
LOAD_AT_START = os.getloadavg()[0]
BUSY_SHARE = 0.25  # of the cores
PACKAGES = ("snncc", "torch", "numpy", "spikingjelly", "snntorch", "onnxruntime")

# glibc gives large buffers back to the system and takes fresh pages for the next ones; with these
# settings it keeps them, so that page faults are not part of the measurement.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}

Record = dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A variant that was not measured, and why."""

    reason: str


@dataclass(frozen=True)
class Budget:
    """How long a case may take: rounds, and seconds after which no new round starts."""

    warmup: int = 2
    rounds: int = 15
    least_rounds: int = 3
    seconds: float = 30.0


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    result.add_argument("--seconds", type=float, help="time per case after which no round starts")
    result.add_argument("--machine", help="name of the folder below the results; default: the CPU")
    result.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    result.add_argument(
        "--malloc",
        choices=("default", "reused"),
        default="default",
        help="'reused' makes the C library keep freed memory",
    )
    result.add_argument("--case", type=int, help="only this case; print its records as JSON")
    return result


def budget(arguments: argparse.Namespace) -> Budget:
    """Return the time per case that the command line asks for."""
    if arguments.quick:
        return Budget(warmup=1, rounds=3, least_rounds=2, seconds=arguments.seconds or 3.0)
    return Budget(seconds=arguments.seconds or Budget.seconds)


def run_case(module: str, case: int, arguments: argparse.Namespace) -> list[Record]:
    """Run one case of a benchmark in a fresh process and return its records."""
    command = ["--case", str(case)]
    for flag in ("quick", "inductor"):
        if getattr(arguments, flag, False):
            command.append(f"--{flag}")
    if arguments.seconds:
        command += ["--seconds", str(arguments.seconds)]
    environment = KEEP_MEMORY if arguments.malloc == "reused" else {}
    records: list[Record] = run_child(module, *command, environment=environment)["records"]
    return records


def run_parts(
    name: str,
    parts: Sequence[Callable[[], list[Record]]],
    arguments: argparse.Namespace,
    columns: Mapping[str, str],
    apart: str | None = None,
) -> list[Record]:
    """Run each part of a benchmark in a process of its own, print the tables, write the results.

    Args:
        name: Its module in ``benchmarks``, and the name of the results.
        parts: What a process runs; in one that was started for a part, that part runs.
        arguments: The command line.
        columns: The columns of the tables, and how their values are spelled.
        apart: Cases that end with this word have results of their own, ``name_apart``.
    """
    if arguments.case is not None:
        rows = parts[arguments.case]()
        print(json.dumps({"records": rows}))
        return rows
    records: list[Record] = []
    for number in range(len(parts)):
        rows = run_case(f"benchmarks.{name}", number, arguments)
        show(
            rows[0]["case"],
            rows,
            {c: how for c, how in columns.items() if any(c in r for r in rows)},
        )
        records += rows
    others = [r for r in records if apart is not None and r["case"].endswith(apart)]
    results = {name: [r for r in records if r not in others], f"{name}_{apart}": others}
    for stem in (write(key, rows, arguments) for key, rows in results.items() if rows):
        print(f"results: {stem.with_suffix('.json')}")
    return records


def interleave(
    variants: Mapping[str, Callable[[], object]],
    budget: Budget,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Run the variants in turn and return the seconds of each run.

    Args:
        variants: What is timed, in this order.
        budget: How often.
        before: What runs untimed right before a variant, where it is not the variant before it.
    """
    before = before or {}
    for run in variants.values():
        for _ in range(budget.warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    deadline = time.perf_counter() + budget.seconds
    for done in range(budget.rounds):
        if done >= budget.least_rounds and time.perf_counter() > deadline:
            break
        for name, run in variants.items():
            before.get(name, lambda: None)()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(seconds: Sequence[float]) -> Record:
    """Return median, minimum and number of rounds of one variant."""
    return {
        "median_ms": statistics.median(seconds) * 1e3,
        "min_ms": min(seconds) * 1e3,
        "rounds": len(seconds),
    }


def describe_machine() -> Record:
    """Return processor, load, versions and date of this run."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average_at_start": round(LOAD_AT_START, 2),
        "busy": is_busy(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": first_line(os.environ.get("CC", "cc"), "--version"),
        "commit": first_line("git", "rev-parse", "HEAD"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in PACKAGES},
    }


def cpu_name() -> str:
    """Return the model of the processor as the system spells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def first_line(*command: str) -> str | None:
    """Return the first line a command prints, or None where it does not run."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(name: str, records: Sequence[Record], arguments: argparse.Namespace) -> Path:
    """Write the records of a benchmark as JSON and return the path without its suffix."""
    machine = describe_machine() | {"malloc": arguments.malloc}
    stem = stem_of(name, arguments)
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"benchmark": name, "machine": machine, "records": list(records)}, indent=1)
    stem.with_suffix(".json").write_text(text + "\n")
    if machine["busy"]:
        print(f"The machine was busy (load {LOAD_AT_START:.1f}): these ratios mean nothing.")
    return stem


def stem_of(name: str, arguments: argparse.Namespace) -> Path:
    """Return the path of the results of a benchmark without its suffix."""
    default = f"{cpu_name()} {os.cpu_count()} cores"
    folder = re.sub(r"[^a-z0-9]+", "-", (arguments.machine or default).lower()).strip("-")
    kept = "-memory-reused" if arguments.malloc == "reused" else ""
    found: Path = arguments.results / folder
    return found / f"{name}{kept}{'-quick' if arguments.quick else ''}"


def stored(name: str, arguments: argparse.Namespace) -> list[Record]:
    """Return the records that a benchmark has written before, or none."""
    file = stem_of(name, arguments).with_suffix(".json")
    if not file.exists():
        return []
    records: list[Record] = json.loads(file.read_text())["records"]
    return records


def is_busy() -> bool:
    """Tell whether other work ran when this process started.

    Eager mode takes a small step on all cores thousands of times, so it suffers more from a core
    that is taken than one long kernel does: a busy machine flatters whatever is compared with it.
    """
    return BUSY_SHARE * (os.cpu_count() or 1) < LOAD_AT_START


def show(title: str, records: Sequence[Record], columns: Mapping[str, str]) -> None:
    """Print records as a table; ``columns`` maps a key to the format of its values."""
    table = Table(title=title)
    for key in columns:
        table.add_column(key, justify="left" if columns[key] == "" else "right")
    for record in records:
        cells = [spell(record.get(key), layout) for key, layout in columns.items()]
        if "skipped" in record:
            cells[-1] = f"skipped: {record['skipped']}"
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def spell(value: object, layout: str) -> str:
    """Format one cell; a missing value is empty."""
    return "" if value is None else format(value, layout)


def plot_bars(records: Sequence[Record], stem: Path, value: str) -> Path:
    """Draw a panel per case with a bar per variant, and return the path of the picture."""
    measured = [record for record in records if value in record]
    cases = list(dict.fromkeys(record["case"] for record in measured))
    figure, axes = plt.subplots(
        len(cases), 1, figsize=(8, 1 + 1.5 * len(cases)), squeeze=False, layout="constrained"
    )
    for axis, case in zip(axes[:, 0], cases, strict=True):
        rows = [record for record in measured if record["case"] == case]
        bars = axis.barh([row["variant"] for row in rows], [row[value] for row in rows])
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axis.margins(x=0.12)
        axis.invert_yaxis()
        axis.set_title(case, fontsize=9)
    axes[-1, 0].set_xlabel(value.replace("_", " "))
    path = stem.with_suffix(".png")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def run_child(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Record:
    """Run a benchmark module in a fresh process and return the JSON of its last line.

    Raises:
        RuntimeError: The process failed; the message holds the end of what it said.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | dict(environment or {}),
        cwd=Path(__file__).parents[1],
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record
