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
from typing import IO

from benchmarks.device.clock import Record

TESTS = ("tests/gpu/test_device.py", "tests/gpu/test_cuda_device.py")
REPORTING = 20  # seconds that pytest may take to report after it was interrupted


class Suite:
    """A run of the tests in processes of their own.

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
        self._file: IO[bytes] | None = None
        self._start = 0.0

    def start(self, environment: Mapping[str, str]) -> None:
        """Start pytest, if it is there."""
        self._start = time.monotonic()
        if importlib.util.find_spec("pytest") is None:
            return
        command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
        # pytest-benchmark warns where xdist runs, and warnings are errors.
        command += ["-p", "no:benchmark", "-m", "gpu", f"--junit-xml={self._report}", *TESTS]
        if self._workers > 1 and importlib.util.find_spec("xdist"):
            command += ["-n", str(self._workers)]
        self._file = self._output.open("wb")
        self._child = subprocess.Popen(
            command,
            cwd=self._root,
            env=dict(environment),
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        """Whether tests are under way."""
        return self._child is not None and self._child.poll() is None

    def finish(self, seconds: float) -> Record:
        """Wait so long at most, then interrupt, and return the result of the part."""
        interrupted = False
        if self._child is not None and self._file is not None:
            try:
                self._child.wait(max(seconds, 0.1))
            except subprocess.TimeoutExpired:
                interrupted = True
                self._child.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(REPORTING)
            self.end()
            self._file.close()
        records = list(self._records(interrupted))
        failed = any(record.get("failed", 1) for record in records if "passed" in record)
        seconds = time.monotonic() - self._start
        return {"seconds": seconds, "failed": failed, "records": records}

    def end(self) -> None:
        """End what still runs."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def _records(self, interrupted: bool) -> Iterator[Record]:
        if self._child is None:
            yield {"case": "tests", "variant": "pytest", "skipped": "pytest is not importable"}
            return
        try:
            suite = ElementTree.parse(self._report).getroot().find("testsuite")
            assert suite is not None
        except (OSError, ElementTree.ParseError):
            last = self._output.read_text(errors="replace").strip().splitlines()[-1:]
            said = f"pytest reported nothing; its last line: {' '.join(last)[:200]}"
            yield {"case": "tests", "variant": "pytest", "skipped": said}
            return
        counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        failed = counts["failures"] + counts["errors"]
        passed = counts["tests"] - failed - counts["skipped"]
        yield {"case": "tests", "variant": "pytest", "passed": passed, "failed": failed}
        if interrupted:
            yield {"case": "other tests", "variant": "", "skipped": "stopped: their time was over"}
        for case in suite.iter("testcase"):
            problem = next(
                (case.find(k) for k in ("failure", "error") if case.find(k) is not None), None
            )
            if problem is not None:
                message = (problem.get("message") or "").splitlines()[:1]
                said = " ".join(message)[:200]
                yield {"case": case.get("name"), "variant": "failed", "skipped": said}
