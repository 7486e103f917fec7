"""The processes that share a sequence, in the order of time, and what they send one another.

Rank j holds the steps after those of rank j-1.  States travel to the next rank and their gradients
to the one before, in the order in which all ranks run the same program.  What is sent is bytes:
every dtype goes over every backend, and a tensor stays on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from snncc.errors import LaunchError, OptionError


class Ranks:
    """This process among those that share a sequence.

    Args:
        group: Their process group, whose ranks are in the order of time.
        tag: What is on every message between neighbours; NCCL knows no tags.

    Attributes:
        rank: The place of this process.
        size: How many there are.
    """

    def __init__(self, group: Any, tag: int = 0) -> None:
        self.group = group
        self.rank: int = dist.get_rank(group)
        self.size: int = dist.get_world_size(group)
        self._global = [dist.get_global_rank(group, rank) for rank in range(self.size)]
        self._tag = tag
        self._pending: list[tuple[Any, Tensor]] = []

    def of_call(self, tag: int) -> Ranks:
        """Return the ranks in one call, whose messages no other call takes for its own."""
        return Ranks(self.group, tag)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return Ranks(self.group)

    def __reduce__(self) -> NoReturn:
        raise OptionError(
            "A process group cannot be pickled.",
            code="option.distribute",
            hints=["Pickle the compiled model ('fast.module'), or a 'state_dict()'."],
        )

    @property
    def is_first(self) -> bool:
        """Whether this rank holds the first steps."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank holds the last steps."""
        return self.rank == self.size - 1

    def exchange(self, values: Sequence[int], device: torch.device) -> list[list[int]]:
        """Return the numbers that each rank gives, in the order of the ranks."""
        own = torch.tensor(values, dtype=torch.int64, device=self._place(device))
        seen = [torch.empty_like(own) for _ in range(self.size)]
        with self._waiting("the beginning of a call"):
            dist.all_gather(seen, own, group=self.group)
        return [each.tolist() for each in seen]

    def _place(self, device: torch.device) -> torch.device:
        """Return where numbers are that are exchanged: with gloo on the CPU."""
        return torch.device("cpu") if dist.get_backend(self.group) == "gloo" else device

    def send(self, value: Tensor, rank: int) -> None:
        """Send a tensor to a neighbour, without waiting for it."""
        if value.numel():
            data = _bytes(value.detach())
            with self._waiting(f"rank {rank}"):
                work = dist.isend(data, self._global[rank], group=self.group, tag=self._tag)
            self._pending.append((work, data))

    def receive(self, shape: Sequence[int], like: Tensor, rank: int) -> Receipt:
        """Begin to receive a tensor of a shape, of the dtype and device of another, from a rank."""
        value = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
        if not value.numel():
            return Receipt(value, lambda: None)
        with self._waiting(f"rank {rank}"):
            peer = self._global[rank]
            work: Any = dist.irecv(_bytes(value), peer, group=self.group, tag=self._tag)

        def wait() -> None:
            with self._waiting(f"rank {rank}"):
                work.wait()

        return Receipt(value, wait)

    def from_last(self, value: Tensor) -> Tensor:
        """Return the value that the last rank has, on every rank."""
        result = value.detach() if self.is_last else torch.empty_like(value.detach())
        result = result.contiguous()
        if result.numel():
            with self._waiting("the last rank"):
                dist.broadcast(_bytes(result), self._global[-1], group=self.group)
        return result

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of the values of all ranks."""
        result = value.detach().clone(memory_format=torch.contiguous_format)
        if result.numel():
            with self._waiting("the other ranks"):
                dist.all_reduce(result, group=self.group)
        return result

    def flush(self) -> None:
        """Wait until all that was sent has left."""
        pending, self._pending = self._pending, []
        with self._waiting("a neighbour"):
            for work, _ in pending:
                work.wait()

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Say of an error of torch.distributed what was waited for."""
        try:
            yield
        except RuntimeError as error:
            self._pending.clear()
            raise LaunchError(
                f"Rank {self.rank} of {self.size} waited in vain for {what}.",
                code="launch.ranks",
                notes=[str(error).partition("\n")[0]],
                hints=[
                    "Every rank makes the same calls, forward and backward; see whether one failed."
                ],
            ) from error


class Receipt:
    """A tensor that is being received."""

    def __init__(self, value: Tensor, wait: Callable[[], None]) -> None:
        self._value = value
        self._wait = wait

    def __call__(self) -> Tensor:
        """Wait for the tensor and return it."""
        self._wait()
        return self._value


def _bytes(value: Tensor) -> Tensor:
    """Return the bytes of a tensor, without a copy where it lies in order."""
    return value.contiguous().view(-1).view(torch.uint8)
