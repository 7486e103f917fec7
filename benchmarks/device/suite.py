"""The tests that need a GPU, as a part of the benchmark."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.device.clock import Record

TESTS = ("tests/gpu/test_device.py", "tests/gpu/test_cuda_device.py")
REPORTING = 20  # seconds that pytest may take to report after it was interrupted


class Suite:
    """A run of the tests in processes of their own; a second run takes what did not pass in it.

    Args:
        root: The checkout.
        scratch: A folder for what pytest reports.
        output: The file for what pytest prints.
        workers: In how many processes, if pytest-xdist is importable.
    """

    def __init__(self, root: Path, scratch: Path, output: Path, workers: int) -> None:
        self._root, self._output, self._workers = root, output, workers
        self._report = scratch / "report.xml"
        self._child: subprocess.Popen[bytes] | None = None
        self._interrupted = False
        self._outcomes: dict[str, str] = {}  # of each test: passed, skipped, or what it said
        self._start = 0.0

    def start(self, environment: Mapping[str, str]) -> None:
        """Start pytest, if it is there."""
        self._start = time.monotonic()
        if importlib.util.find_spec("pytest") is None:
            return
        command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
        # pytest-benchmark warns where xdist runs, and warnings are errors.
        command += ["-p", "no:benchmark", "-m", "gpu", f"--junit-xml={self._report}", *TESTS]
        command += [f"--deselect={name}" for name, said in self._outcomes.items() if said in _GOOD]
        if self._workers > 1 and importlib.util.find_spec("xdist"):
            command += ["-n", str(self._workers)]
        # A shell lets what it runs in the background ignore this signal, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._report.unlink(missing_ok=True)
        with self._output.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                cwd=self._root,
                env=dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether tests are under way."""
        return self._child is not None and self._child.poll() is None

    @property
    def passed(self) -> bool:
        """Whether nothing is left to run: all tests ran, and none failed."""
        return not self._interrupted and all(said in _GOOD for said in self._outcomes.values())

    def finish(self, seconds: float) -> Record:
        """Wait so long at most, then interrupt, and return the result of the part."""
        if self._child is not None:
            try:
                self._child.wait(max(seconds, 0.1))
                self._interrupted = False
            except subprocess.TimeoutExpired:
                self._interrupted = True
                self._child.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(REPORTING)
            self.end()
        records = list(self._records())
        failed = any(record.get("failed", 1) for record in records if "passed" in record)
        seconds = time.monotonic() - self._start
        return {"seconds": seconds, "failed": failed, "records": records}

    def end(self) -> None:
        """End what still runs."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def _records(self) -> Iterator[Record]:
        if self._child is None:
            yield {"case": "tests", "variant": "pytest", "skipped": "pytest is not importable"}
            return
        try:
            self._outcomes |= dict(_outcomes(self._report))
        except (OSError, ElementTree.ParseError):
            last = self._output.read_text(errors="replace").strip().splitlines()[-1:]
            said = f"pytest reported nothing; its last line: {' '.join(last)[:200]}"
            yield {"case": "tests", "variant": "pytest", "skipped": said}
        bad = {name: said for name, said in self._outcomes.items() if said not in _GOOD}
        passed = sum(said == "passed" for said in self._outcomes.values())
        yield {"case": "tests", "variant": "pytest", "passed": passed, "failed": len(bad)}
        if self._interrupted:
            yield {"case": "other tests", "variant": "", "skipped": "stopped: their time was over"}
        for name, said in bad.items():
            yield {"case": name.partition("::")[2], "variant": "failed", "skipped": said}


_GOOD = ("passed", "skipped")


def _outcomes(report: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each test of a report, as pytest takes it, and what came of it."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        outcome = "skipped" if case.find("skipped") is not None else "passed"
        for problem in (*case.iter("failure"), *case.iter("error")):
            outcome = " ".join((problem.get("message") or "failed").splitlines()[:1])[:200]
        yield name, outcome
