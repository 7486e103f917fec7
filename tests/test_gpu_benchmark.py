"""The benchmark of the GPU runs from end to end without one, at tiny sizes."""

import json

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("spikingjelly")

from benchmarks import gpu, report
from benchmarks.device.claims import CLAIMS
from benchmarks.device.clock import Clock, OutOfTimeError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    """No other place for results than the arguments name."""
    monkeypatch.delenv("OUT", raising=False)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return Clock(torch.device("cpu"), seconds=600.0, rounds=1, tiny=True)


@pytest.mark.parametrize("name", [name for name, part in gpu.PARTS.items() if part.run])
def test_parts(name, clock):
    """Each part measures snncc in each of its cases, and the claims are read off it."""
    records = list(gpu.PARTS[name].run(clock))
    left_out = [record for record in records if "skipped" in record]

    assert records
    assert not [record for record in left_out if record["variant"] == "snncc"]
    assert all(claim.figure(records) for claim in CLAIMS if claim.part == name)
    assert all(record.get("spikes_differ", 0) == 0 for record in records)


def test_the_whole_in_processes_of_its_own(tmp_path, capfd):
    """The driver runs parts and writes files and tables; on the page a rehearsal is no result."""
    code = gpu.main(
        [
            "--rehearse",
            "--parts",
            "first_call,tests",
            "--results",
            str(tmp_path),
            "--seconds",
            "600",
        ]
    )
    result = json.loads((tmp_path / "rehearsal" / "gpu_first_call.json").read_text())
    missing = report.not_measured(tmp_path)

    assert code == 0
    assert all(claim.text in missing and claim.command in missing for claim in CLAIMS)
    assert result["machine"]["rehearsal"]
    assert len(result["records"]) == len(gpu.neurons.LENGTHS_AND_BATCHES)
    assert "call 10" in capfd.readouterr().out


def test_a_part_that_takes_too_long_is_stopped(tmp_path):
    """What it measured until then is kept, and the rest is listed as left out."""
    together = tmp_path / "gpu.json"
    gpu.main(["--rehearse", "--parts", "values", "--together", str(together), "--seconds", "2"])
    gpu.main(["--split", str(together), "--results", str(tmp_path)])
    result = json.loads((tmp_path / "rehearsal" / "gpu_values.json").read_text())

    assert "skipped" in result["records"][-1]


def test_a_part_that_fails_does_not_end_the_others(tmp_path, monkeypatch):
    """It is listed as failed with its last words, and what others measured is in their files."""
    written = []

    def run(command, environment, seconds, log):
        part = command[command.index("--part") + 1]
        written.append([path.name for path in tmp_path.glob("rehearsal/*")])
        if part == "bandwidth":
            return "Traceback\nRuntimeError: out of memory"
        file = gpu.Path(command[command.index("--file") + 1])
        file.write_text('{"case": "a", "variant": "b"}\n{"complete": true}\n{"cut')
        return ""

    monkeypatch.setattr(gpu, "_run", run)
    code = gpu.main(["--rehearse", "--parts", "values,bandwidth,tests", "--results", str(tmp_path)])
    results = {
        path.stem: json.loads(path.read_text()) for path in tmp_path.glob("rehearsal/*.json")
    }

    assert code == 1
    assert [len(names) for names in written] == [0, 1, 2]
    assert {name: result["failed"] for name, result in results.items()} == {
        "gpu_values": False,
        "gpu_bandwidth": True,
        "gpu_tests": False,
    }
    (left_out,) = results["gpu_bandwidth"]["records"]
    assert left_out["skipped"] == "RuntimeError: out of memory"


def test_time_is_required():
    """A case for which no time is left does not start."""
    with pytest.raises(OutOfTimeError, match="no time"):
        Clock(torch.device("cpu"), seconds=1.0).require(2.0)


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
