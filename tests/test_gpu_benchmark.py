"""The benchmark of the GPU runs from end to end without one, at tiny sizes."""

import io
import json
from functools import partial

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("spikingjelly")

from benchmarks import gpu, report
from benchmarks.device import workers
from benchmarks.device.claims import CLAIMS
from benchmarks.device.clock import Case, Clock

pytestmark = pytest.mark.filterwarnings("ignore")
ON_A_DEVICE = ("peak memory", "CUDA graphs")  # claims for which the CPU has no figures


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    """No other place for results than the arguments name."""
    monkeypatch.delenv("OUT", raising=False)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return Clock(torch.device("cpu"), seconds=600.0, rounds=1, tiny=True)


@pytest.mark.parametrize("name", [name for name, part in gpu.PARTS.items() if part.cases])
def test_parts(name, clock):
    """Each part measures snncc in each of its cases, and the claims are read off it."""
    cases = list(gpu.PARTS[name].cases(clock))
    records = [{"case": case.name} | record for case in cases for record in case.run(clock)]
    left_out = [record for record in records if "skipped" in record]
    claims = [claim for claim in CLAIMS if claim.part == name]

    assert len({case.name for case in cases}) == len(cases) > 0
    assert not [record for record in left_out if record["variant"] == "snncc"]
    assert all(c.figure(records) for c in claims if not any(w in c.text for w in ON_A_DEVICE))
    assert all(record.get("spikes_differ", 0) == 0 for record in records)


def test_the_whole_in_processes_of_its_own(tmp_path, capfd):
    """Parts prepare, measure, and write files and tables; a rehearsal is no result of the page."""
    arguments = ["--rehearse", "--parts", "first_call,custom", "--workers", "1"]
    code = gpu.main([*arguments, "--results", str(tmp_path), "--seconds", "600"])
    folder = tmp_path / "rehearsal"
    first = json.loads((folder / "gpu_first_call.json").read_text())
    custom = json.loads((folder / "gpu_custom.json").read_text())
    missing = report.not_measured(tmp_path)

    assert code == 0
    assert all(claim.text in missing and claim.command in missing for claim in CLAIMS)
    assert first["machine"]["rehearsal"]
    assert len(first["records"]) == len(gpu.neurons.LENGTHS_AND_BATCHES)
    assert {"snncc", "flexsn"} == {r["variant"] for r in custom["records"] if "median_ms" in r}
    assert (folder / "gpu_output.txt").read_text().count("prepared two states") == 2
    assert "call 10" in capfd.readouterr().out


def test_a_part_that_takes_too_long_is_stopped(tmp_path):
    """What it measured until then is kept, and the rest is listed as left out."""
    together = tmp_path / "gpu.json"
    gpu.main(["--rehearse", "--parts", "values", "--together", str(together), "--seconds", "2"])
    gpu.main(["--split", str(together), "--results", str(tmp_path)])
    result = json.loads((tmp_path / "rehearsal" / "gpu_values.json").read_text())

    assert "skipped" in result["records"][-1]


def test_a_part_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    """It is listed as failed, its last words are printed, and others are in their files."""
    written = []

    def measure(worker, seconds):
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

    monkeypatch.setattr("sys.stdin", io.StringIO("\n60\n"))
    monkeypatch.setattr("select.select", lambda *_: ([], [], []))
    file = tmp_path / "values.jsonl"
    workers.work(cases, workers.Share("values", 0, 2), file, prepare=True, rehearse=True)
    records = list(workers.read(file))

    assert ran == [("wrong", 1), ("right", 1), ("long", 1), ("wrong", 3), ("right", 3)]
    assert [number for number, _ in records] == [0, 2, 4, 6]
    assert records[0][1]["error"]
    assert records[0][1]["skipped"] == "RuntimeError: out of memory"
    assert records[1][1]["median_ms"] == 1.0
    assert "no time" in records[2][1]["skipped"]


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
