"""Every compiler and processor gives the bits that this machine gives without optimisation."""

from __future__ import annotations

import pytest

import snncc
from tests.export.networks import LIBRARIES, Exported, prepared
from tests.export.quantized_networks import QUANTIZED
from tests.export.toolchains import HOST, TOOLCHAINS, Toolchain, sources

# Exponentials are those of each machine's own library.
EXPONENTIALS = {"attending", "cells", "gated", "layers"}
FLOATS = {f"{n}-float": case for n, case in LIBRARIES.items() if n not in EXPONENTIALS}
NARROW = {f"{n}-int8": case for n, case in QUANTIZED.items()}
WIDE = {f"{n}-int16": QUANTIZED[n] for n in ("arithmetic", "conv", "joined")}
CASES: dict[str, Exported] = FLOATS | NARROW | WIDE


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Export every network once and run it on this machine."""
    folder = tmp_path_factory.mktemp("programs")
    made = {}
    for name, case in CASES.items():
        model, x = prepared(case)
        plain, _, arithmetic = name.rpartition("-")
        fast = snncc.compile(model, **case.options)
        work = folder / name
        work.mkdir()
        bundle = snncc.export(
            fast,
            work / "bundle",
            example_inputs=(x,),
            name=f"net_{plain}",
            arithmetic=arithmetic,
        )
        made[name] = (work, sources(bundle, work))
    return made


@pytest.mark.parametrize("toolchain", TOOLCHAINS, ids=lambda t: t.name)
def test_bits_are_those_of_this_machine(toolchain: Toolchain, request):
    """All example networks compile without a warning, run, and give the same bits."""
    if toolchain.missing():
        pytest.skip(f"{toolchain.name} needs {toolchain.missing()}")
    for name, (work, files) in request.getfixturevalue("programs").items():
        expected = work / "expected"
        if not expected.exists():
            expected.write_text(HOST.run(work, files))
        printed = toolchain.run(work, files)

        assert printed, name
        assert expected.read_text() == printed, name
