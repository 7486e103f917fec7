"""The benchmark of the GPU runs from end to end without one, at tiny sizes."""

import io
import json
import os
import sys
from functools import partial

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("spikingjelly")

from benchmarks import gpu, report_gpu
from benchmarks.device import suite, workers
from benchmarks.device.claims import CLAIMS
from benchmarks.device.clock import Case, Clock

pytestmark = pytest.mark.filterwarnings("ignore")
# Claims for which the CPU has no figures.
ON_A_DEVICE = ("peak memory", "CUDA graphs", "all kernels")


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    """No other place for results than the arguments name."""
    monkeypatch.delenv("OUT", raising=False)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return Clock(torch.device("cpu"), seconds=600.0, rounds=1, tiny=True)


@pytest.mark.parametrize("name", [name for name, part in gpu.PARTS.items() if part.cases])
def test_parts(name, clock, monkeypatch):
    """Each part measures snncc in each of its cases, and the claims are read off it.

    Modules that move get new parameters, as between the CPU and a GPU.
    """
    if name not in ("kept", "published"):  # lazy modules cannot
        monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    cases = list(gpu.PARTS[name].cases(clock))
    records = [{"case": case.name} | record for case in cases for record in case.run(clock)]
    left_out = [record for record in records if "skipped" in record]
    claims = [claim for claim in CLAIMS if claim.part == name]

    assert len({case.name for case in cases}) == len(cases) > 0
    assert not [
        r for r in left_out if r["variant"].startswith("snncc") and "CUDA" not in r["variant"]
    ]
    assert all(c.figure(records) for c in claims if not any(w in c.text for w in ON_A_DEVICE))
    assert all(record.get("spikes_differ", 0) == 0 for record in records)


def test_the_whole_in_processes_of_its_own(tmp_path, capfd):
    """Parts prepare, measure, and write files and tables; a rehearsal is no result of the page."""
    arguments = ["--rehearse", "--parts", "recurrent", "--workers", "1"]
    code = gpu.main([*arguments, "--results", str(tmp_path), "--seconds", "600"])
    folder = tmp_path / "rehearsal"
    result = json.loads((folder / "gpu_recurrent.json").read_text())
    missing = report_gpu.not_measured(tmp_path)

    assert code == 0
    assert all(claim.text in missing and claim.command in missing for claim in CLAIMS)
    assert result["machine"]["rehearsal"]
    assert {record["variant"] for record in result["records"]} == {"snncc", "serial"}
    assert (folder / "gpu_output.txt").read_text().count("prepared T=") == 2
    assert "recurrent is ready" in capfd.readouterr().out


def test_a_part_that_takes_too_long_is_stopped(tmp_path):
    """What it measured until then is kept, and the rest is listed as left out."""
    together = tmp_path / "gpu.json"
    gpu.main(["--rehearse", "--parts", "values", "--together", str(together), "--seconds", "2"])
    gpu.main(["--split", str(together), "--results", str(tmp_path)])
    result = json.loads((tmp_path / "rehearsal" / "gpu_values.json").read_text())

    assert "skipped" in result["records"][-1]


def test_a_part_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    """It is listed as failed, its last words are printed, and others are in their files."""
    written, caches = [], []

    def measure(worker, seconds):
        caches.append(worker.environment["TRITON_CACHE_DIR"])
        written.append([path.name for path in tmp_path.glob("rehearsal/*.json")])
        if worker.share.part == "bandwidth":
            return [(0, {"case": "the rest", "variant": "", "skipped": "out of memory"})], "Trace"
        return [(1, {"case": "b", "variant": ""}), (0, {"case": "a", "variant": ""})], ""

    monkeypatch.setattr(workers.Worker, "measure", measure)
    parts = "values,bandwidth,first_call"
    code = gpu.main(["--rehearse", "--parts", parts, "--results", str(tmp_path)])
    results = {
        path.stem: json.loads(path.read_text()) for path in tmp_path.glob("rehearsal/*.json")
    }

    assert code == 1
    assert [len(names) for names in written] == [0, 1, 2]
    assert {name: result["failed"] for name, result in results.items()} == {
        "gpu_values": False,
        "gpu_bandwidth": True,
        "gpu_first_call": False,
    }
    assert [record["case"] for record in results["gpu_values"]["records"]] == ["a", "b"]
    assert caches[0] == caches[1] != caches[2]  # first calls find nothing
    assert "Trace" in capsys.readouterr().out


def test_a_case_that_fails_does_not_end_the_others(tmp_path, monkeypatch):
    """Preparing ignores it, measuring says it; one for which no time is left does not start."""
    ran = []

    def run(clock, name):
        ran.append((name, clock.rounds))
        if name == "wrong":
            raise RuntimeError("out of memory")
        yield {"variant": "snncc", "median_ms": 1.0}

    def cases(clock):
        for name, seconds in (("wrong", 1.0), ("right", 1.0), ("long", 90.0)):
            yield Case(name, seconds, partial(run, name=name))
            yield Case("of another worker", 1.0, partial(run, name="none"))

    monkeypatch.setattr("sys.stdin", io.StringIO("\n60 -1\n"))
    monkeypatch.setattr("select.select", lambda *_: ([], [], []))
    monkeypatch.setattr("gc.freeze", lambda: None)  # this process goes on
    file = tmp_path / "values.jsonl"
    workers.work(cases, workers.Share("values", 0, 2), file, prepare=True, rehearse=True)
    records = list(workers.read(file))

    assert ran == [("wrong", 1), ("right", 1), ("long", 1), ("wrong", 3), ("right", 3)]
    assert [number for number, _ in records] == [0, 0, 2, 2, 4, 4, 3, 3]
    assert records[1][1]["error"]
    assert records[1][1]["skipped"] == "RuntimeError: out of memory"
    assert records[3][1]["median_ms"] == 1.0
    assert "no time" in records[5][1]["skipped"]


def test_slow_variants_run_less_often(monkeypatch):
    """Three rounds suffice for what takes long; others run in all rounds."""
    clock = Clock(torch.device("cpu"), 60.0, 5)
    monkeypatch.setattr(clock, "_launching", lambda run: run())
    monkeypatch.setattr(clock, "_on_device", lambda run, _: run())
    monkeypatch.setattr(clock, "once", lambda run: run())
    ran = []
    runs = {"slow": lambda: ran.append("slow") or 0.06, "fast": lambda: ran.append("fast") or 0.04}
    times = clock.measure(runs)

    assert {name: record["rounds"] for name, record in times.items()} == {"slow": 3, "fast": 5}
    assert {name: ran.count(name) for name in runs} == {"slow": 2 + 2 * 3, "fast": 3 + 2 * 5}


def test_graphs_are_measured_last():
    """A capture that fails costs the graphs of later cases, and nothing else."""

    def run(clock, name):
        if clock.graphs and name == "second":
            clock.spoiled = True
            raise RuntimeError("capture")
        yield {"variant": "snncc, CUDA graph" if clock.graphs else "snncc", "median_ms": 1.0}
        yield {"variant": "peer", "skipped": "not there"}

    names = ("first", "second", "third")
    cases = [
        (k, Case(name, 1.0, partial(run, name=name), graphs=True)) for k, name in enumerate(names)
    ]
    clock = Clock(torch.device("cpu"), 60.0, 3)
    records = [record for _, record in workers.measure(cases, clock) if "case" in record]
    graphs = {r["case"]: r.get("skipped") for r in records if "CUDA graph" in r["variant"]}

    assert [r["case"] for r in records if r["variant"] == "snncc"] == list(names)
    assert sum(record["variant"] == "peer" for record in records) == 3
    assert graphs == {
        "first": None,
        "second": "RuntimeError: capture",
        "third": "a capture in the same process failed",
    }


MORTAL = """
import json, pathlib, sys
file = pathlib.Path(sys.argv[sys.argv.index("--file") + 1])
file.with_suffix(".ready").touch()
_, reached = sys.stdin.readline().split()
with file.open("a") as out:
    for number in range(int(reached) + 1, 3):
        print(json.dumps([number, {"begun": True}]), file=out, flush=True)
        if number == 1:
            sys.exit("the device is lost")
        print(json.dumps([number, {"case": f"case {number}"}]), file=out)
    print(json.dumps([3, {"complete": True}]), file=out)
"""


def test_a_process_that_dies_is_replaced(tmp_path):
    """It loses the case that it was in, and another one does the rest."""
    worker = workers.Worker(workers.Share("values"), [sys.executable, "-c", MORTAL], {}, tmp_path)
    worker.start(prepare=True)
    records, error = worker.measure(60.0)

    assert [(number, record["case"]) for number, record in records] == [
        (0, "case 0"),
        (1, "the rest of a case"),
        (2, "case 2"),
    ]
    assert records[1][1]["skipped"] == error == "the device is lost"


TESTS = """
import pathlib
import pytest

pytestmark = pytest.mark.gpu

def test_once():
    count = pathlib.Path("once")
    assert not count.exists()
    count.touch()

@pytest.mark.parametrize("n", [1, 2])
def test_later(n):
    later = pathlib.Path(f"later {n}")
    there = later.exists()
    later.touch()
    assert there or n == 1, "not yet"
"""


def test_tests_that_fail_run_again_alone(tmp_path, monkeypatch):
    """A second run takes what did not pass in the first; what pytest printed stays."""
    (tmp_path / "test_device.py").write_text(TESTS)
    monkeypatch.setattr("benchmarks.device.suite.TESTS", ("test_device.py",))
    tests = suite.Suite(tmp_path, tmp_path, tmp_path / "output.txt", workers=0)
    results = []
    for _ in range(2):
        tests.start(os.environ)
        results.append(tests.finish(60.0))

    (first, failure), (second,) = (result["records"] for result in results)
    assert [first["passed"], first["failed"], second["passed"], second["failed"]] == [2, 1, 3, 0]
    assert failure["case"] == "test_later[2]"
    assert failure["skipped"].startswith("AssertionError: not yet")
    assert [result["failed"] for result in results] == [True, False]
    assert "1 failed, 2 passed" in (tmp_path / "output.txt").read_text()


def test_the_page_says_what_was_left_out(tmp_path):
    """Bandwidth has a row a case; what was not reached is counted and named in one line."""
    machine = {
        "rehearsal": False,
        "device": "a GPU",
        "processors": 1,
        "memory_gib": 1,
        "cuda": "13",
        "python": "3",
        "versions": {},
        "date": "2026-01-01T00:00",
        "commit": "0123456789",
    }
    times = {"copy": {"gigabytes_per_second": 9.0}, "forward": {"median_ms": 2.0, "of_copy": 0.5}}
    records = [{"case": "lif", "variant": name} | record for name, record in times.items()]
    skipped = [
        {"case": "lif", "variant": "CUDA graph", "skipped": "no time: 0 s left, 1 s needed"},
        {"case": "plif", "variant": "", "skipped": "no time: 1 s left, 2 s needed"},
        {"case": "the rest", "variant": "", "skipped": "stopped: its time was over"},
        {"case": "wrong", "variant": "peer", "skipped": "RuntimeError: no such thing."},
    ]
    result = {"machine": machine, "records": records + skipped}
    (tmp_path / "gpu_bandwidth.json").write_text(json.dumps(result))
    text = "".join(report_gpu.sections(tmp_path))

    assert "| lif | 9 |  |  | 2 | 50 % |  |  |\n" in text
    assert "no time was left: CUDA graphs: 1; processes stopped: 1; cases: 1 (plif).\n" in text
    assert "Not measured, RuntimeError: no such thing: cases: 1 (wrong, peer).\n" in text
    assert "commit 0123456" in text
    assert set(report_gpu.PARTS) == set(gpu.PARTS)


def test_no_gpu_is_said(capsys):
    """Without a GPU nothing is measured by accident."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")

    assert gpu.main([]) == 2
    assert "no GPU" in capsys.readouterr().out


def test_unknown_parts_are_refused(capsys):
    """A misspelled part is named."""
    assert gpu.main(["--rehearse", "--parts", "speed"]) == 2
    assert "no part 'speed'" in capsys.readouterr().out
