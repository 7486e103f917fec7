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


def _ratio(
    *peers: str, time: str = "median_ms", own: str = "", graph: bool = False
) -> Callable[[Sequence[Record]], str | None]:
    """Return a figure: the best time of peers over our best, both in CUDA graphs or neither."""

    def figure(records: Sequence[Record]) -> str | None:
        ratios = []
        for case in dict.fromkeys(r["case"] for r in records):
            times = {
                r["variant"]: r[time]
                for r in records
                if r["case"] == case
                and r.get(time) is not None
                and ("graph" in r["variant"]) == graph
            }
            ours = [t for v, t in times.items() if v.startswith("snncc") and own in ("", v)]
            theirs = [t for v, t in times.items() if v.startswith(peers)]
            if ours and theirs:
                ratios.append(min(theirs) / min(ours))
        if not ratios:
            return None
        return f"{min(ratios):.2f} to {max(ratios):.2f} times, {len(ratios)} cases"

    return figure


def _least(column: str) -> Callable[[Sequence[Record]], str | None]:
    """Return a figure: what bits need of what values need."""

    def figure(records: Sequence[Record]) -> str | None:
        found = {(r["case"], r["variant"]): r[column] for r in records if r.get(column)}
        shares = [
            found[case, "snncc, bits"] / value
            for (case, variant), value in found.items()
            if variant == "snncc, values" and (case, "snncc, bits") in found
        ]
        return f"{min(shares):.2f} to {max(shares):.2f}, {len(shares)} cases" if shares else None

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
        "training of LIF and PLIF layers is 1.2 times as fast as SpikingJelly 2.0 at its best, "
        "on the device",
        "training",
        _ratio("spikingjelly"),
    ),
    Claim(
        "the same as a caller waits for it, Python and launches included",
        "training",
        _ratio("spikingjelly", time="host_ms"),
    ),
    Claim(
        "a neuron of one's own is twice as fast as by FlexSN, on the device",
        "custom",
        _ratio("flexsn"),
    ),
    Claim(
        "calls so small that only the host counts, against SpikingJelly and FlexSN",
        "host",
        _ratio("spikingjelly", "flexsn", time="host_us"),
    ),
    Claim(
        "a step of SEW-ResNet-18, T of 4 and 16, bfloat16, is 1.15 times as fast as SpikingJelly, "
        "the best layout of each, all kernels together",
        "resnet",
        _ratio("spikingjelly", time="kernels_ms"),
    ),
    Claim(
        "the same step as a caller waits for it, Python and launches included",
        "resnet",
        _ratio("spikingjelly", time="host_ms"),
    ),
    Claim(
        "the same step, both as CUDA graphs",
        "resnet",
        _ratio("spikingjelly", graph=True),
    ),
    Claim("the first call of a layer takes less than 5 s", "first_call", _first),
    Claim("ten values of T and batch compile nothing", "first_call", _compiled),
    Claim(
        "a training step of recurrent layers, T of 100 and 250, against the serial code",
        "recurrent",
        _ratio("serial", time="host_ms"),
    ),
    Claim("the setups D1 to D6, on the device", "published", _ratio("spikingjelly", "flexsn")),
    Claim(
        "the setups D1 to D6, as a caller waits for them",
        "published",
        _ratio("spikingjelly", "flexsn", time="host_ms"),
    ),
    Claim(
        "training by sweeps, T of 512 and 4096, few neurons, against PyTorch step by step",
        "sweeps",
        _ratio("serial", time="host_ms", own="snncc"),
    ),
    Claim(
        "peak memory with spikes kept as bits, over that with values", "kept", _least("peak_mib")
    ),
    Claim("time with spikes kept as bits, over that with values", "kept", _least("median_ms")),
)
