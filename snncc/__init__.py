"""snncc: from plain serial PyTorch code for spiking neural networks to fused kernels.

    fast = snncc.compile(model)          # an nn.Module that shares its parameters with the model
    y = fast(x)                          # recorded and compiled at the first call
    print(fast)                          # the plan: what runs how
    report = snncc.verify(model, fast, x)
    print(snncc.explain(model, x))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snncc.equivalence import Report, verify
from snncc.errors import (
    BuildError,
    CaptureError,
    EquivalenceError,
    FallbackWarning,
    FormError,
    InternalError,
    LaunchError,
    OptionError,
    SnnccError,
    SnnccWarning,
    TargetError,
    UnsupportedError,
)
from snncc.explanation import Explanation, explain
from snncc.ir.numerics import Numerics
from snncc.module import CompiledModule, compile_model
from snncc.options import Options
from snncc.report import Layer, Plan

__version__ = "0.1.0"

__all__ = [
    "BuildError",
    "CaptureError",
    "CompiledModule",
    "EquivalenceError",
    "Explanation",
    "FallbackWarning",
    "FormError",
    "InternalError",
    "LaunchError",
    "Layer",
    "Numerics",
    "OptionError",
    "Options",
    "Plan",
    "Report",
    "SnnccError",
    "SnnccWarning",
    "TargetError",
    "UnsupportedError",
    "compile",
    "explain",
    "verify",
]


def compile(  # noqa: A001 - the verb of the interface, as in torch.compile
    model: Callable[..., Any],
    *,
    example_inputs: tuple[Any, ...] | None = None,
    **options: Any,
) -> CompiledModule:
    """Compile a serial spiking network into fused kernels.

    Args:
        model: An ``nn.Module`` or callable that takes the whole sequence and loops over time in
            Python.  It is not modified.
        example_inputs: Record and compile at once for these inputs, rather than at the first call.
        **options: Fields of `Options`: ``mode``, ``target``, ``fallback``, ``storage``,
            ``num_threads``.

    Returns:
        A module that computes what ``model`` computes and shares its parameters and buffers.

    Raises:
        OptionError: An option does not exist or has no such value.
        CaptureError: The model's Python cannot be captured (at the first call).
        UnsupportedError: Part of the model cannot be compiled exactly (at the first call).
    """
    return compile_model(model, Options.of(**options), example_inputs)
