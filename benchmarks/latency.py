"""One time step of inference at batch one: serial code, a stream, ONNX models, a C library.

The network is 700-128-128-20 LIF.  Dense input has a value everywhere, sparse input a spike at one
place in twenty.  A step of the library is timed by its own test program, over whole sequences; the
others are timed from Python, so many steps a round that the clock does not matter.  The ONNX models
are the exported ones of the same network, run by onnxruntime on one thread: a step at a time, which
costs a call from Python, and the whole sequence in one call; an empty call takes and returns what a
step does and computes nothing.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import snncc
from benchmarks import harness
from benchmarks.harness import Record
from snncc.nn import ATan

WIDTHS = (700, 128, 128, 20)
STEPS = 100
DENSITIES = {"dense input": 1.0, "5 % spikes": 0.05}


class Network(nn.Module):
    """Three LIF layers; one step is a method, so that the serial code can be timed alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS))
        self.spike = ATan()

    def start(self, batch: int) -> list[Tensor]:
        """Return the potentials before the first step."""
        return [torch.zeros(batch, n) for n in WIDTHS[1:]]

    def step(self, x: Tensor, v: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Take one step from the potentials ``v``."""
        after = []
        for layer, old in zip(self.layers, v, strict=True):
            h = 0.9 * old + layer(x)
            x = self.spike(h - 1.0)
            after.append(h * (1.0 - x))
        return x, after

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes [T, B, 20] of the last layer."""
        v, out = self.start(x.shape[1]), []
        for t in range(x.shape[0]):
            y, v = self.step(x[t], v)
            out.append(y)
        return torch.stack(out)


def make_input(density: float) -> Tensor:
    """Return a sequence [T, 1, 700]: values everywhere, or spikes here and there."""
    torch.manual_seed(0)
    x = torch.rand(STEPS, 1, WIDTHS[0])
    return x if density == 1.0 else (x < density).float()


def in_steps(run: Callable[[Tensor], object], x: Tensor) -> Callable[[], object]:
    """Return a function that takes every step of a sequence."""

    def whole() -> None:
        for x_t in x:
            run(x_t)

    return whole


def library_step_ms(fast: snncc.CompiledModule, x: Tensor, repeats: int) -> tuple[float, Record]:
    """Export, build and time a library; return the time of a step and its sizes."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = snncc.export(fast, Path(folder) / "net", example_inputs=(x,), name="net")
        command = ["make", "-C", str(bundle.folder), "main", "CFLAGS=-O3"]
        subprocess.run(command, check=True, capture_output=True)
        program = [str(bundle.folder / "main"), str(bundle.folder / "test_vector.bin")]
        done = subprocess.run(
            [*program, "--time", str(repeats)], check=True, capture_output=True, text=True
        )
        archive = (bundle.folder / "libnet.a").stat().st_size
    found = re.search(r"time: (\S+) us a step", done.stdout)
    memory = re.search(r"memory: (\d+) bytes of state and work, (\d+) bytes", done.stdout)
    assert found is not None
    assert memory is not None
    sizes = {"state_bytes": int(memory[1]), "weight_bytes": int(memory[2])}
    return float(found[1]) / 1e3, sizes | {"archive_bytes": archive}


def onnx_variants(fast: snncc.CompiledModule, x: Tensor) -> dict[str, Callable[[], object]]:
    """Return functions that run the exported ONNX models on a sequence; none without onnxruntime.

    They return the spikes, so that one can look at them.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = snncc.export(
            fast, Path(folder) / "net", format="onnx", example_inputs=(x,), name="net"
        )
        step = (bundle.folder / "net_step.onnx").read_bytes()
        sequence = one_thread((bundle.folder / "net.onnx").read_bytes())
        start = dict(numpy.load(bundle.folder / "start.npz"))
    whole = x.numpy()
    return {
        "onnxruntime, empty call": steps_of(one_thread(emptied(step)), whole, start),
        "onnxruntime, step": steps_of(one_thread(step), whole, start),
        "onnxruntime, sequence": lambda: sequence.run(None, {"x": whole})[0],
    }


def one_thread(model: bytes) -> Any:
    """Return a session of onnxruntime that computes on the thread that calls it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def emptied(model: bytes) -> bytes:
    """Return the model of a step without its computation: a state goes out as it came in."""
    import onnx
    from onnx import helper

    found = onnx.ModelProto.FromString(model)
    sizes = {value.name: value for value in found.graph.input}
    nodes = [
        helper.make_node("Identity", [value.name.removesuffix(".next")], [value.name])
        for value in found.graph.output
        if value.name.removesuffix(".next") in sizes
    ]
    zeros = helper.make_tensor("zeros", onnx.TensorProto.FLOAT, (1, WIDTHS[-1]), [0.0] * WIDTHS[-1])
    nodes.append(helper.make_node("Identity", ["zeros"], [found.graph.output[0].name]))
    graph = helper.make_graph(nodes, "empty", found.graph.input, found.graph.output, [zeros])
    opsets = found.opset_import
    empty: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=found.ir_version
    ).SerializeToString()
    return empty


def steps_of(session: Any, x: Any, start: dict[str, Any]) -> Callable[[], list[Any]]:
    """Return a function that runs a session step by step and hands the states on."""
    names = [value.name for value in session.get_outputs()]
    states = [name.removesuffix(".next") for name in names[1:]]

    def whole() -> list[Any]:
        seen, given = [], dict(start)
        for x_t in x:
            y, *after = session.run(None, {"x": x_t, **given})
            given = dict(zip(states, after, strict=True))
            seen.append(y)
        return seen

    return whole


def measure(name: str, budget: harness.Budget) -> list[Record]:
    """Time one step with one kind of input."""
    torch.set_num_threads(1)  # a step is too small for more
    x, model = make_input(DENSITIES[name]), Network().eval()
    with torch.no_grad():
        fast = snncc.compile(model)
        stream = fast.stream(x)
        state = model.start(1)
        variants = {
            "serial code": in_steps(lambda x_t: model.step(x_t, state), x),
            "stream": in_steps(stream, x),
            **onnx_variants(fast, x),
        }
        seconds = harness.interleave(variants, budget)
    records: list[Record] = [
        {"case": name, "variant": variant, "step_us": 1e3 * row["median_ms"] / STEPS}
        for variant, row in ((v, harness.summarize(s)) for v, s in seconds.items())
    ]
    step_ms, sizes = library_step_ms(fast, x, 20 if budget.rounds < 10 else 200)
    records.append({"case": name, "variant": "C library", "step_us": 1e3 * step_ms, **sizes})
    for record in records:
        record["eager_over_this"] = records[0]["step_us"] / record["step_us"]
    return records


COLUMNS = {
    "variant": "",
    "step_us": ".2f",
    "eager_over_this": ".1f",
    "state_bytes": "d",
    "weight_bytes": "d",
    "archive_bytes": "d",
}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    arguments = harness.parser("One step of inference at batch one.").parse_args(argv)
    parts = [partial(measure, name, harness.budget(arguments)) for name in DENSITIES]
    return harness.run_parts("latency", parts, arguments, COLUMNS)


if __name__ == "__main__":
    main()
