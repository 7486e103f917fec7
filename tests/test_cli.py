"""The command line: what it prints, where it writes, and the status that it ends with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snncc.cli.commands import main

ROOT = Path(__file__).resolve().parent.parent
MODULE = """
import torch
from torch import nn

from snncc.nn import LIF


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.lif = LIF()

    def forward(self, x):
        return self.lif(self.layer(x))


def factory():
    return Own(), torch.randn(6, 2, 4)


def stateful():
    class Counter(nn.Module):
        total = 0

        def forward(self, x):
            self.total = self.total + x.sum(0)
            for x_t in x:
                self.total = self.total * 0.5 + x_t
            return self.total

    return Counter(), (torch.randn(6, 2, 4, requires_grad=True),)


def broken():
    raise ValueError("no <data> [here]")


def wrong():
    return Own()


def misfit():
    return Own(), torch.randn(6, 2, 5)
"""


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a command in a folder with the file ``net.py`` and return status, output and errors."""
    (tmp_path / "net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("net", "needs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["snncc", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        seen = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, seen.out, seen.err

    yield command
    for name in ("net", "needs"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("explain", "tests.models:feedforward"), 0, "fused time"),
        (("explain", "tests.models:branching"), 1, "capture.tensor-dependent-branch"),
        (("explain", "net.py:factory"), 0, "a spike sets it to 0"),
        (("explain", "net:factory", "-o", "storage=save"), 0, "stored"),
        (("explain", "net.py:factory", "-o", "num_threads=0"), 2, "option.num-threads"),
        (("explain", "net.py:factory", "-o", "storage"), 2, "--option name=value"),
        (("verify", "tests.models:feedforward"), 0, "equivalent"),
        (("verify", "tests.models:branching"), 2, "torch.where"),
        (("verify", "net.py:factory", "--no-gradients", "-o", "target=torch"), 0, "equivalent"),
        (("verify", "tests.models"), 2, "option.factory"),
        (("verify", "tests.models:absent"), 2, "'feedforward'"),
        (("verify", "tests.none:absent"), 2, "there is no module 'tests.none'"),
        (("verify", "none.py:absent"), 2, "there is no file 'none.py'"),
        (("verify", "net.py:wrong"), 2, "did not return '(model, inputs)'"),
        (("verify", "net.py:not a name"), 2, "does not name a factory"),
    ],
)
def test_command(run, arguments: tuple[str, ...], status: int, text: str) -> None:
    """The exit status tells the outcome, and the output says why."""
    code, out, err = run(*arguments)

    assert code == status, err
    assert text in " ".join((out + err).split())  # lines are as long as the terminal is wide
    assert "Traceback" not in err


def test_explain_writes_a_page_and_data(run, tmp_path: Path) -> None:
    """``--html`` writes a page and says so, ``--json`` prints data and nothing else."""
    code, out, err = run("explain", "net.py:factory", "--html", "page.html", "--json")

    assert code == 0
    assert json.loads(out)["plan"]["layers"][1]["what"] == "LIF"
    assert "page.html" in err
    page = (tmp_path / "page.html").read_text()
    assert "self.layer(x)" in page
    assert run("explain", "net.py:factory", "--html", "page.pdf")[0] == 2


@pytest.mark.parametrize("factory", ["factory", "stateful"])
def test_bench(run, factory: str) -> None:
    """Medians of both and their ratio, for inference and training, also as data."""
    code, out, _ = run("bench", f"net.py:{factory}", "--seconds", "0.05", "--json")
    data = json.loads(out)

    assert code == 0
    assert [t["what"] for t in data["timings"]] == ["inference", "training"]
    for timing in data["timings"]:
        assert timing["rounds"] >= 5
        assert timing["ratio"] == pytest.approx(timing["serial_ms"] / timing["compiled_ms"])
    assert data["difference"] < 1e-5
    assert data["threads"] >= 1


def test_bench_prints_a_table(run) -> None:
    """Without gradients only inference is timed."""
    code, out, _ = run("bench", "net.py:factory", "--seconds", "0", "--no-gradients")

    assert code == 0
    assert "ratio" in out
    assert "inference" in out
    assert "training" not in out


@pytest.mark.parametrize(
    ("factory", "said", "line"),
    [
        ("broken", "ValueError: no <data> [here]", 'raise ValueError("no <data> [here]")'),
        ("misfit", "shapes cannot be multiplied", "return self.lif(self.layer(x))"),
    ],
)
def test_errors_of_the_user(run, factory: str, said: str, line: str) -> None:
    """An error in the factory or in the model is shown with the user's own line."""
    code, _, err = run("explain", f"net.py:{factory}")

    assert code == 2
    assert said in err
    assert line in err
    assert "Traceback" not in err


def test_traceback_on_demand(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--traceback`` lets the error through."""
    monkeypatch.setattr(sys, "argv", ["snncc", "--traceback", "explain", "net.py:broken"])
    with pytest.raises(ValueError, match="no <data>"):
        main()


def test_module_with_a_missing_import(run, tmp_path: Path) -> None:
    """A module that does not find another one is the user's error, and named as such."""
    (tmp_path / "needs.py").write_text("import package_that_is_not_there\n")
    code, _, err = run("explain", "needs:factory")

    assert code == 2
    assert "package_that_is_not_there" in err
    assert "needs.py" in err


def test_cache(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is shown and emptied; what others keep in its folder stays."""
    folder = tmp_path / "kernels"
    monkeypatch.setenv("SNNCC_CACHE_DIR", str(folder))
    assert run("cache") == (0, f"Cache {folder}: 0 kernels, 0.0 MiB\n", "")
    entry = folder / "1" / "ab" / "abcdef"
    entry.mkdir(parents=True)
    (entry / "meta.json").write_text("{}")
    (entry / "kernel.so").write_bytes(bytes(3 << 20))
    (folder / "1" / "tmp-x").mkdir()
    (folder / "notes").mkdir()
    (folder / "1" / "README").write_text("mine")
    assert run("cache")[1] == f"Cache {folder}: 1 kernel, 3.0 MiB\n"
    assert run("cache", "--clear")[1] == f"Deleted from {folder}: 1 kernel, 3.0 MiB\n"

    assert run("cache")[1].endswith("0 kernels, 0.0 MiB\n")
    assert sorted(p.name for p in folder.rglob("*")) == ["1", "README", "notes"]


@pytest.mark.parametrize(
    "command", [(), ("explain",), ("verify",), ("bench",), ("export",), ("cache",)]
)
def test_help(run, command: tuple[str, ...]) -> None:
    """Every command explains itself, and the exit status."""
    code, out, _ = run(*command, "--help")

    assert code == 0
    assert "Usage" in out
    if command in ((), ("explain",), ("verify",)):
        assert "Exit status" in out


def test_version(run) -> None:
    """The version is that of the package."""
    import snncc

    assert run("--version")[1] == f"snncc {snncc.__version__}\n"


def test_module_is_a_program() -> None:
    """``python -m snncc`` is the command line."""
    command = [sys.executable, "-m", "snncc", "explain", "tests.models:branching"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    assert done.returncode == 1
    assert "torch.where" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("arithmetic", ["float", "int8"])
def test_export_and_verify_a_library(run, tmp_path: Path, arithmetic: str) -> None:
    """A model is written as a library that verifies itself; one that was changed is refused."""
    arguments = ("--output", "library", "--name", "own", "--arithmetic", arithmetic)
    code, out, err = run("export", "net.py:factory", *arguments)
    verified = run("verify", "library")
    (tmp_path / "library" / "own.c").write_text("")

    assert code == 0, err
    assert "own.h" in out
    assert "code" in out
    assert ("spikes differ" in out) == (arithmetic == "int8")
    assert verified[0] == 0, verified
    assert "the network of the model" in verified[1]
    assert run("verify", "library")[0] == 2


def test_export_and_verify_onnx_models(run, tmp_path: Path) -> None:
    """A model is written as ONNX models that a runtime compares with PyTorch."""
    arguments = ("--format", "onnx", "--output", "models", "--name", "own")
    code, out, err = run("export", "net.py:factory", *arguments)
    status, text, _ = run("verify", "models")

    assert code == 0, err
    assert "own_step.onnx" in out
    assert status == 0
    assert "own_step.onnx, y" in text


@pytest.mark.parametrize(
    ("arch", "stages"), [("sm_90", {"ptx", "cubin"}), ("gfx942", {"amdgcn", "hsaco"})]
)
def test_emit_for_a_gpu(
    run: Callable[..., tuple[int, str, str]], arch: str, stages: set[str]
) -> None:
    """Sources, instructions and binaries are written, and what they take of a GPU is shown."""
    pytest.importorskip("triton")
    status, out, _ = run("emit", "net.py:factory", "--output", "kernels", "--arch", arch)
    written = {path.suffix[1:] for path in Path("kernels").iterdir()}
    rows = json.loads(Path("kernels/resources.json").read_text())

    assert status == 0
    assert written == {"py", "json", *stages}
    assert [row["kernel"].rpartition("_")[2] for row in rows] == [
        "inference",
        "training",
        "backward",
    ]
    assert {row["spilled_bytes"] for row in rows} == {0}
    assert rows[0]["loaded_bytes_per_neuron_step"] == rows[0]["stored_bytes_per_neuron_step"] == 4
    assert "neuron1_backward" in out


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on this machine")
def test_emit_cuda(run: Callable[..., tuple[int, str, str]]) -> None:
    """A text is written with the sizes that its binary was made for."""
    status, out, _ = run("emit", "net.py:factory", "--output", "kernels", "--target", "cuda")
    written = {path.suffix[1:] for path in Path("kernels").iterdir()}
    rows = json.loads(Path("kernels/resources.json").read_text())
    text = Path("kernels/neuron1_backward.cu").read_text()

    assert status == 0
    assert written == {"cu", "json", "ptx", "cubin"}
    assert [row["kernel"].rpartition("_")[2] for row in rows] == [
        "inference",
        "training",
        "backward",
    ]
    assert {row["spilled_bytes"] for row in rows} == {0}
    assert rows[0]["loaded_bytes_per_neuron_step"] == rows[0]["stored_bytes_per_neuron_step"] == 4
    assert text.startswith("#define VARIANT\n#define LANE int\n")
    assert "neuron1_backward" in out


def test_emit_without_a_cuda_compiler(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nvcc is missing the error says so, and nothing is written."""
    monkeypatch.setenv("SNNCC_NVCC", "no-such-nvcc")
    status, _, err = run("emit", "net.py:factory", "--output", "kernels", "--target", "cuda")

    assert status == 2
    assert "The CUDA compiler 'no-such-nvcc' that SNNCC_NVCC names is not there." in err
    assert not Path("kernels").exists()


def test_emit_c(run: Callable[..., tuple[int, str, str]]) -> None:
    """C kernels are written as they are."""
    status, _, _ = run("emit", "net.py:factory", "--output", "kernels", "--target", "c")
    files = sorted(path.name for path in Path("kernels").iterdir())

    assert status == 0
    assert files == ["neuron1_backward.c", "neuron1_inference.c"]


LOOP = """
import torch
from tests.recurrent_models import OwnSpikes

def factory():
    return OwnSpikes().bfloat16(), (torch.rand(5, 64, 6).bfloat16().requires_grad_(),)
"""


def test_emit_steps_of_a_loop(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """The fused steps of a recurrent loop are kernels like others: forward, training, reverse."""
    pytest.importorskip("triton")
    (tmp_path / "loop.py").write_text(LOOP)
    status, _, err = run("emit", "loop.py:factory", "--output", "kernels", "--target", "triton")
    rows = json.loads(Path("kernels/resources.json").read_text())

    assert status == 0, err
    assert [row["kernel"].split("_", 3)[3] for row in rows] == [
        "forward_step1",
        "training_step1",
        "backward_step1_adjoint",
    ]
    assert {row["spilled_bytes"] for row in rows} == {0}
    # Two products and the potential are read, the next potential and the spike are written.
    assert rows[0]["loaded_bytes_per_neuron_step"] == 6
    assert rows[0]["stored_bytes_per_neuron_step"] == 4
    assert all(Path(f"kernels/{row['kernel']}.{s}").exists() for row in rows for s in ("py", "ptx"))


def test_emit_steps_of_a_loop_in_c(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """C kernels of steps are written as they are, too."""
    (tmp_path / "loop.py").write_text(LOOP.replace(".bfloat16()", ""))
    status, _, err = run("emit", "loop.py:factory", "--output", "kernels", "--target", "c")

    assert status == 0, err
    assert len(list(Path("kernels").glob("*_step1*.c"))) == 3


def test_emit_for_no_gpu(run: Callable[..., tuple[int, str, str]]) -> None:
    """An architecture that does not exist is an error."""
    pytest.importorskip("triton")
    status, _, err = run("emit", "net.py:factory", "--output", "kernels", "--arch", "vax")

    assert status == 2
    assert "There is no architecture 'vax'" in err


def test_emit_into_a_file(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """What cannot be written is an error with a code."""
    (tmp_path / "file").write_text("kept")
    status, _, err = run(
        "emit", "net.py:factory", "--output", str(tmp_path / "file"), "--target", "c"
    )

    assert status == 2
    assert "bundle.write" in err
    assert (tmp_path / "file").read_text() == "kept"
