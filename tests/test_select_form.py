"""Mode auto: the form that a call of its sizes probably takes least in, bit for bit."""

import json
from dataclasses import fields

import pytest
import torch

import snncc
from snncc.ir.numerics import Numerics
from snncc.nn import LI, LIF, AdaptiveLIF, CubaLIF
from snncc.runtime.costs import work
from snncc.runtime.costs.work import Work, kernel_work, step_work
from tests.passes.test_parallelize_scan import decaying

NAMES = [field.name for field in fields(Work)]
# Where only the steps of a row cost anything, chunks side by side are always faster.
STEPS_ALONE = dict.fromkeys(NAMES, 0.0) | {"rows": 1e-6}
# Where only calls do, they never are.
CALLS_ALONE = dict.fromkeys(NAMES, 0.0) | {"calls": 1e-6, "operators": 1e-6}


@pytest.fixture
def price(monkeypatch, tmp_path):
    """Return a function that sets what work costs."""

    def set_prices(prices):
        file = tmp_path / "prices.json"
        file.write_text(json.dumps(prices))
        monkeypatch.setattr(work, "PRICES", file)
        work.prices_of.cache_clear()

    yield set_prices
    work.prices_of.cache_clear()


@pytest.mark.parametrize("model", [CubaLIF(), AdaptiveLIF(), LI(0.9)], ids=["cuba", "ada", "li"])
def test_chunks_are_chosen_where_steps_cost_most(model, price):
    """The plan names the form, its estimate and those that were slower; forward is bitwise."""
    price({"c": STEPS_ALONE})
    x = torch.randn(200, 2).requires_grad_()
    fast = snncc.compile(model, mode="auto", num_threads=1)

    report = snncc.verify(model, fast, x)
    (layer,) = fast.plans[0].neurons
    assert report.ok, report
    assert layer.form == "fused time, backward scan"
    assert layer.numerics is Numerics.BITWISE
    assert "chosen for 200 steps of 2 lanes, 1 thread, training: 0.2" in layer.note
    slower = {other.form: other for other in layer.rejected}
    assert slower["fused time"].code == "slower"
    assert "estimated for 200 steps" in slower["fused time"].reason
    assert torch.equal(fast(x), model(x))


def test_each_call_chooses_by_its_own_sizes(price):
    """Few steps, inference and many lanes are other choices than what was recorded."""
    price({"c": CALLS_ALONE | {"rows": 1e-7}})
    model = CubaLIF()
    fast = snncc.compile(model, mode="auto", num_threads=1)
    fast(torch.randn(2000, 2, requires_grad=True))
    (neuron,) = (n.target.neuron for n in runnable(fast) if hasattr(n.target, "neuron"))
    assert neuron.form == "fused time, backward scan"

    for x, form in [
        (torch.randn(20, 2, requires_grad=True), "fused time"),
        (torch.randn(2000, 2), "fused time"),
        (torch.randn(2000, 2, requires_grad=True), "fused time, backward scan"),
    ]:
        y = fast(x)
        assert torch.equal(y, model(x))
        assert neuron.form == form


def test_parallel_resets_are_tried_and_given_up(price):
    """They are chosen where steps cost most, until the data shows that most chunks run again."""
    price({"c": STEPS_ALONE})
    model = LIF(1.0)
    fast = snncc.compile(model, mode="auto", num_threads=1)
    torch.manual_seed(0)
    busy, silent = torch.rand(4000, 1), torch.full((4000, 1), 1e-6)
    fast(busy)
    (neuron,) = (n.target.neuron for n in runnable(fast) if hasattr(n.target, "neuron"))

    seen = []
    for x in (busy, silent, silent, silent):
        assert torch.equal(fast(x), model(x))
        seen.append(neuron.form)
    assert seen[0] == "parallel reset"
    assert seen[-1] == "fused time"
    assert [layer.form for layer in fast.plans[0].neurons] == ["parallel reset"]


def runnable(fast):
    """Return the nodes of the graph that a compiled model runs."""
    (compiled,) = fast._specializations
    return compiled.run.__self__.graph.nodes


def test_sweeps_are_no_faster_than_one(price):
    """Sweeps until stable are exact too: at least two, each as long as the serial kernel."""
    price({"c": CALLS_ALONE})
    fast = snncc.compile(LIF(0.9), mode="auto")
    fast(torch.randn(50, 2, requires_grad=True))
    (layer,) = fast.plans[0].neurons

    assert layer.form == "fused time"
    reasons = {other.form: other.reason for other in layer.rejected}
    assert reasons["fixed point"].startswith("two sweeps at least")


def test_targets_without_prices_take_fused_time(price):
    """Nothing is guessed for machines that were not measured; the plan says so."""
    price({})
    fast = snncc.compile(LIF(0.9), mode="auto")
    fast(torch.randn(50, 2, requires_grad=True))
    (layer,) = fast.plans[0].neurons

    assert layer.form == "fused time"
    assert "no prices were measured for target 'c'" in layer.note


def test_prices_that_ship_are_complete():
    """Each kind of work has a price, and none is negative."""
    prices = work.prices_of("c")

    assert sorted(prices) == sorted(NAMES)
    assert all(price >= 0 for price in prices.values())
    assert prices["rows"] > 0
    assert prices["calls"] > 0


def test_work_of_a_kernel():
    """Rows are shared by threads once there is work enough; lanes fill blocks."""
    step = step_work(decaying(0.9))
    assert (step.operations, step.maths, step.arrays) == (6, 0, 2)

    assert kernel_work(step, 100, 1, 33, 2) == Work(1, 0, 100, 1200, 0, 0, 2 * 4 * 100 * 33)
    assert kernel_work(step, 1 << 16, 2, 1, 2).rows == 1 << 16


def test_fit_finds_the_prices_that_made_the_times():
    """Least squares over relative errors, no price below zero."""
    forms = pytest.importorskip("benchmarks.forms", reason="the benchmarks draw pictures")
    generator = torch.Generator().manual_seed(0)
    true = dict(zip(NAMES, [4e-5, 1e-4, 1e-8, 6e-10, 0.0, 7e-6, 2e-11, 4e-11], strict=True))
    scales = [1, 1, 1e4, 1e5, 0, 10, 1e6, 1e6]
    records = []
    for _ in range(40):
        amounts = (10 ** (torch.rand(8, generator=generator) * 3)).tolist()
        done = Work(*(a * scale for a, scale in zip(amounts, scales, strict=True)))
        records.append({
            "case": "c", "work": dict(zip(NAMES, done.amounts, strict=True)),
            "median_ms": done.seconds(true) * 1e3,
        })  # fmt: skip

    found = forms.fit(records)
    assert all(abs(found[name] - true[name]) <= 1e-6 * true[name] for name in NAMES)
    assert forms.judge(records, found)["worst_factor"] == pytest.approx(1.0)
