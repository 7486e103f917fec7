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
    gpu.main(["--rehearse", "--parts", "values", "--results", str(tmp_path), "--seconds", "2"])
    result = json.loads((tmp_path / "rehearsal" / "gpu_values.json").read_text())

    assert result["seconds"] < 60
    assert "skipped" in result["records"][-1]


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
