"""The translation unit of an event network."""

from __future__ import annotations

from snncc.codegen.base import FloatType, KernelSource, Signature
from snncc.codegen.c.events.backward import BACKWARD
from snncc.codegen.c.events.delivery import DELIVERY, SCRATCH
from snncc.codegen.c.events.forward import ENTRY, FORWARD
from snncc.codegen.c.events.neurons import find_kinds, neuron_functions, operations
from snncc.codegen.c.events.queue import QUEUE
from snncc.codegen.c.events.structures import STRUCTURES
from snncc.codegen.c.expressions import C_TYPE
from snncc.codegen.c.preamble import preamble
from snncc.codegen.c.target import FLAGS
from snncc.ir.events.network import EventNetwork

NAME = "snncc_events"


def most_lanes(network: EventNetwork) -> int:
    """Return for how many parameters the structure of a group has room."""
    return max(1, *(len(group.lanes) for group in network.groups))


def event_kernel(network: EventNetwork, dtype: FloatType, *, backward: bool) -> KernelSource:
    """Write the forward or the backward kernel of a network."""
    text, anonymous = (
        _unit(network, dtype, backward=backward, named=named) for named in (True, False)
    )
    return KernelSource(NAME, "c", text, anonymous, Signature(dtype, ()), FLAGS)


def _unit(network: EventNetwork, dtype: FloatType, *, backward: bool, named: bool) -> str:
    kinds, _ = find_kinds(network.groups, backward=backward)
    body = BACKWARD if backward else QUEUE + FORWARD + ENTRY
    structures = STRUCTURES.replace("LANES", str(most_lanes(network)))
    parts = [
        _HEAD.format(job="backward" if backward else "forward", dtype=dtype.value),
        preamble(operations(kinds, backward=backward), dtype, packed=False),
        f"\ntypedef {C_TYPE[dtype]} real;\n",
        structures,
        neuron_functions(kinds, dtype, backward=backward, named=named),
        SCRATCH + DELIVERY,
        body.replace("@NAME", NAME),
    ]
    return "".join(parts).replace("GROUP_COUNT", str(len(network.groups)))


_HEAD = """\
/*
 * A network of neurons that runs as a queue of spikes, {job}, {dtype}, emitted by snncc.
 *
 * Numerics: forward each operation is rounded once, and currents add up in the order of delivery.
 */
"""
