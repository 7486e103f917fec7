"""Kernels that differ in names only have one anonymous text; all others have texts of their own."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from snncc.codegen.base import FloatType, Job, KernelSpec
from snncc.codegen.c.target import CTarget
from snncc.codegen.lower import lower
from snncc.ir.nodes import Input, Let, Rank, Recurrence, Var
from snncc.ir.program import NeuronProgram, Place
from snncc.runtime.binaries.cache import KernelCache
from snncc.runtime.operators import Neuron
from tests.neuron_programs import lif, sub
from tests.strategies import recurrences

BOTH = frozenset({"h_bar", "v_next_bar"})


def renamed(node: Any) -> Any:
    """Give everything in a program another name, in another alphabetical order."""
    if isinstance(node, Enum):
        return node
    if isinstance(node, str):
        return f"{node[::-1]}_other"
    if isinstance(node, tuple | frozenset):
        return type(node)(renamed(part) for part in node)
    if is_dataclass(node) and not isinstance(node, type):
        kept = {"where"}
        parts = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in kept}
        return replace(node, **{key: renamed(part) for key, part in parts.items()})
    return node


def texts(program: NeuronProgram, spec: KernelSpec) -> tuple[str, str]:
    """Return the text of a kernel and the anonymous text."""
    source = CTarget().emit(lower(program, spec))
    return source.text, source.anonymous


SPECS = [
    KernelSpec(Job.INFERENCE, FloatType.FLOAT32),
    KernelSpec(Job.TRAINING, FloatType.FLOAT64, uniform=frozenset({"v0"})),
    KernelSpec(Job.BACKWARD, FloatType.FLOAT32, wanted=BOTH),
    KernelSpec(Job.BACKWARD, FloatType.FLOAT32, wanted=frozenset({"h_bar"})),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.job.value)
@pytest.mark.parametrize("place", Place)
def test_names_do_not_matter(spec: KernelSpec, place: Place) -> None:
    """With all names replaced only the text with names changes."""
    text, anonymous = texts(lif(place), spec)
    other_text, other_anonymous = texts(renamed(lif(place)), renamed(spec))

    assert text != other_text
    assert anonymous == other_anonymous


@given(recurrences())
def test_names_of_generated_neurons_do_not_matter(recurrence: Recurrence) -> None:
    """The same holds for any neuron."""
    program = NeuronProgram(recurrence, None, None)
    _, anonymous = texts(program, SPECS[0])

    assert texts(renamed(program), SPECS[0])[1] == anonymous


def difference(first: str, second: str) -> NeuronProgram:
    """Return the neuron that subtracts the second input from the first."""
    inputs = (Input("x", Rank.STEP), Input("y", Rank.STEP))
    lets = (Let("s", sub(Var(first), Var(second))),)
    return NeuronProgram(Recurrence("difference", inputs, (), lets, ("s",), ()), None, None)


def test_everything_else_matters() -> None:
    """Kernels that compute something else, or take their arguments in another way, differ."""
    kernels = [
        *(texts(lif(), spec)[1] for spec in SPECS),
        texts(lif(Place.MEMORY), SPECS[1])[1],
        texts(lif(Place.MEMORY), SPECS[2])[1],
        texts(lif(decay=0.5), SPECS[0])[1],
        texts(lif(), replace(SPECS[0], dtype=FloatType.FLOAT64))[1],
        texts(lif(), replace(SPECS[0], uniform=frozenset({"v0"})))[1],
        texts(lif(), replace(SPECS[0], uniform=frozenset({"x"})))[1],
        texts(difference("x", "y"), SPECS[0])[1],
        texts(difference("y", "x"), SPECS[0])[1],
    ]

    assert len(set(kernels)) == len(kernels)


def test_equal_layers_share_a_library(tmp_path: Path) -> None:
    """The second layer finds the kernel of the first, also in another process."""
    x, v0 = torch.rand(5, 40), torch.zeros(())
    cache = KernelCache(tmp_path)
    with torch.no_grad():
        (expected,), _ = Neuron(lif(), cache=cache)([x], [v0])
        (actual,), _ = Neuron(renamed(lif()), cache=cache)([x], [v0])
        (again,), _ = Neuron(renamed(lif()), cache=KernelCache(tmp_path))([x], [v0])

    assert torch.equal(actual, expected)
    assert torch.equal(again, expected)
    assert len(list(tmp_path.glob("*/*/*/kernel.so"))) == 1
