"""Everything that is measured on a GPU, in one call of less than nine minutes.

    python3 -m benchmarks.gpu

It needs a GPU, torch 2.11 and Triton 3.6 or newer, and what snncc needs (sympy, networkx, rich,
typer); pytest for the tests, SpikingJelly for its share.  What is not there is left out, and the
results say so.  Pure Python packages can be carried as wheels: ``--wheels FOLDER`` unpacks them.

Each part is a process of its own, or several that share its cases.  First all of them prepare at
once, on all cores: they run through their cases and leave kernels in caches, while the tests run.
Then one after another measures, alone on the machine, with a share of the time.  What was measured
is in a file before it goes on, so that a process which takes too long, or fails, loses only what it
did not reach.  On fewer than four cores nothing is prepared.

Results are written after each part, below ``benchmarks/results``, or all into one file where
``--together`` or ``$OUT`` says so; ``--split FILE`` takes that apart.  What the tests and processes
said is beside them.  ``python -m benchmarks.report`` makes tables.  ``--rehearse`` runs all parts
at tiny sizes on the CPU, in Triton's interpreter, to show that every line of it works: its times
mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.device import networks, neurons, published, recurrent, sweeps
from benchmarks.device.claims import CLAIMS
from benchmarks.device.clock import Case, Clock, Record
from benchmarks.device.machine import ROOT, cores, describe_device
from benchmarks.device.suite import REPORTING, Suite
from benchmarks.device.workers import GRACE, Share, Worker, work

SECONDS = 510  # all parts together: nine minutes less a margin for starting and writing
PREPARATION = (0.4, 140.0)  # of the time, and seconds, at most
MOST = 8  # processes for a part, however many cores there are: all share one GPU's memory
AGAIN = 40.0  # seconds left at the end for which it is worth to run tests again
LAST_CASES = 10.0  # seconds for those that are not prepared then to end the case they are in


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the benchmark.

    Attributes:
        cases: Yields what it measures; None stands for the tests.
        seconds: Its share of the time; what a part leaves over goes to those after it.
        workers: How many processes share its cases, at most.
        fresh: Whether it is not prepared, with caches that are empty at its start.
    """

    cases: Callable[[Clock], Iterator[Case]] | None
    seconds: float
    workers: int = 1
    fresh: bool = False


# The order is that of importance: if the time runs out, what is last is left out.
PARTS = {
    "tests": Part(None, 60),
    "values": Part(neurons.values, 35, workers=3),
    "bandwidth": Part(neurons.bandwidth, 25, workers=2),
    "training": Part(neurons.training, 50, workers=6),
    "custom": Part(neurons.custom, 20, workers=3),
    "host": Part(neurons.host, 20, workers=2),
    "resnet": Part(networks.resnet, 50, workers=2),
    "first_call": Part(neurons.first_call, 25, fresh=True),
    "kept": Part(networks.kept, 25, workers=2),
    "recurrent": Part(recurrent.recurrent, 25, workers=3),
    "published": Part(published.published, 60, workers=4),
    "sweeps": Part(sweeps.sweeps, 25, workers=2),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print their tables and write the results; return 1 if a part failed."""
    arguments = _parser().parse_args(argv)
    if arguments.part:
        cases = PARTS[arguments.part].cases
        assert cases is not None
        share = Share(arguments.part, *arguments.share)
        options = {"prepare": arguments.prepare, "rehearse": arguments.rehearse}
        work(cases, share, arguments.file, **options)
        return 0
    if arguments.split:
        content = json.loads(arguments.split.read_text())
        print(f"results: {_write(content, arguments)}")
        return 0
    if not arguments.rehearse and not torch.cuda.is_available():
        print("There is no GPU here. '--rehearse' runs everything on the CPU, at tiny sizes.")
        return 2
    names = arguments.parts.split(",") if arguments.parts else list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"There is no part '{unknown[0]}'; there are: {', '.join(PARTS)}.")
        return 2
    return _measure_all(names, arguments)


def _measure_all(names: Sequence[str], arguments: argparse.Namespace) -> int:
    results: dict[str, Record] = {}
    with tempfile.TemporaryDirectory() as scratch:
        wheels = _unpack(arguments.wheels, Path(scratch) / "wheels")
        sys.path[:0] = wheels  # versions are read from there
        machine = describe_device(rehearsal=arguments.rehearse)
        folder = _folder(machine, arguments)
        session = Session(arguments, Path(scratch), wheels, folder)
        with contextlib.closing(session):
            for name, result in session.run(names):
                results[name] = {"benchmark": f"gpu_{name}", "machine": machine} | result
                where = _write(results, arguments)
    failed = [name for name, result in results.items() if result["failed"]]
    for name in PARTS:
        if name in results:
            _show(name, results[name]["records"])
    for claim in (claim for claim in CLAIMS if claim.part in results):
        figure = claim.figure(_measured(results[claim.part]["records"]))
        print(f"{claim.text}: {figure or 'not measured'}")
    session.show_time_line()
    print(f"\nresults: {where}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description="All measurements on a GPU, in one call.")
    result.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    result.add_argument("--parts", help=f"some of {', '.join(PARTS)}, with commas between them")
    result.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    result.add_argument("--workers", type=int, help="for a part, at most; 0: nothing is prepared")
    result.add_argument("--machine", help="name of the folder of results; default: the device")
    result.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    together = Path(os.environ["OUT"]) / "gpu.json" if os.environ.get("OUT") else None
    result.add_argument("--together", type=Path, default=together, help="one file for all results")
    result.add_argument("--split", type=Path, help="such a file, to take apart into results")
    result.add_argument("--wheels", type=Path, help="a folder of wheels of pure Python packages")
    for hidden in ("--part", "--file"):
        result.add_argument(
            hidden, type=Path if hidden == "--file" else str, help=argparse.SUPPRESS
        )
    result.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)
    result.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    return result


class Session:
    """One run of some parts.

    Args:
        arguments: Those of the command.
        scratch: A folder for caches and files.
        wheels: Folders that packages were unpacked into.
        folder: Where what tests and processes say is kept.
    """

    def __init__(
        self, arguments: argparse.Namespace, scratch: Path, wheels: Sequence[str], folder: Path
    ) -> None:
        self._seconds, self._rehearse = arguments.seconds, arguments.rehearse
        self._scratch, self._wheels = scratch, wheels
        self._start = time.monotonic()
        self._workers: dict[str, list[Worker]] = {}
        self._lines: list[str] = []
        most = min(cores() // 2, MOST) if cores() >= 4 and not arguments.rehearse else 0
        self._most = most if arguments.workers is None else arguments.workers
        self._output = folder / "gpu_output.txt"
        tests = 3 * self._most // 4  # of 16 cores six, which takes as long as preparing the parts
        self._suite = Suite(ROOT, scratch, folder / "gpu_tests.txt", tests)
        for file in (self._output, folder / "gpu_tests.txt"):
            file.unlink(missing_ok=True)

    @property
    def _passed(self) -> float:
        return time.monotonic() - self._start

    def _say(self, text: str) -> None:
        self._lines.append(f"{self._passed:6.1f} s  {text}")
        print(self._lines[-1], flush=True)

    def show_time_line(self) -> None:
        """Print again what took how long."""
        print("\ntime line", *self._lines, sep="\n")

    def run(self, names: Sequence[str]) -> Iterator[tuple[str, Record]]:
        """Prepare all parts, run the tests, and yield the results of one part after another."""
        for name in names:
            if PARTS[name].cases:
                self._workers[name] = self._shares(name)
        tests = "tests" in names
        if self._most:
            yield from self._prepare(tests)
            names = [name for name in names if name != "tests"]
        left = self._seconds - GRACE - self._passed
        due, all_shares = self._passed, sum(PARTS[name].seconds for name in names)
        for name in names:
            due += left * PARTS[name].seconds / all_shares
            if name == "tests":
                self._suite.start(self._environment(name))
                yield name, self._test(due - self._passed)
            else:
                yield name, self._measure(name, due)
        left = self._seconds - self._passed
        if tests and not self._suite.passed and left > AGAIN:
            self._say("tests that have not passed run again, alone")
            self._suite.start(self._environment("tests"))
            yield "tests", self._test(left - REPORTING)

    def _test(self, seconds: float) -> Record:
        result = self._suite.finish(seconds)
        self._say(f"tests: {result['seconds']:.1f} s")
        return result

    def _shares(self, name: str) -> list[Worker]:
        count = max(1, min(PARTS[name].workers, self._most))
        command = [sys.executable, "-m", "benchmarks.gpu"]
        command += ["--rehearse"] if self._rehearse else []
        environment = self._environment(name)
        return [
            Worker(Share(name, number, count), command, environment, self._scratch)
            for number in range(count)
        ]

    def _environment(self, name: str) -> dict[str, str]:
        before = os.environ.get("PYTHONPATH")
        paths = [str(ROOT), *self._wheels, *([before] if before else [])]
        kept = self._scratch / (name if PARTS[name].fresh else "kernels")
        result = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "TRITON_CACHE_DIR": f"{kept}/triton",
            "SNNCC_CACHE_DIR": f"{kept}/snncc",
            "TORCHINDUCTOR_CACHE_DIR": f"{kept}/inductor",
        }
        if self._most:  # a process for each core: no threads beside it
            result |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "2"}
        if self._rehearse:
            result["TRITON_INTERPRET"] = "1"
        return result

    def _prepare(self, tests: bool) -> Iterator[tuple[str, Record]]:
        """Start all workers and the tests, and wait until they are ready or the time is over."""
        share, most = PREPARATION
        until = self._start + min(share * self._seconds, most)
        if tests:
            self._suite.start(self._environment("tests"))
        busy: set[Worker] = set()
        for name, workers in self._workers.items():
            for worker in workers:
                worker.start(prepare=not PARTS[name].fresh)
                busy.add(worker)
        self._say(f"{len(busy)} processes prepare, for {until - time.monotonic():.0f} s at most")
        busy = self._wait(busy, until)
        for worker in busy:
            worker.hurry()
        if tests:
            yield "tests", self._test(0.0)
        for worker in self._wait(busy, until + LAST_CASES):
            self._say(f"{worker.share} is still preparing")

    def _wait(self, busy: set[Worker], until: float) -> set[Worker]:
        """Wait for workers and tests; return the workers that are not ready."""
        while time.monotonic() < until and (busy or self._suite.running):
            for worker in [worker for worker in busy if worker.waiting]:
                self._say(f"{worker.share} is ready")
                busy.remove(worker)
            time.sleep(0.05)
        return busy

    def _measure(self, name: str, due: float) -> Record:
        """Measure a part, one worker after another, ready ones first; return what they wrote."""
        start = self._passed
        self._say(f"{name}: up to {due - start:.0f} s")
        found: list[tuple[int, Record]] = []
        errors = []
        workers = sorted(self._workers[name], key=lambda worker: not worker.waiting)
        for left, worker in zip(range(len(workers), 0, -1), workers, strict=True):
            records, error = worker.measure((due - self._passed) / left)
            found += records
            errors += [error] if error else []
            with self._output.open("a") as output:
                output.write(f"--- {worker.share}\n{worker.said}\n")
        for error in errors:
            print(error)
        records = [record for _, record in sorted(found, key=lambda pair: pair[0])]
        failed = bool(errors) or any(record.pop("error", False) for record in records)
        self._say(f"{name}: {self._passed - start:.1f} s")
        return {"seconds": self._passed - start, "failed": failed, "records": records}

    def close(self) -> None:
        """End all processes."""
        self._suite.end()
        for worker in (worker for workers in self._workers.values() for worker in workers):
            worker.end()


def _unpack(folder: Path | None, into: Path) -> list[str]:
    """Unpack wheels and return the folder that then holds their packages."""
    if folder is None:
        return []
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    return [str(into)]


def _folder(machine: Record, arguments: argparse.Namespace) -> Path:
    """Return the folder of results, which exists."""
    if arguments.together and not arguments.split:
        folder: Path = arguments.together.parent
    else:
        default = "rehearsal" if machine["rehearsal"] else machine["device"]
        name = re.sub(r"[^a-z0-9]+", "-", (arguments.machine or default).lower()).strip("-")
        folder = arguments.results / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(results: dict[str, Record], arguments: argparse.Namespace) -> Path:
    """Write a file for each part, or one for all; return their folder, or the file."""
    if arguments.together and not arguments.split:
        file: Path = arguments.together
        file.write_text(json.dumps(results, indent=1) + "\n")
        return file
    folder = _folder(next(iter(results.values()))["machine"], arguments)
    for part, result in results.items():
        (folder / f"gpu_{part}.json").write_text(json.dumps(result, indent=1) + "\n")
    return folder


def _measured(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if "skipped" not in record]


_SHOWN = {
    "case": "", "variant": "", "median_ms": ".3f", "host_ms": ".3f", "kernels_ms": ".3f",
    "host_us": ".0f", "of_copy": ".1%", "gigabytes_per_second": ".0f", "device_over_snncc": ".2f",
    "host_over_snncc": ".2f", "kernels_over_snncc": ".2f", "peak_mib": ".0f",
    "prepared_call_ms": ".0f", "lanes": "d", "first_call_ms": ".0f", "compiled": "d",
    "spikes_differ": "d", "differ_from_cpu": "d", "gradient_difference": ".1e", "passed": "d",
    "failed": "d", "skipped": "",
}  # fmt: skip


def _show(name: str, records: Sequence[Record]) -> None:
    """Print the records of a part as a table of plain text."""
    columns = {key: form for key, form in _SHOWN.items() if any(key in r for r in records)}
    rows = [list(columns)]
    for record in records:
        values = ((record.get(key), form) for key, form in columns.items())
        rows.append(["" if value is None else format(value, form) for value, form in values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{name}")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
