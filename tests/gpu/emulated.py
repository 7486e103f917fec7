"""A GPU that is not there: CUDA's driver and compiler, played by the CPU.

Everything but these two is what runs on a GPU: plans, texts, the cache, the packing of parameters.
"""

from __future__ import annotations

import ctypes
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NVCC = Path(__file__).parent / "cuda_on_cpu" / "nvcc.py"


@dataclass
class Library:
    """Plays libcuda: a module is a library of the CPU.

    Attributes:
        launched: Blocks and threads of each launch, in order.
        refuse: A function that fails, and with which status.
    """

    launched: list[tuple[int, int]] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    contexts: list[int] = field(default_factory=list)
    _modules: dict[int, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = getattr(type(self), "_" + re.sub("(?<!^)(?=[A-Z])", "_", name).lower())
        return lambda *arguments: self.refuse.get(name) or function(self, *arguments) or 0

    def _cu_init(self, flags: int) -> None:
        assert flags == 0

    def _cu_device_get(self, device: Any, ordinal: int) -> None:
        device._obj.value = ordinal

    def _cu_device_primary_ctx_retain(self, context: Any, device: ctypes.c_int) -> None:
        context._obj.value = 100 + device.value

    def _cu_ctx_push_current_v2(self, context: ctypes.c_void_p) -> None:
        self.contexts.append(context.value)

    def _cu_ctx_pop_current_v2(self, context: Any) -> None:
        context._obj.value = self.contexts.pop()

    def _cu_module_load_data(self, module: Any, image: bytes) -> None:
        assert self.contexts
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(image)
            file.flush()
            key = len(self._modules) + 1
            self._modules[key] = ctypes.CDLL(file.name)
        module._obj.value = key

    def _cu_module_get_function(self, function: Any, module: ctypes.c_void_p, name: bytes) -> None:
        assert self._modules[module.value][name.decode()]
        function._obj.value = module.value

    def _cu_launch_kernel(self, function: ctypes.c_void_p, *arguments: Any) -> None:
        blocks, _, _, threads, _, _, shared, stream, parameters, extra = arguments
        assert self.contexts
        assert (shared, stream.value, extra.value) == (0, None, None)
        self.launched.append((blocks, threads))
        self._modules[function.value].snncc_emulate(blocks, threads, parameters)

    def _cu_get_error_string(self, status: int, text: Any) -> None:
        text._obj.value = f"status {status}".encode()
