"""snncc: from plain serial PyTorch code for spiking neural networks to fused kernels.

    fast = snncc.compile(model)          # an nn.Module that shares the parameters of model
    y = fast(x)                          # recorded and compiled at the first call
    print(fast)                          # the plan: what runs how, and what it promises
    snncc.verify(model, fast, x)         # is it the same network?
    snncc.explain(model, x)              # what became of every line of the loop
    step = fast.stream(x)                # one time step after another
    snncc.export(fast, "out", example_inputs=(x,))  # C, CUDA, ONNX, torch.export, NIR

`snncc.nn` has reference neurons, written as serially as yours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snncc import nn
from snncc.equivalence.certificate import Report
from snncc.equivalence.verify import verify
from snncc.errors import (
    BuildError,
    BundleError,
    CaptureError,
    EquivalenceError,
    FallbackWarning,
    FormError,
    InternalError,
    LaunchError,
    NumericsWarning,
    OptionError,
    SnnccError,
    SnnccWarning,
    TargetError,
    UnsupportedError,
)
from snncc.export.bundle import Bundle, read_bundle
from snncc.export.entry.export import export
from snncc.export.quantized.choice import Quantization
from snncc.export.replay import BundleReport, load_program, verify_bundle
from snncc.ir.numerics import Numerics
from snncc.model.convergence import Convergence, ConvergenceReport, convergence
from snncc.model.distribution import DistributedModule, distribute
from snncc.model.module import CompiledModule, compile_model
from snncc.nir.from_nir import NIRModel, from_nir
from snncc.nir.to_nir import to_nir
from snncc.options import Options
from snncc.reporting.explanation import Explanation, explain
from snncc.reporting.report import Layer, Plan
from snncc.runtime.streams.stream import Stream
from snncc.version import __version__

__all__ = [
    "BuildError",
    "Bundle",
    "BundleError",
    "BundleReport",
    "CaptureError",
    "CompiledModule",
    "Convergence",
    "ConvergenceReport",
    "DistributedModule",
    "EquivalenceError",
    "Explanation",
    "FallbackWarning",
    "FormError",
    "InternalError",
    "LaunchError",
    "Layer",
    "NIRModel",
    "Numerics",
    "NumericsWarning",
    "OptionError",
    "Options",
    "Plan",
    "Quantization",
    "Report",
    "SnnccError",
    "SnnccWarning",
    "Stream",
    "TargetError",
    "UnsupportedError",
    "__version__",
    "compile",
    "convergence",
    "distribute",
    "explain",
    "export",
    "from_nir",
    "load_program",
    "nn",
    "read_bundle",
    "to_nir",
    "verify",
    "verify_bundle",
]


def compile(
    model: Callable[..., Any],
    *,
    example_inputs: tuple[Any, ...] | None = None,
    **options: Any,
) -> CompiledModule:
    """Compile a serial spiking network into fused kernels.

    Args:
        model: An ``nn.Module`` or callable that takes the whole sequence and loops over time in
            Python; or, with ``step=True``, one time step: ``y = model(x_t)`` or
            ``y, state = model(x_t, state)``.  It is not modified.
        example_inputs: Arguments of a call, as a tuple: record and compile for them at once,
            rather than at the first call.
        **options: Fields of `Options`, such as ``mode="auto"``, ``target="cuda"``,
            ``num_threads=2`` or ``fallback="serial"``.

    Returns:
        A module that computes what ``model`` computes and shares its parameters and buffers.  For
        a model of one step it computes the sequence: ``y_seq, state = fast(x_seq, state)``.

    Raises:
        OptionError: An option does not exist or has no such value.
        CaptureError: The model's Python cannot be captured (at the first call).
        UnsupportedError: Part of the model cannot be compiled exactly (at the first call).
    """
    return compile_model(model, Options.of(options), example_inputs)
