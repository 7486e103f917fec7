"""What exports make of a case: a bundle that computes what the model does, or a refusal.

Each bundle runs its test vector: a library is compiled, ONNX models run by onnxruntime, a program
by torch, and a NIR graph by the serial code that reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import snncc
from tests.compatibility.case import Case
from tests.compatibility.check import inputs, made

FORMATS = ("c", "onnx", "pt2", "nir")


def check_export(case: Case, format: str, folder: Path) -> str:
    """Export the model of a case in evaluation mode, and run the test vector.

    Args:
        case: A case that compiles.
        format: What to.
        folder: Where to.

    Returns:
        The code of the refusal; nothing where it is exported.

    Raises:
        AssertionError: What was exported computes something else.
    """
    model = made(case)
    if isinstance(model, nn.Module):
        model.eval()
    fallback = {"fallback": "serial"} if case.expect == "serial part" else {}
    fast = snncc.compile(model, **case.options, **fallback).eval()
    try:
        bundle = snncc.export(fast, folder, format=format, example_inputs=_detached(case))
    except snncc.SnnccError as refusal:
        return refusal.code if refusal.hints else f"{refusal.code} says nothing of what to do"
    report = snncc.verify_bundle(bundle.folder)

    assert report.ok, f"{case.id}: {report}"
    return ""


def _detached(case: Case) -> tuple[Any, ...]:
    given = inputs(case, case.sizes[0], seed=1)
    result: tuple[Any, ...] = pytree.tree_map_only(Tensor, torch.Tensor.detach, tuple(given))
    return result
