"""Training steps whose time is split over two processes of one thread, against one process.

One layer of LIF neurons, and a network of four layers, forward and backward.  All variants take
turns in the same processes: while one process runs alone, the other waits.  A step of two processes
is over when both have ended it.  "Formula" is what ``T(M) = (M + k - 1) T_s / (k M) + (k - 1) T_c``
gives for each direction of each layer of neurons, where T_s is the time in one process of one
thread and T_c that of one hand-over, measured in the same rounds; the work between the neurons is
taken to be shared evenly.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

import snncc
from benchmarks import harness
from benchmarks.harness import Budget, Record
from benchmarks.network import INPUT_RATE, INPUTS, SpikingNet, spikes
from snncc.nn import LIF

RANKS = 2
ONE, TWO_THREADS, TRANSFER = "1 process, 1 thread", "1 process, 2 threads", "hand-over"


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        name: Its name.
        steps: T.
        batch: B.
        width: Neurons of the layer, or of the layers of the network.
        is_network: Whether it is the network.
        blocks: The numbers of blocks to try.
    """

    name: str
    steps: int
    batch: int
    width: int
    is_network: bool = False
    blocks: tuple[int, ...] = (1, 2, 4, 8, 16)

    def model(self) -> nn.Module:
        """Return the serial model."""
        torch.manual_seed(0)
        return SpikingNet() if self.is_network else LIF(0.9)

    def sequence(self) -> Tensor:
        """Return its input."""
        torch.manual_seed(0)
        if self.is_network:
            rows = spikes(self.steps * self.batch, INPUTS, INPUT_RATE)
            return rows.view(self.steps, self.batch, INPUTS)
        return torch.randn(self.steps, self.batch, self.width, requires_grad=True)


CASES = (
    Case("LIF, 128 x 2^18", 128, 64, 4096),
    Case("LIF, 1024 x 2^14", 1024, 64, 256),
    Case("network, 250 x 64", 250, 64, 128, is_network=True),
)
QUICK_CASES = (
    Case("LIF, 16 x 64", 16, 4, 16, blocks=(2,)),
    Case("network, 8 x 2", 8, 2, 128, is_network=True, blocks=(2,)),
)


def training_step(model: nn.Module, x: Tensor, *, is_split: bool) -> Callable[[], None]:
    """Return one step: forward, backward, and gradients of all steps."""
    x = x.detach().requires_grad_(x.requires_grad)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        x.grad = None
        y = model(x)
        y.backward(torch.ones_like(y))
        if is_split and isinstance(model, snncc.DistributedModule):
            model.sum_gradients()

    return run


def hand_over(case: Case, rank: int) -> Callable[[], None]:
    """Return the transfer of the states of a layer to the next rank and back."""
    state = torch.zeros(case.batch, case.width)

    def run() -> None:
        for sender in range(RANKS):
            if rank == sender:
                dist.send(state, 1 - rank)
            else:
                dist.recv(state, 1 - rank)

    return run


def variants_of(case: Case, rank: int) -> dict[str, Callable[[], None]]:
    """Return what a process runs in each variant."""
    x = case.sequence()
    alone = training_step(snncc.compile(case.model()), x, is_split=False)

    def with_threads(count: int) -> None:
        if rank == 0:
            torch.set_num_threads(count)
            alone()
            torch.set_num_threads(1)

    found: dict[str, Callable[[], None]] = {
        ONE: partial(with_threads, 1),
        TWO_THREADS: partial(with_threads, 2),
        TRANSFER: hand_over(case, rank),
    }
    own = x.tensor_split(RANKS)[rank].detach().requires_grad_(x.requires_grad)
    for blocks in case.blocks:
        fast = snncc.distribute(snncc.compile(case.model()), blocks=blocks)
        found[f"2 processes, M = {blocks}"] = training_step(fast, own, is_split=True)
    return found


def run_rank(rank: int, case: Case, budget: Budget, folder: str) -> None:
    """Time all variants in one process of two."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    seconds: dict[str, list[float]] = {}
    began = perf_counter()
    variants = variants_of(case, rank)
    for done in range(-budget.warmup, budget.rounds):
        over = torch.tensor(float(perf_counter() - began > budget.seconds))
        dist.broadcast(over, 0)
        if done >= budget.least_rounds and over:
            break
        for name, run in variants.items():
            dist.barrier()
            start = perf_counter()
            run()
            taken = torch.tensor(perf_counter() - start)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            if done >= 0:
                seconds.setdefault(name, []).append(taken.item())
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def measure(case: Case, budget: Budget) -> list[Record]:
    """Time a case and compare it with the formula."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run_rank, (case, budget, folder), nprocs=RANKS)
        seconds = json.loads(Path(folder, "seconds.json").read_text())
    records: list[Record] = [
        {"case": case.name, "variant": name, **harness.summarize(s)} for name, s in seconds.items()
    ]
    by_name = {record["variant"]: record for record in records}
    one, transfer = by_name[ONE]["median_ms"], by_name[TRANSFER]["median_ms"]
    for record in records:
        if record is not by_name[TRANSFER]:
            record["one_over_this"] = one / record["median_ms"]
    for blocks in case.blocks if not case.is_network else ():
        # A hand-over to the next rank forward, and one back: what was measured is both.
        record = by_name[f"2 processes, M = {blocks}"]
        record["formula_ms"] = (blocks + RANKS - 1) * one / (RANKS * blocks) + transfer
    return records


COLUMNS = {"variant": "", "median_ms": ".2f", "one_over_this": ".2f", "formula_ms": ".2f"}


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the benchmark, print the tables and write the results."""
    arguments = harness.parser("Time split over two processes.").parse_args(argv)
    cases = QUICK_CASES if arguments.quick else CASES
    parts = [partial(measure, case, harness.budget(arguments)) for case in cases]
    return harness.run_parts("devices", parts, arguments, COLUMNS)


if __name__ == "__main__":
    main()
