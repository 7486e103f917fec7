"""Place the buffers of a network: states by name, weights in one array, work in an arena.

Work buffers that are never alive at the same time share memory: each gets the lowest place that
is free from its first to its last use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass

from snncc.export.network.nodes import Array, Buffer, Home, Network

# Buffers start at a multiple of this many numbers, so that vector code can load them whole.
_ALIGNMENT = 16


@dataclass
class Memory:
    """The places of all buffers, in numbers from the start of their home.

    Attributes:
        network: The network.
        operations: Its step, where that is not the network's own.
        work: How large the arena is.
        weights: How many numbers the weights are, gaps included.
    """

    network: Network
    operations: Sequence[object] | None = None
    work: int = 0
    weights: int = 0
    places: dict[Buffer, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for buffer in self.network.weights:
            self.places[buffer] = self.weights
            self.weights += _aligned(buffer.size)
        self._place_work()

    def address(self, buffer: Buffer) -> str:
        """Return the C expression of a buffer's address."""
        match buffer.home:
            case Home.INPUT | Home.OUTPUT:
                return buffer.name
            case Home.STATE:
                return f"net->state_{buffer.name}"
            case Home.WEIGHT:
                return _plus("weights", self.places[buffer])
            case Home.WORK:
                return _plus("net->work", self.places[buffer])

    def _place_work(self) -> None:
        own = self.network.operations if self.operations is None else self.operations
        spans = live_spans(own)
        placed: list[tuple[Buffer, int]] = []
        for buffer in sorted(self.network.work, key=lambda b: -b.size):
            if buffer not in spans:
                self.places[buffer] = 0
                continue
            busy = sorted(
                (place, place + _aligned(other.size))
                for other, place in placed
                if _overlap(spans[buffer], spans[other])
            )
            start = 0
            for begin, end in busy:
                if start + _aligned(buffer.size) <= begin:
                    break
                start = max(start, end)
            self.places[buffer] = start
            placed.append((buffer, start))
            self.work = max(self.work, start + _aligned(buffer.size))


def live_spans(operations: Sequence[object]) -> dict[Buffer, tuple[int, int]]:
    """Return for each buffer the first and the last operation that uses it."""
    spans: dict[Buffer, tuple[int, int]] = {}
    for position, operation in enumerate(operations):
        for array in arrays_of(operation):
            first, _ = spans.get(array.buffer, (position, position))
            spans[array.buffer] = (first, position)
    return spans


def arrays_of(value: object) -> list[Array]:
    """Return every array in an operation."""
    if isinstance(value, Array):
        return [value]
    if isinstance(value, tuple):
        return [array for item in value for array in arrays_of(item)]
    if is_dataclass(value) and not isinstance(value, type):
        return [a for f in fields(value) for a in arrays_of(getattr(value, f.name))]
    return []


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _plus(base: str, offset: int) -> str:
    return f"{base} + {offset}" if offset else base
