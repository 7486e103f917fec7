"""No bytes make the loader of weights, or a step, leave its memory or its types."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import snncc
from tests.export.networks import prepared
from tests.export.quantized_networks import QUANTIZED
from tests.export.toolchains import DEVICE, find

CHECKS = ("-std=c11", "-O1", "-g", "-fno-sanitize-recover=all")
RUNS = 300


@pytest.mark.parametrize(
    ("name", "arithmetic"),
    [("dense", "float"), ("grouped", "float"), ("synaptic", "int8"), ("grouped", "int8")],
)
def test_any_bytes_are_survived(tmp_path, name, arithmetic):
    """By libFuzzer where clang has it, else by random bytes, with both sanitizers."""
    model, x = prepared(QUANTIZED[name])
    bundle = snncc.export(
        snncc.compile(model),
        tmp_path / "b",
        example_inputs=(x,),
        name="net",
        arithmetic=arithmetic,
    )
    files = [DEVICE / "fuzz.c", bundle.folder / "net.c", bundle.folder / "net_weights.c"]
    rest = [f"-I{bundle.folder}", *map(str, files), "-o", str(tmp_path / "fuzz"), "-lm"]
    clang = find("clang")
    command = [str(clang), *CHECKS, "-fsanitize=fuzzer,address,undefined", *rest]
    arguments = [f"-runs={RUNS}", "-seed=1", "-max_len=600"]
    if clang is None or subprocess.run(command, capture_output=True).returncode != 0:
        cc = shutil.which("cc") or "cc"
        command = [cc, *CHECKS, "-fsanitize=address,undefined", "-DOWN_DRIVER", *rest]
        subprocess.run(command, check=True)
        arguments = [str(RUNS)]

    ran = subprocess.run(
        [str(tmp_path / "fuzz"), *arguments], cwd=tmp_path, capture_output=True, text=True
    )

    assert ran.returncode == 0, ran.stderr[-3000:]
