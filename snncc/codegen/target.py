"""The interface of a language that kernels are written in."""

from __future__ import annotations

from typing import ClassVar, Protocol

from snncc.codegen.base import KernelSource
from snncc.codegen.kernel_ir import Kernel


class Target(Protocol):
    """A language that kernels are written in."""

    name: ClassVar[str]

    def emit(self, kernel: Kernel) -> KernelSource:
        """Write a kernel in this language."""
        ...
