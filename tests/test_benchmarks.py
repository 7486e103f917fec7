"""The benchmarks run, compare what they claim to compare, and write what they measured."""

import json
from functools import partial

import numpy
import pytest
import torch

import snncc

pytest.importorskip("matplotlib", reason="the benchmarks draw pictures")

from benchmarks import (
    asynchronous,
    compile_time,
    devices,
    forms,
    hard_reset,
    harness,
    latency,
    libraries,
    network,
    neuron,
    online,
    parallel,
    recurrent,
    sweeps,
    whole_numbers,
)


def test_variants_run_in_turn():
    """After the warm-up, each round runs every variant once, in order."""
    log = []
    variants = {"a": partial(log.append, "a"), "b": partial(log.append, "b")}
    budget = harness.Budget(warmup=1, rounds=3, least_rounds=3, seconds=0.0)
    seconds = harness.interleave(variants, budget)

    assert log == ["a", "b", *["a", "b"] * 3]
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_rounds_stop_at_the_time_limit_but_not_before_the_least_number():
    """A slow case still gets its least number of rounds."""
    seconds = harness.interleave({"a": int}, harness.Budget(0, 100, 2, seconds=0.0))

    assert len(seconds["a"]) == 2


@pytest.mark.parametrize("case", range(len(neuron.QUICK_CASES)))
def test_neuron_variants_agree_with_eager(case, capsys):
    """In each quick case the compiled neuron fires exactly as the serial code does."""
    rows = neuron.main(["--quick", "--case", str(case), "--seconds", "0.01"])
    compiled = next(row for row in rows if row["variant"] == "snncc")

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert compiled["spikes_differ"] == 0
    # The same terms in another order: a few roundings of gradients of order one.
    assert compiled.get("gradient_difference", 0.0) < 1e-5
    assert all("skipped" in row or row["median_ms"] > 0 for row in rows)


def test_network_compares_with_the_products_alone(capsys):
    """The lower bound is among the variants, and layers of the network do fire."""
    rows = network.main(["--quick", "--case", "0", "--seconds", "0.01"])

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert [row["variant"] for row in rows] == ["eager", "snncc", "products alone"]
    assert all(0.005 < rate < 0.5 for rate in rows[0]["firing_rates"])


def test_memory_of_a_variant_is_measured(capsys):
    """A training step needs memory above the start."""
    network.main(["--quick", "--case", "0", "--memory", "eager"])
    record = json.loads(capsys.readouterr().out)

    assert record["peak_mib"] > 0


def test_first_step_is_timed(capsys):
    """The first step of the serial code takes time, and so do later ones."""
    compile_time.main(["--child", "eager", "--lengths", "4"])
    record = json.loads(capsys.readouterr().out)

    assert record["first_step_ms"] > 0
    assert record["later_step_ms"] > 0


def test_stages_of_the_first_step_are_timed(capsys):
    """The stages are parts of the first step; sizes that were seen twice are not recorded."""
    compile_time.main(["--child", "snncc", "--lengths", "6"])
    record = json.loads(capsys.readouterr().out)
    stages = [record[name] for name in compile_time.STAGES]

    assert min(stages) > 0
    assert sum(stages) + record["later_step_ms"] == pytest.approx(record["first_step_ms"])
    assert record["second_sizes_ms"] > record["third_sizes_ms"]


@pytest.mark.parametrize(("share", "busy"), [(0.1, False), (1.5, True)])
def test_a_busy_machine_is_told(share, busy, tmp_path, monkeypatch, capsys):
    """Results from a machine with other work are marked, in the file and on the terminal."""
    monkeypatch.setattr(harness, "LOAD_AT_START", share * harness.os.cpu_count())
    arguments = harness.parser("").parse_args(["--results", str(tmp_path), "--machine", "m"])
    stem = harness.write("example", [], arguments)

    assert json.loads(stem.with_suffix(".json").read_text())["machine"]["busy"] is busy
    assert ("ratios mean nothing" in capsys.readouterr().out) is busy


def test_results_hold_machine_and_records(tmp_path, capsys):
    """A result file says where its numbers are from; a skipped variant keeps its reason."""
    arguments = harness.parser("").parse_args(
        ["--results", str(tmp_path), "--machine", "Test CPU", "--quick"]
    )
    records = [
        {"case": "one", "variant": "a", "median_ms": 1.5},
        {"case": "one", "variant": "b", "skipped": "not here"},
    ]
    stem = harness.write("example", records, arguments)
    picture = harness.plot_bars(records, stem, "median_ms")
    harness.show("one", records, {"variant": "", "median_ms": ".1f", "note": ""})
    stored = json.loads((tmp_path / "test-cpu" / "example-quick.json").read_text())

    assert stored["records"] == records
    assert stored["machine"]["versions"]["torch"] is not None
    assert picture.stat().st_size > 0
    assert "skipped: not here" in capsys.readouterr().out


def test_latency_of_a_step_is_measured(capsys):
    """Serial code, stream and library run the same network on the same input."""
    rows = latency.main(["--quick", "--case", "1", "--seconds", "0.01"])

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert [row["variant"] for row in rows] == [
        "serial code",
        "stream",
        "onnxruntime, empty call",
        "onnxruntime, step",
        "onnxruntime, sequence",
        "C library",
    ]
    assert rows[-1]["weight_bytes"] > 4 * 700 * 128


def test_online_variants_have_the_gradients_of_the_serial_code(capsys):
    """The serial code, a stream and a call for all steps train the same network."""
    rows = online.main(["--quick", "--case", "3", "--seconds", "0.01"])
    compared = {row["variant"]: row.get("gradient_difference") for row in rows}

    assert json.loads(capsys.readouterr().out)["records"] == rows
    # The same terms in another order, and a sum of a few tens of them.
    assert all(compared[name] < 1e-5 for name in online.COMPARED)
    assert all("skipped" in row or row["kept_kib"] > 0 for row in rows)


def test_whole_numbers_are_timed_beside_floats(capsys):
    """Each arithmetic has a time and sizes, and the network fires."""
    rows = whole_numbers.main(["--quick", "--case", "1"])

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert [row["variant"] for row in rows] == ["float", "int8", "int16"]
    assert rows[1]["weight_bytes"] < rows[2]["weight_bytes"] < rows[0]["weight_bytes"]
    assert all(row["step_us"] > 0 for row in rows)
    assert 0 < rows[0]["rate"] < 0.5


def test_latency_compares_the_same_spikes():
    """The ONNX models that are timed give the spikes of the serial code."""
    torch.manual_seed(0)
    model, x = latency.Network().eval(), latency.make_input(0.05)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # so that the last layer fires
        variants = latency.onnx_variants(snncc.compile(model), x)
        expected = model(x)

    assert expected.any()
    assert numpy.array_equal(variants["onnxruntime, sequence"](), expected.numpy())
    assert numpy.array_equal(variants["onnxruntime, step"](), expected.numpy())


def test_neurons_without_reset_are_compared(capsys):
    """The matrix over time is the reference of the ratios."""
    rows = parallel.main(["--quick", "--case", "0", "--seconds", "0.01"])

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert rows[0]["variant"] == "PSN"
    assert all(row["psn_over_this"] > 0 for row in rows)


def test_hard_resets_are_compared(capsys):
    """Both modes give the same spikes; the run over all steps is the reference of the ratios."""
    rows = hard_reset.main(["--quick", "--case", "0", "--seconds", "0.01"])

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert [row["variant"] for row in rows] == ["fused, snncc", "parallel reset, snncc"]
    assert rows[1]["fused_over_this"] > 0
    assert 0 < rows[1]["rate"] < 1


def test_queues_of_spikes_are_compared(capsys):
    """Kernels have the spikes of their reference; what happened is in the records."""
    rows = asynchronous.main(["--quick", "--case", "0", "--seconds", "0.01"])

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert len(rows) == 2 * (1 + 2 * len(asynchronous.GROUPS))
    queues = [row for row in rows if row["variant"] != "layered"]
    assert all(row["forward_steps"] > 0 for row in queues)
    assert all(row["spikes"] > 0 for row in rows)
    assert all(row["events_per_second"] > 0 for row in queues)


def test_sweeps_are_counted_and_compared(capsys, monkeypatch):
    """Results until stable are checked before they are timed; a few sweeps are not exact."""
    monkeypatch.setattr(sweeps, "DECAYS", (0.9,))
    monkeypatch.setattr(sweeps, "SCALES", (1.0,))
    times, extremes, schedules = (
        sweeps.main(["--quick", "--case", str(case), "--seconds", "0.01"]) for case in range(3)
    )

    assert capsys.readouterr().out.count("records") == 3
    assert {row["variant"] for row in times} == {
        *("until stable", "3 soft sweeps", "3 soft sweeps, drawn", "fused time", "eager")
    }
    assert all(1 <= row["sweeps_of_all_steps"] <= 25 for row in extremes)
    assert [row["variant"] for row in schedules][1] == "schedule [1, 3, 12]"
    assert 0 < schedules[0]["wrong_at_decay_0.9"] < 1


@pytest.mark.parametrize("case", range(len(libraries.QUICK_CASES)))
def test_library_networks_are_compared_before_they_are_timed(case, capsys):
    """Each path of a library has a compiled twin, equal to it, and the products below both."""
    rows = libraries.main(["--quick", "--case", str(case), "--seconds", "0.01"])
    paths = list(libraries.QUICK_CASES[case].variants)

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert [row["variant"] for row in rows] == [
        *(name for path in paths for name in (path, f"snncc, {path}")),
        "products alone",
        "products, skipping zeros",
    ]
    assert max(rows[0]["input_densities"][1:]) > 0.01


def test_a_wrong_gradient_stops_the_library_benchmark(monkeypatch):
    """What is compiled must agree with the library to be timed."""
    case = libraries.QUICK_CASES[2]
    torch.manual_seed(0)
    model = case.network()
    monkeypatch.setattr(libraries.snncc, "compile", lambda twin: _Scaled(twin))

    with pytest.raises(RuntimeError, match="differs by"):
        libraries.require_equal(model, torch.randn(case.shape), torch.zeros(2, dtype=torch.long))


class _Scaled(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 1.001


@pytest.mark.parametrize("case", range(len(recurrent.QUICK_CASES)))
def test_recurrent_networks_are_compared(case, capsys):
    """Eager mode, the compiled loop and the products alone are timed, and the neurons do fire."""
    rows = recurrent.main(["--quick", "--case", str(case), "--seconds", "0.01"])

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert [row["variant"] for row in rows] == ["eager", "snncc", "products alone"]
    assert 0.005 < rows[0]["firing_rate"] < 0.5


@pytest.mark.parametrize("kind", recurrent.LAYERS)
def test_recurrent_layers_fire(kind):
    """The layers of the libraries are at work too: an untrained network fires."""
    model, x, _ = recurrent.make_model(recurrent.Case(kind, 20, 16))
    if isinstance(model, harness.Skipped):
        pytest.skip(model.reason)

    assert 0.005 < recurrent.firing_rate(model, x) < 0.5


def test_one_case_is_measured_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    """A long benchmark can be run in pieces; cases stay in order."""
    names = [case.name for case in libraries.QUICK_CASES]
    rows = [{"case": name, "variant": "a", "median_ms": 1.0} for name in names]
    monkeypatch.setattr(harness, "run_case", lambda module, number, given: [rows[number]])
    options = ["--quick", "--results", str(tmp_path), "--machine", "m"]
    for number in (2, 0):
        libraries.main([*options, "--only", str(number)])

    stored = json.loads((tmp_path / "m" / "libraries-quick.json").read_text())["records"]
    assert stored == [rows[0], rows[2]]


def test_forms_are_timed_and_priced(capsys, tmp_path):
    """Each case has fused time and a cut; estimates and prices are printed and written."""
    rows = forms.main(["--quick", "--case", "1", "--seconds", "0.01", "--results", str(tmp_path)])

    assert {row["variant"] for row in rows} == {"fused time", "8 chunks"}
    assert all(row["median_ms"] > 0 for row in rows)
    assert '"rows"' in capsys.readouterr().out
    assert list(tmp_path.rglob("forms-quick.json"))


def test_of_several_passes_the_quietest_counts():
    """A case is kept whole, with the pass in which its variants took least."""

    def of(case, *times):
        variants = zip("ab", times, strict=True)
        return [{"case": case, "variant": v, "median_ms": ms} for v, ms in variants]

    first, second = of("x", 1.0, 9.0) + of("y", 2.0, 3.0), of("x", 2.0, 3.0) + of("y", 2.0, 4.0)

    assert forms.quieter(first, second) == of("x", 2.0, 3.0) + of("y", 2.0, 3.0)


@pytest.mark.slow
def test_devices_compare_with_one_process(capsys):
    """Both processes take part, and the formula stands next to what was measured."""
    rows = devices.main(["--quick", "--case", "0", "--seconds", "0.01"])
    split = [row for row in rows if row["variant"].startswith("2 processes")]

    assert json.loads(capsys.readouterr().out)["records"] == rows
    assert [row["variant"] for row in rows[:3]] == [
        *(devices.ONE, devices.TWO_THREADS, devices.TRANSFER)
    ]
    assert len(split) == len(devices.QUICK_CASES[0].blocks)
    assert all(row["median_ms"] > 0 and row["formula_ms"] > 0 for row in split)
