"""Libraries in C whose step runs a queue of spikes."""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.errors import SnnccError
from snncc.export.network import events
from tests.events.models import Chain, Convolutional, Wired, dyadic, spikes
from tests.events.test_async_mode import shown

STRICT = ("-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow", "-Wvla")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def case(kind: str) -> tuple[Any, Tensor, dict[str, Any]]:
    """Return a model, an input and options."""
    rng = random.Random(kind)
    if kind == "sparse":
        model = dyadic(Convolutional(), rng).eval()
        return model, spikes(rng, 4, 2, 1, 6, 6), {"prioritize_input": False, "group_size": 4}
    if kind == "functions":
        return shown, spikes(rng, 5, 2, 4), {"group_size": 2}
    if kind == "feedback":
        model = dyadic(Wired(["recurrent", "summed", "feedback"], rng), rng)
        return model, spikes(rng, 6, 2, 4), {"group_size": 2, "order_noise": 0.5}
    options: dict[str, dict[str, Any]] = {
        "network": {"group_size": 2},
        "drawn": {"group_size": 1, "order": "random"},
        "stopped": {"group_size": 1, "prioritize_input": False, "stop": 1},
    }
    return dyadic(Chain([4, 6, 5, 3]), rng), spikes(rng, 6, 1, 4), options[kind]


def exported(folder: Path, model: Any, x: Tensor, name: str, **options: Any) -> Any:
    """Return a compiled model and its library."""
    fast = snncc.compile(model, mode="async", **options)
    if isinstance(model, nn.Module):
        model.eval()
    return fast, snncc.export(fast, folder / name, example_inputs=(x,), name=name)


@pytest.mark.parametrize("kind", ["network", "drawn", "stopped", "sparse", "functions", "feedback"])
def test_library_is_the_queue(kind: str, tmp_path: Path) -> None:
    """It compiles without a warning, and no bit differs; random numbers are those of the call."""
    model, x, options = case(kind)
    _, bundle = exported(tmp_path, model, x, kind, **options)

    flags = (*STRICT, *SANITIZED) if kind in ("drawn", "sparse") else STRICT
    report = snncc.verify_bundle(bundle.folder, flags=flags)

    assert report.ok, report
    assert re.findall(r", (\d+) differ", report.text) == ["0"] * report.text.count("differ,")
    assert "last_operations" in (bundle.folder / f"{kind}.h").read_text()


class Library:
    """A library that is loaded into this process, and one network of it."""

    def __init__(self, bundle: Any, outputs: int) -> None:
        path = bundle.folder / "shared.so"
        sources = [bundle.folder / f"{bundle.name}{end}.c" for end in ("", "_weights")]
        cc = shutil.which("cc") or "cc"
        flags = ["-std=c11", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
        subprocess.run([cc, *flags, *map(str, sources), "-o", str(path), "-lm"], check=True)
        self.library, self.name, self.outputs = ctypes.CDLL(str(path)), bundle.name, outputs
        self.net = ctypes.create_string_buffer(1 << 16)
        weights = ctypes.c_char.in_dll(self.library, f"{self.name}_weights")
        self.call("init")(ctypes.byref(self.net), ctypes.byref(weights))

    def call(self, function: str) -> Callable[..., int]:
        """Return a function of the library."""
        found: Any = getattr(self.library, f"{self.name}_{function}")
        return found

    def step(self, x: Tensor) -> Tensor:
        """Take a step."""
        given, out = x.numpy(), numpy.empty(self.outputs)
        places = (given.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p))
        assert self.call("step")(ctypes.byref(self.net), *places) == 0
        return torch.from_numpy(out)

    def counts(self) -> dict[str, int]:
        """Return what the last step took."""
        names = ("forward_steps", "events", "spikes", "operations", "evaluations")
        return {name: self.call(f"last_{name}")(ctypes.byref(self.net)) for name in names}


def test_library_goes_on_as_a_stream(tmp_path: Path) -> None:
    """Thousands of steps, silence, what is no number: outputs and counts are those of a stream."""
    model, x, options = case("network")
    fast, bundle = exported(tmp_path, model, x.repeat(1, 2, 1), "net", **options)
    library, step = Library(bundle, 2 * 3), fast.stream(x.repeat(1, 2, 1))
    rng = random.Random(0)
    x = spikes(rng, 2000, 2, 4)
    x[500:900] = 0.0
    x[1990, 1, 2] = float("nan")

    for t, x_t in enumerate(x):
        found, expected = library.step(x_t).reshape(2, 3), step(x_t)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)
        if t % 100 == 0 or t > 1985:
            counts = {name: int(n.sum()) for name, n in step.last_events.items()}
            assert library.counts() == counts
    library.call("reset")(ctypes.byref(library.net))
    step.reset()
    assert library.counts()["events"] == 0
    assert torch.equal(library.step(x[0]).reshape(2, 3), step(x[0]))


def test_size_of_a_sparse_matrix_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix with more places than a source file should hold is refused."""
    monkeypatch.setattr(events, "MOST_PLACES", 10)
    model, x, options = case("sparse")

    with pytest.raises(SnnccError, match="weights among zeros; 10 fit") as refusal:
        exported(tmp_path, model, x, "large", **options)

    assert refusal.value.code == "unsupported.export"
