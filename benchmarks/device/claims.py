"""What is claimed of the kernels on a GPU, and what stored results say about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        text: The claim.
        part: The part of ``benchmarks.gpu`` that measures it.
        figure: Returns what the records of the part say, or None where they say nothing.
    """

    text: str
    part: str
    figure: Callable[[Sequence[Record]], str | None]

    @property
    def command(self) -> str:
        """The command that measures it."""
        return f"python3 -m benchmarks.gpu --parts {self.part}"


def _differing(records: Sequence[Record]) -> str | None:
    seen = [r for r in records if "spikes_differ" in r]
    if not seen:
        return None
    wrong = [r for r in seen if r["spikes_differ"] or not r["deterministic"]]
    return f"{len(wrong)} of {len(seen)} cases differ or change from call to call"


def _passed(records: Sequence[Record]) -> str | None:
    ran = [r for r in records if "passed" in r]
    return f"{ran[0]['passed']} passed, {ran[0]['failed']} failed" if ran else None


def _of_copy(records: Sequence[Record]) -> str | None:
    shares = [r["of_copy"] for r in records if r["variant"] in ("forward", "backward")]
    lengths = {r["case"] for r in records}
    return f"{100 * min(shares):.0f} % at least, {len(lengths)} cases" if shares else None


def _ratio(peer: str) -> Callable[[Sequence[Record]], str | None]:
    def figure(records: Sequence[Record]) -> str | None:
        best: dict[str, float] = {}
        for record in records:
            ratio, variant = record.get("this_over_snncc"), record["variant"]
            if ratio is not None and not variant.startswith("snncc") and peer in variant:
                best[record["case"]] = min(best.get(record["case"], ratio), ratio)
        if not best:
            return None
        low, high = min(best.values()), max(best.values())
        return f"{low:.2f} to {high:.2f} times, {len(best)} cases"

    return figure


def _first(records: Sequence[Record]) -> str | None:
    times = [r["first_call_ms"] for r in records if "first_call_ms" in r]
    return f"{times[0] / 1e3:.1f} s" if times else None


def _compiled(records: Sequence[Record]) -> str | None:
    counts = [r["compiled"] for r in records if "compiled" in r]
    return f"{sum(counts[1:])} kernels after the first call" if counts else None


CLAIMS = (
    Claim("spikes are those of the serial code, bit for bit, on the device", "values", _differing),
    Claim("the tests of the GPU pass on the device", "tests", _passed),
    Claim(
        "forward and backward reach 88 % of the bandwidth of a copy, T from 4 to 512, 2^20 neurons",
        "bandwidth",
        _of_copy,
    ),
    Claim(
        "training of LIF and PLIF layers is 1.2 times as fast as SpikingJelly 2.0 at its best",
        "training",
        _ratio("spikingjelly"),
    ),
    Claim("a neuron of one's own is twice as fast as by FlexSN", "custom", _ratio("flexsn")),
    Claim(
        "a step of SEW-ResNet-18, T of 4 and 16, bfloat16, is 1.15 times as fast as SpikingJelly",
        "resnet",
        _ratio("spikingjelly"),
    ),
    Claim("the first call of a layer takes less than 5 s", "first_call", _first),
    Claim("ten values of T and batch compile nothing", "first_call", _compiled),
    Claim(
        "a training step of recurrent layers, T of 100 and 250, against the serial code",
        "recurrent",
        _ratio("serial"),
    ),
    Claim("the setups D1 to D6", "published", _ratio("")),
    Claim(
        "training by sweeps, T of 512 and 4096, few neurons, against PyTorch step by step",
        "sweeps",
        _ratio("serial"),
    ),
)
