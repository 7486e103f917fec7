"""Event networks by their C kernels, forward and backward.

Forward leaves, where gradients may be wanted, all membranes and a tape: which neurons delivered
their spikes, in order.  The tape has room for one entry of each neuron and time step; where a
sample needs more, forward runs once more when gradients are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from snncc.codegen.c.events.network import event_kernel
from snncc.errors import LaunchError
from snncc.ir.events.network import EventNetwork
from snncc.ir.printer import print_recurrence
from snncc.runtime import memory
from snncc.runtime.binaries.cache import CACHE, Function, KernelCache
from snncc.runtime.events.call import TYPES, Call
from snncc.runtime.events.layout import Kept, layout_of

_KERNELS: dict[str, EventKernel] = {}


class EventKernel:
    """An event network, run by C kernels.

    Args:
        network: The network.
        num_threads: Threads at most; None means those of torch at each call.
        cache: Where kernels come from.
    """

    def __init__(
        self,
        network: EventNetwork,
        num_threads: int | None = None,
        cache: KernelCache = CACHE,
    ) -> None:
        self.network, self._threads, self._cache = network, num_threads, cache
        self._functions: dict[tuple[torch.dtype, bool], Function] = {}
        self.key = _key_of(network, num_threads)
        _KERNELS.setdefault(self.key, self)

    def prepare(self, dtype: torch.dtype, *, backward: bool) -> None:
        """Start to build a kernel that will probably be needed soon."""
        self._cache.prepare(event_kernel(self.network, TYPES[dtype], backward=backward))

    def forward(
        self, flat: Sequence[Tensor], seed: int, *, training: bool, before: int = 0
    ) -> Kept:
        """Run the network.

        Args:
            flat: What it runs on, as `EventNetwork.flatten` gives it.
            seed: Of the random numbers.
            training: Whether what backward needs is kept.
            before: How many time steps were taken before.
        """
        call = self._call(flat, (seed, before), training=training)
        kept = self._run(call, call.layout.make(call.dtype, memory.empty))
        for g, last in zip(call.layout.copied, kept.lasts, strict=True):
            membranes = kept.membranes[g]
            assert membranes is not None
            last.copy_(membranes[-1])
        return kept

    def backward(
        self,
        cotangents: Sequence[Tensor | None],
        flat: Sequence[Tensor],
        saved: Sequence[Tensor],
        seed: int,
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """Return the gradients of what the network ran on, None where none is needed.

        Args:
            cotangents: Of the results.
            flat: What it ran on.
            saved: What a forward call in training left, as `Kept.flatten` gives it.
            seed: Of the random numbers.
            needs: Which gradients are needed.
        """
        call = self._call(flat, (seed, 0), training=True)
        kept = call.layout.unflatten(saved)
        entries = int(kept.extents[:, 0].max())
        if entries > kept.tape.shape[1]:
            tape = kept.tape.new_empty((call.layout.samples, entries))
            kept = self._run(call, replace(kept, tape=tape))
        gradients = call.gradients(needs)
        structure, alive = call.backward(kept, cotangents, gradients)
        self._function(call.dtype, backward=True)(structure)
        del alive
        return call.reduced(gradients, flat, needs)

    def _call(self, flat: Sequence[Tensor], draws: tuple[int, int], *, training: bool) -> Call:
        tensors = self.network.unflatten(flat)
        layout = layout_of(self.network, tensors.standing, training=training)
        return Call(layout, tensors, draws, self._threads or torch.get_num_threads())

    def _run(self, call: Call, kept: Kept) -> Kept:
        structure, alive = call.forward(kept)
        self._function(call.dtype, backward=False)(structure)
        del alive
        return kept

    def _function(self, dtype: torch.dtype, *, backward: bool) -> Function:
        known = (dtype, backward)
        if known not in self._functions:
            source = event_kernel(self.network, TYPES[dtype], backward=backward)
            self._functions[known] = self._cache.load(source)
        return self._functions[known]


def find_kernel(key: str) -> EventKernel:
    """Return the network that an operator call names.

    Raises:
        LaunchError: There is none in this process.
    """
    if key not in _KERNELS:
        raise LaunchError(
            f"There is no event network '{key}' in this process.",
            code="launch.unknown-network",
            hints=["Compile the model in the process that runs it, or export it."],
        )
    return _KERNELS[key]


def _key_of(network: EventNetwork, num_threads: int | None) -> str:
    """Return a name that equal networks share."""
    parts = [repr(network.edges), repr(network.results), repr(network.order), repr(num_threads)]
    for group in network.groups:
        parts.append(repr((group.starts, group.is_output)))
        if group.fire is not None:
            parts.append(print_recurrence(group.fire))
        if group.adjoint is not None:
            parts.append(print_recurrence(group.adjoint.recurrence))
            parts.append(repr(group.adjoint.lane_gradients))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
