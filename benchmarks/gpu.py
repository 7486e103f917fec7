"""Everything that is measured on a GPU, in one call of less than nine minutes.

    python3 -m benchmarks.gpu

It needs a GPU, torch 2.11 and Triton 3.6 or newer, and what snncc needs (sympy, networkx, rich,
typer); pytest for the tests, SpikingJelly for its share.  What is not there is left out, and the
results say so.  Pure Python packages can be carried as wheels: ``--wheels FOLDER`` unpacks them.

Each part is a process of its own with a share of the time; what it measured is in a file before it
goes on, so that one which takes too long, or fails, loses only what it did not reach.  Results are
written after each part, below ``benchmarks/results``, or all into one file where ``--together`` or
``$OUT`` says so; ``--split FILE`` takes that apart.  ``python -m benchmarks.report`` makes tables.
``--rehearse`` runs all parts at tiny sizes on the CPU, in Triton's interpreter, to show that every
line of it works: its times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.device import networks, neurons, published, recurrent, sweeps
from benchmarks.device.claims import CLAIMS
from benchmarks.device.clock import Clock, OutOfTimeError, Record

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 510  # all parts together: nine minutes less a margin for starting and writing
GRACE = 4  # seconds from the deadline of a part to its end by force
TESTS = ("tests/gpu/test_device.py", "tests/gpu/test_cuda_device.py")
PACKAGES = ("snncc", "torch", "triton", "numpy", "spikingjelly", "pytest")


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the benchmark.

    Attributes:
        run: Yields its records; None stands for the tests.
        seconds: Its share of the time; what a part leaves over goes to those after it.
        fresh: Whether caches of kernels are empty at its start.
    """

    run: Callable[[Clock], Iterator[Record]] | None
    seconds: float
    fresh: bool = False


# The order is that of importance: if the time runs out, what is last is left out.
PARTS = {
    "values": Part(neurons.values, 50),
    "bandwidth": Part(neurons.bandwidth, 65),
    "training": Part(neurons.training, 70),
    "custom": Part(neurons.custom, 45),
    "first_call": Part(neurons.first_call, 35, fresh=True),
    "recurrent": Part(recurrent.recurrent, 40),
    "resnet": Part(networks.resnet, 70),
    "tests": Part(None, 60),
    "published": Part(published.published, 45),
    "sweeps": Part(sweeps.sweeps, 30),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print their tables and write the results; return 1 if a part failed."""
    arguments = _parser().parse_args(argv)
    if arguments.part:
        _run_part(arguments)
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
    results: dict[str, Record] = {}
    with tempfile.TemporaryDirectory() as scratch:
        machine = describe_device(rehearsal=arguments.rehearse)
        for name, result in _run_all(names, arguments, Path(scratch)):
            results[name] = {"benchmark": f"gpu_{name}", "machine": machine} | result
            where = _write(results, arguments)
    failed = [name for name, result in results.items() if result["failed"]]
    for name, result in results.items():
        _show(name, result["records"])
    for claim in (claim for claim in CLAIMS if claim.part in results):
        figure = claim.figure(_measured(results[claim.part]["records"]))
        print(f"{claim.text}: {figure or 'not measured'}")
    print(f"\nresults: {where}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description="All measurements on a GPU, in one call.")
    result.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    result.add_argument("--parts", help=f"some of {', '.join(PARTS)}, with commas between them")
    result.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    result.add_argument("--machine", help="name of the folder of results; default: the device")
    result.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    together = Path(os.environ["OUT"]) / "gpu.json" if os.environ.get("OUT") else None
    result.add_argument("--together", type=Path, default=together, help="one file for all results")
    result.add_argument("--split", type=Path, help="such a file, to take apart into results")
    result.add_argument("--wheels", type=Path, help="a folder of wheels of pure Python packages")
    result.add_argument("--part", help=argparse.SUPPRESS)
    result.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return result


def _run_all(
    names: Sequence[str], arguments: argparse.Namespace, scratch: Path
) -> Iterator[tuple[str, Record]]:
    """Run parts one after another, each within its share and what others left over."""
    start = time.monotonic()
    paths = [str(ROOT), *_unpack(arguments.wheels, scratch / "wheels")]
    scale = min(1.0, arguments.seconds / sum(PARTS[name].seconds for name in names))
    due = 0.0
    for name in names:
        due += PARTS[name].seconds * scale
        share = due - (time.monotonic() - start)
        print(f"{name}: up to {share:.0f} s", flush=True)
        yield name, _run_child(name, share, arguments, (scratch, paths))


def _run_child(
    name: str, seconds: float, arguments: argparse.Namespace, place: tuple[Path, list[str]]
) -> Record:
    """Run one part in a process of its own and return what it wrote."""
    scratch, paths = place
    file = scratch / f"{name}.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--file", str(file)]
    command += ["--seconds", str(max(seconds - GRACE, 1.0))]
    command += ["--rehearse"] if arguments.rehearse else []
    before = os.environ.get("PYTHONPATH")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, *([before] if before else [])])
    }
    if arguments.rehearse:
        environment["TRITON_INTERPRET"] = "1"
    kept = scratch / (name if PARTS[name].fresh else "kernels")
    environment |= {"TRITON_CACHE_DIR": f"{kept}/triton", "SNNCC_CACHE_DIR": f"{kept}/snncc"}
    start = time.monotonic()
    try:
        error = _run(command, environment, max(seconds, 2.0), scratch / f"{name}.log")
    except OSError as problem:
        error = str(problem)
    records = list(_read(file))
    if not (records and records[-1].get("complete")):
        reason = error.strip().splitlines()[-1][:200] if error else "stopped: its time was over"
        records.append({"case": "the rest", "variant": "", "skipped": reason})
    records = [r for r in records if "complete" not in r]
    if error:
        print(error)
    return {"seconds": time.monotonic() - start, "failed": bool(error), "records": records}


def _run(command: Sequence[str], environment: dict[str, str], seconds: float, log: Path) -> str:
    """Run a command for so long at most; return the end of what it says if it fails.

    What it has started ends with it: tests that run on would slow down the next part.
    """
    with log.open("w+") as errors:
        child = subprocess.Popen(
            command, env=environment, cwd=ROOT, stderr=errors, start_new_session=True
        )
        try:
            status = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if not status:
        return ""
    text = log.read_text(errors="replace").strip()[-2000:]
    return text or f"it ended with status {status}"


def _read(file: Path) -> Iterator[Record]:
    """Yield the records that a part has written; the last line may be cut off."""
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def _run_part(arguments: argparse.Namespace) -> None:
    """Run one part in this process, and write each record at once."""
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    rounds = 3 if arguments.rehearse else 15
    clock = Clock(device, arguments.seconds, rounds, tiny=arguments.rehearse)
    run = PARTS[arguments.part].run or _tests
    with arguments.file.open("w") as file:

        def write(record: Record) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        try:
            for record in run(clock):
                write(record)
        except OutOfTimeError as error:
            write({"case": "the rest", "variant": "", "skipped": str(error)})
        write({"complete": True})


def _tests(clock: Clock) -> Iterator[Record]:
    """Yield the counts of the tests that need a GPU, and the names of those that fail."""
    try:
        importlib.metadata.version("pytest")
    except importlib.metadata.PackageNotFoundError:
        yield {"case": "tests", "variant": "pytest", "skipped": "pytest is not importable"}
        return
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-m", "gpu", f"--junit-xml={report}", *TESTS]
        try:
            subprocess.run(
                command, cwd=ROOT, timeout=clock.left, check=False, stdout=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise OutOfTimeError("stopped: its time was over") from None
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    yield {"case": "tests", "variant": "pytest", "passed": passed, "failed": failed}
    for case in suite.iter("testcase"):
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None:
            message = (problem.get("message") or "").splitlines()[:1]
            yield {
                "case": case.get("name"),
                "variant": "failed",
                "skipped": " ".join(message)[:200],
            }


def _unpack(folder: Path | None, into: Path) -> list[str]:
    """Unpack wheels and return the folder that then holds their packages."""
    if folder is None:
        return []
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    return [str(into)]


def _write(results: dict[str, Record], arguments: argparse.Namespace) -> Path:
    """Write a file for each part, or one for all; return their folder, or the file."""
    if arguments.together and not arguments.split:
        file: Path = arguments.together
        file.write_text(json.dumps(results, indent=1) + "\n")
        return file
    machine = next(iter(results.values()))["machine"]
    default = "rehearsal" if machine["rehearsal"] else machine["device"]
    name = re.sub(r"[^a-z0-9]+", "-", (arguments.machine or default).lower()).strip("-")
    folder: Path = arguments.results / name
    folder.mkdir(parents=True, exist_ok=True)
    for part, result in results.items():
        (folder / f"gpu_{part}.json").write_text(json.dumps(result, indent=1) + "\n")
    return folder


def describe_device(*, rehearsal: bool) -> Record:
    """Return device, versions and date of this run."""
    facts: Record = {
        "rehearsal": rehearsal,
        "device": "cpu" if rehearsal else torch.cuda.get_device_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    if not rehearsal:
        properties = torch.cuda.get_device_properties(0)
        facts["processors"] = properties.multi_processor_count
        facts["memory_gib"] = round(properties.total_memory / 2**30, 1)
    return facts


def _version(name: str) -> str | None:
    if name == "snncc":  # it runs from its folder, without being installed
        from snncc.version import __version__

        return __version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _measured(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if "skipped" not in record]


_SHOWN = {
    "case": "", "variant": "", "median_ms": ".3f", "host_ms": ".3f", "of_copy": ".1%",
    "gigabytes_per_second": ".0f", "this_over_snncc": ".2f", "peak_mib": ".0f",
    "first_call_ms": ".0f", "compiled": "d", "spikes_differ": "d", "differ_from_cpu": "d",
    "gradient_difference": ".1e", "passed": "d", "failed": "d", "skipped": "",
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
