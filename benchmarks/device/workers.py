"""Processes that prepare their cases at once, and measure them one process after another.

Most of what a first run takes is imports and compilation, in each process and on one core.  So all
workers run through their cases once, at the same time, and keep nothing but what compilers leave in
caches.  Then they wait; the parent tells one after another how long it may measure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.device.clock import Case, Clock, Record, reason

GRACE = 4  # seconds from the deadline of a worker to its end by force
RESTART = 15  # seconds that another process needs to be of use


@dataclasses.dataclass(frozen=True)
class Share:
    """What one worker does: the cases ``number``, ``number + workers``, ... of a part."""

    part: str
    number: int = 0
    workers: int = 1

    def __str__(self) -> str:
        return f"{self.part} {self.number + 1}/{self.workers}" if self.workers > 1 else self.part


class Worker:
    """A process that a share was given to, seen from its parent.

    Args:
        share: What it does.
        command: Starts it; arguments of the share are added.
        environment: What it starts in.
        scratch: A folder for its files.
    """

    def __init__(
        self, share: Share, command: Sequence[str], environment: Mapping[str, str], scratch: Path
    ) -> None:
        self.share, self.environment, self._command = share, environment, command
        name = f"{share.part}-{share.number}"
        self._file, self._log = scratch / f"{name}.jsonl", scratch / f"{name}.log"
        self._child: subprocess.Popen[str] | None = None

    def start(self, *, prepare: bool) -> None:
        """Start the process."""
        self._ready_file.unlink(missing_ok=True)
        share = self.share
        command = [*self._command, "--part", share.part, "--file", str(self._file)]
        command += ["--share", str(share.number), str(share.workers)]
        command += ["--prepare"] if prepare else []
        with self._log.open("a") as log:
            self._child = subprocess.Popen(
                command,
                env=dict(self.environment),
                stdin=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    @property
    def _ready_file(self) -> Path:
        return self._file.with_suffix(".ready")

    @property
    def waiting(self) -> bool:
        """Whether there is nothing to wait for: it is prepared, or has ended."""
        return self._child is None or self._ready_file.exists() or self._child.poll() is not None

    def measure(self, seconds: float) -> tuple[list[tuple[int, Record]], str]:
        """Let it measure for so long; return its records, with numbers, and its last words.

        A process that ends, as after an error on the device, is replaced for the cases that it did
        not reach.
        """
        until, reached = time.monotonic() + seconds, -1
        errors: list[str] = []
        while True:
            if self._child is None or self._child.poll() is not None:
                self.start(prepare=False)
            self._tell(f"{until - time.monotonic()} {reached}\n")
            status = self._wait(until + GRACE)
            self.end()
            records = list(read(self._file))
            last, record = records[-1] if records else (-1, {})
            if record.get("complete"):
                return _results(records), "\n".join(errors)
            said = "stopped: its time was over"
            if status:
                errors.append(self.said.strip()[-2000:] or f"it ended with status {status}")
                said = errors[-1].splitlines()[-1][:200]
            rest = (last, {"case": "the rest", "variant": "", "skipped": said})
            useless = last == reached or any("measured" in record for _, record in records)
            if not status or useless or until - time.monotonic() < RESTART:
                return _results([*records, rest]), "\n".join(errors)
            rest[1]["case"] = "the rest of a case"
            with self._file.open("a") as file:
                file.write(json.dumps(rest) + "\n")
            reached = last

    def _wait(self, until: float) -> int:
        """Wait for the end of the process and return its status, 0 if time was over first."""
        assert self._child is not None
        try:
            return self._child.wait(max(until - time.monotonic(), 1.0))
        except subprocess.TimeoutExpired:
            return 0

    def end(self) -> None:
        """End it and what it has started, which would slow down the next."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def hurry(self) -> None:
        """Ask it to prepare no further case."""
        self._tell("\n")

    def _tell(self, line: str) -> None:
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.write(line)
                self._child.stdin.flush()

    @property
    def said(self) -> str:
        """What it wrote to its error output."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def read(file: Path) -> Iterator[tuple[int, Record]]:
    """Yield the records that a worker has written; the last line may be cut off."""
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            number, record = json.loads(line)
            yield number, record


def _results(records: Sequence[tuple[int, Record]]) -> list[tuple[int, Record]]:
    return [(number, record) for number, record in records if not _MARKS & record.keys()]


_MARKS = {"begun", "measured", "complete"}


def work(
    cases: Callable[[Clock], Iterator[Case]],
    share: Share,
    file: Path,
    *,
    prepare: bool,
    rehearse: bool,
) -> None:
    """Do a share in this process: prepare, wait, measure, and write each record at once."""
    device = torch.device("cpu" if rehearse else "cuda")
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be captured
    every = list(enumerate(cases(Clock(device, 0.0, tiny=rehearse))))
    mine = every[share.number :: share.workers]
    if prepare:
        _prepare([case for _, case in mine], device, file.parent / "queue", tiny=rehearse)
    gc.freeze()  # a collection after each case takes a part of a second otherwise
    file.with_suffix(".ready").touch()
    line = "\n"
    while line == "\n":  # an empty line ends the preparation
        line = sys.stdin.readline()
    if not line:
        return
    seconds, reached = line.split()
    clock = Clock(device, float(seconds), 3 if rehearse else 15, tiny=rehearse)
    left = [(number, case) for number, case in mine if number > int(reached)]
    with file.open("a") as out:
        for number, record in measure(left, clock):
            out.write(json.dumps([number, record]) + "\n")
            out.flush()


def measure(cases: Sequence[tuple[int, Case]], clock: Clock) -> Iterator[tuple[int, Record]]:
    """Yield the records of cases, and then those of them as CUDA graphs, which may fail."""
    for number, case in cases:
        yield number, {"begun": True}
        with _told(f"measured {case.name}"):
            for record in _records(case, clock):
                yield number, {"case": case.name} | record
            _free(clock.device)
    yield len(cases), {"measured": True}
    clock.graphs = True
    for number, case in cases:
        if clock.tiny or not case.graphs:
            continue
        if clock.spoiled:
            said = "a capture in the same process failed"
            yield number, {"case": case.name, "variant": "CUDA graph", "skipped": said}
            continue
        with _told(f"measured {case.name} as CUDA graphs"):
            for record in _records(case, clock):
                variant = record["variant"] or "CUDA graph"
                if "CUDA graph" in variant:  # what else is left out has been said
                    yield number, {"case": case.name} | record | {"variant": variant}
            if not clock.spoiled:
                _free(clock.device)
    yield len(cases), {"complete": True}


def _prepare(cases: Sequence[Case], device: torch.device, queue: Path, *, tiny: bool) -> None:
    """Run cases once, for what compilers keep, until the parent says that it is time to measure.

    Large cases queue up: together they would not fit the memory of the device.
    """
    for case in cases:
        start = time.monotonic()
        with _turn(queue if case.large else None) as ours:
            if not ours:
                return
            waited = time.monotonic() - start
            # Out of memory, say: other workers run at the same time.  Measuring shows the rest.
            with contextlib.suppress(Exception):
                for _ in case.run(Clock(device, 60.0, 1, tiny=tiny)):
                    pass
            _free(device)
        took = f"{time.monotonic() - start:.1f} s, {waited:.1f} s of them in a queue"
        print(f"prepared {case.name}: {took}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _turn(queue: Path | None) -> Iterator[bool]:
    """Wait until no other worker has its turn in a queue; give False when it is time to measure."""
    asked = bool(select.select([sys.stdin], [], [], 0)[0])
    if queue is None:
        yield not asked
        return
    with queue.open("w") as lock:
        while not asked:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                asked = bool(select.select([sys.stdin], [], [], 0.1)[0])
        yield not asked


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Write to the error output how long something took, preparing and cleaning included."""
    start = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()  # ends the process if a kernel has failed: a new one is started
        torch.cuda.empty_cache()


def _records(case: Case, clock: Clock) -> Iterator[Record]:
    if clock.left < case.seconds:
        said = f"no time: {max(clock.left, 0):.0f} s left, {case.seconds:.0f} s needed"
        yield {"variant": "", "skipped": said}
        return
    try:
        yield from case.run(clock)
    except Exception as error:
        traceback.print_exc()
        yield {"variant": "", "skipped": reason(error), "error": True}
