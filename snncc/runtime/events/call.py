"""One call of an event kernel: the tensors as kernels read them, and the argument structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.codegen.base import FloatType
from snncc.codegen.c.events.network import most_lanes
from snncc.codegen.c.events.neurons import find_kinds
from snncc.codegen.c.events.structures import EDGE, GROUP, NETWORK
from snncc.ir.events.network import EventTensors, Shown
from snncc.runtime.events.arrays import Rows, Table, rows_of, word_of
from snncc.runtime.events.layout import EventLayout, Kept

TYPES = {torch.float32: FloatType.FLOAT32, torch.float64: FloatType.FLOAT64}
# Gradients of weights are sums over so many parts of the batch, of so many bytes, at most.
_MOST_PARTS, _PART_BYTES = 16, 64 << 20
# Each array of the scratch begins a line.
_LINE = 64

Maybe = Tensor | None


@dataclass(frozen=True, slots=True)
class Gradients:
    """Where a backward kernel writes, None where nothing is wanted.

    Of decays, parameters and weights there is a row for each part of the batch.
    """

    parts: int
    standing: list[Maybe]
    decay: list[Maybe]
    membrane: list[Maybe]
    emitted: list[Maybe]
    lanes: list[dict[int, Tensor]]
    weights: list[Maybe]


class Call:
    """What kernels are given.

    Args:
        layout: The sizes.
        tensors: What the network runs on.
        draws: The seed of random numbers, and how many time steps were taken before.
        threads: Threads at most.
    """

    def __init__(
        self, layout: EventLayout, tensors: EventTensors, draws: tuple[int, int], threads: int
    ) -> None:
        self.layout, self.network = layout, layout.network
        self.seed, self.before = draws
        self.dtype = tensors.standing[0].dtype
        self.threads = min(threads, layout.samples)
        sizes = layout.sizes
        self.tensors = EventTensors(
            standing=tuple(x if _has_rows(x) else x.contiguous() for x in tensors.standing),
            decay=_whole(tensors.decay, sizes),
            membrane=tuple(None if x is None else x.contiguous() for x in tensors.membrane),
            emitted=tuple(None if x is None else x.contiguous() for x in tensors.emitted),
            lanes=tuple(
                tuple(x.expand(n).contiguous() for x in lanes)
                for lanes, n in zip(tensors.lanes, sizes, strict=True)
            ),
            weights=tensors.weights,
        )
        self.rows: list[Rows] = [rows_of(w.detach()) for w in tensors.weights]

    def forward(self, kept: Kept) -> tuple[bytes, object]:
        """Return the argument structure of the forward kernel, and what it points to."""
        return self._arguments(kept, None, {}, {})

    def backward(
        self, kept: Kept, cotangents: Sequence[Maybe], gradients: Gradients
    ) -> tuple[bytes, object]:
        """Return the argument structure of the backward kernel, and what it points to."""
        most = [int(n) for n in kept.extents.max(0).values[1:]]
        extents = dict(zip(("most_neurons", "most_groups", "most_steps"), most, strict=True))
        given: dict[tuple[int, Shown], Tensor] = {}
        for result, g in zip(self.network.results, cotangents, strict=True):
            if g is not None:
                what = (result.group, result.shown)
                given[what] = given[what] + g if what in given else g.contiguous()
        return self._arguments(kept, gradients, given, extents)

    def _arguments(
        self,
        kept: Kept,
        gradients: Gradients | None,
        cotangents: dict[tuple[int, Shown], Tensor],
        extents: dict[str, int],
    ) -> tuple[bytes, object]:
        layout, order, count = self.layout, self.network.order, most_lanes(self.network)
        edges, leaving = self._edges(gradients)
        groups = Table((*GROUP, *(f"{kind}{n}" for kind in ("lane", "to") for n in range(count))))
        _, kinds = find_kinds(self.network.groups, backward=gradients is not None)
        for g, kind in enumerate(kinds):
            fields = {"kind": kind, **leaving[g], **self._inputs(g), **self._outputs(g, kept)}
            if gradients is not None:
                fields |= self._cotangents(g, cotangents) | self._gradients(g, gradients)
            groups.append(fields)
        scratch_bytes = _scratch_bytes(layout, self.dtype.itemsize, extents)
        scratch = torch.empty(scratch_bytes * self.threads, dtype=torch.uint8, device="cpu")
        network = Table(NETWORK)
        network.append(
            {
                "steps": layout.steps,
                "samples": layout.samples,
                "groups": len(layout.sizes),
                "neurons": layout.neurons,
                "threads": self.threads,
                "parts": gradients.parts if gradients else 0,
                "group_size": order.group_size,
                "is_random": int(order.policy == "random"),
                "stop": -1 if order.stop is None else order.stop,
                "seed": self.seed,
                "before": self.before,
                "noise": word_of(order.noise),
                "dropout": word_of(order.refractory_dropout),
                "group": groups.address(),
                "scratch": scratch,
                "scratch_bytes": scratch_bytes,
                "counts": kept.counts,
                "extents": kept.extents,
                "tape": kept.tape,
                "capacity": kept.tape.shape[1],
                **extents,
            }
        )
        return network.bytes(), (network, groups, edges)

    def _edges(self, gradients: Gradients | None) -> tuple[Table, list[dict[str, int]]]:
        """Return the table of edges, and for each group the fields that tell which leave it."""
        table = Table(EDGE)
        spans: list[list[tuple[int, int]]] = []
        position = 0
        for g in range(len(self.layout.sizes)):
            span: list[tuple[int, int]] = []
            for delayed in (False, True):
                first = position
                for n, edge in enumerate(self.network.edges):
                    if edge.source == g and edge.is_delayed is delayed:
                        gradient = None if gradients is None else gradients.weights[n]
                        own = {"target": edge.target, "gradient": gradient}
                        table.append(own | self.rows[n].fields())
                        position += 1
                span.append((first, position - first))
            spans.append(span)
        fields = [
            {
                "edge": table.address(now[0]),
                "edges": now[1],
                "late": table.address(late[0]),
                "lates": late[1],
            }
            for now, late in spans
        ]
        return table, fields

    def _inputs(self, g: int) -> dict[str, Any]:
        group, tensors, standing = self.network.groups[g], self.tensors, self.tensors.standing[g]
        return {
            "fires": int(group.fires),
            "first": sum(self.layout.sizes[:g]),
            "size": self.layout.sizes[g],
            "starts": int(group.starts),
            "is_output": int(group.is_output),
            "standing": standing,
            "standing_t": standing.stride(0),
            "standing_b": standing.stride(1),
            "decay": tensors.decay[g],
            "initial": tensors.membrane[g],
            "emitted": tensors.emitted[g],
            **{f"lane{n}": lane for n, lane in enumerate(tensors.lanes[g])},
        }

    def _outputs(self, g: int, kept: Kept) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in (("spikes", kept.spikes[g]), ("membrane", kept.membranes[g])):
            over_time = value is not None and value.dim() == 3
            row = self.layout.samples * self.layout.sizes[g]
            fields |= {name: value, f"{name}_t": row if over_time else 0}
        return fields

    def _cotangents(self, g: int, given: dict[tuple[int, Shown], Tensor]) -> dict[str, Any]:
        names = {"of_spikes": Shown.SPIKES, "of_membrane": Shown.MEMBRANES, "of_last": Shown.LAST}
        return {name: given.get((g, shown)) for name, shown in names.items()}

    def _gradients(self, g: int, gradients: Gradients) -> dict[str, Any]:
        return {
            "to_standing": gradients.standing[g],
            "to_decay": gradients.decay[g],
            "to_initial": gradients.membrane[g],
            "to_emitted": gradients.emitted[g],
            **{f"to{n}": lane for n, lane in gradients.lanes[g].items()},
        }

    def gradients(self, needs: Sequence[bool]) -> Gradients:
        """Return places for the gradients that are needed, and those that are always written."""
        wanted: Any = self.network.unflatten(needs)  # type: ignore[arg-type]
        layout, tensors = self.layout, self.tensors
        pairs = zip(wanted.weights, tensors.weights, strict=True)
        largest = sum(w.numel() * w.itemsize for is_wanted, w in pairs if is_wanted)
        parts = min(layout.samples, _MOST_PARTS, max(1, _PART_BYTES // max(largest, 1)))

        def places(of: Sequence[Any], like: Sequence[Maybe], *, sums: bool) -> list[Maybe]:
            return [
                None
                if x is None or not is_wanted
                else x.new_zeros((parts, *x.shape))
                if sums
                else x.new_empty(x.shape)
                for is_wanted, x in zip(of, like, strict=True)
            ]

        return Gradients(
            parts,
            standing=places(wanted.standing, tensors.standing, sums=False),
            decay=places(wanted.decay, tensors.decay, sums=True),
            membrane=places(wanted.membrane, tensors.membrane, sums=False),
            emitted=places(wanted.emitted, tensors.emitted, sums=False),
            lanes=[
                {n: x.new_zeros((parts, *x.shape)) for n, x in enumerate(lanes) if summed[n]}
                for lanes, summed in zip(tensors.lanes, self._summed(), strict=True)
            ],
            weights=places(wanted.weights, tensors.weights, sums=True),
        )

    def reduced(
        self, gradients: Gradients, flat: Sequence[Tensor], needs: Sequence[bool]
    ) -> list[Maybe]:
        """Return the gradients of what the network ran on, None where none is needed."""
        found: list[Maybe] = []
        for name in ("standing", "decay", "membrane", "emitted"):
            pairs = zip(getattr(self.tensors, name), getattr(gradients, name), strict=True)
            each = [g for x, g in pairs if x is not None]
            found += _sums(each) if name == "decay" else each
        for lanes, of_lanes in zip(self.tensors.lanes, gradients.lanes, strict=True):
            found += _sums([of_lanes.get(n) for n in range(len(lanes))])
        found += _sums(gradients.weights)
        return [
            g.sum_to_size(x.shape) if needed and g is not None else None
            for g, x, needed in zip(found, flat, needs, strict=True)
        ]

    def _summed(self) -> list[list[bool]]:
        """Tell of each parameter of each group whether its gradient is computed."""
        adjoints = [(group.adjoint, len(group.lanes)) for group in self.network.groups]
        return [
            [False] * count if adjoint is None else [bool(f) for f in adjoint.lane_gradients]
            for adjoint, count in adjoints
        ]


def _whole(each: Sequence[Maybe], sizes: Sequence[int]) -> tuple[Maybe, ...]:
    pairs = zip(each, sizes, strict=True)
    return tuple(None if x is None else x.expand(n).contiguous() for x, n in pairs)


def _sums(each: Sequence[Maybe]) -> list[Maybe]:
    return [None if x is None else x.sum(0) for x in each]


def _has_rows(x: Tensor) -> bool:
    return x.stride(2) == 1 or x.shape[2] == 1


def _scratch_bytes(layout: EventLayout, size: int, extents: dict[str, int]) -> int:
    """Return the bytes of scratch of one thread, whole lines: at least what `set_up` takes."""
    n, lines = layout.neurons, 24 + len(layout.sizes)
    arrays = n * (5 * size + 2 * 8 + 3 * 4 + 2)
    if extents:
        noted = extents["most_neurons"]
        steps = 4 * 8 * (extents["most_groups"] + extents["most_steps"])
        arrays += n * 9 * size + noted * (2 * size + 5) + steps
    return -(-arrays // _LINE) * _LINE + lines * _LINE
