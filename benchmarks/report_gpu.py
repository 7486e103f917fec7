"""The sections of ``docs/performance.md`` about GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.device.claims import CLAIMS, Claim
from benchmarks.tables import cell, lines, table

Record = dict[str, Any]

HEAD = """Variants take turns, and before each the cache of the device is filled with other bytes.
"Median" is the time on the device, "host" what a caller waits for, Python and launches included.
"Other / snncc" compares medians on the device, times of the host, and sums of kernels.
A prepared call is the first one of a new layer whose kernels are in the caches of disks.
A part has a time of its own; what did not fit into it is named below its table.
"""
# What the records of a part are, in the order of the page.
PARTS = {
    "tests": "The tests that need a GPU.",
    "values": "Kernels against the same Python, run eagerly on the device and on the CPU. "
    "The gradient difference is relative to the largest gradient.",
    "bandwidth": "Times on the device, and the share of the bandwidth of `Tensor.copy_` in the "
    "same rounds, with 8 bytes a neuron-step forward and 12 backward.\n"
    "The two-state neuron has two decays for each channel; the kernels of torch that compute them "
    "and add up their gradients are in its times.",
    "training": "Training steps of one layer, forward and backward.",
    "custom": "Training steps of a neuron of one's own: two states, two decays for each channel.",
    "host": "Calls so small that only the host counts.",
    "resnet": "Training steps of SEW-ResNet-18 on 224 x 224 images in bfloat16. "
    '"Kernels" is the time of all kernels of a step, without the gaps between them.',
    "first_call": "Training steps of a new two-state layer, one after another, each with sizes of "
    "its own; caches are empty at the start, and everything is imported.",
    "kept": "Training steps with spikes kept as values and as bits for the gradients of weights.",
    "recurrent": "Training steps of a layer that hears its own last spikes through a weight.",
    "published": "Setups that others have published: D1 from the comparison of libraries by Open "
    "Neuromorphic, D2 from the documentation of SpikingJelly, in float16.",
    "sweeps": "Training steps of one layer in mode `fpt`, against PyTorch step by step and against "
    "fused time.",
}
COLUMNS = {
    "case": "case",
    "variant": "variant",
    "median_ms": "median ms",
    "host_ms": "host ms",
    "peak_mib": "peak MiB",
    "device_over_snncc": "other / snncc, device",
    "host_over_snncc": "other / snncc, host",
    "kernels_ms": "kernels ms",
    "kernels_over_snncc": "other / snncc, kernels",
    "host_us": "host us",
    "prepared_call_ms": "prepared call ms",
    "lanes": "neurons",
    "first_call_ms": "call ms",
    "compiled": "kernels compiled",
    "passed": "passed",
    "failed": "failed",
    "differ_from_cpu": "differ from CPU",
    "gradient_difference": "gradient difference",
    "deterministic": "equal again",
    "spikes_differ": "spikes that differ",
}
NOT_MEASURED = """## Not yet measured

No GPU has run these; `python3 -m benchmarks.gpu` measures all of them.

| claim | measured by |
|---|---|
"""
_GRAPH = "CUDA graph"


def found(folder: Path) -> dict[str, Record]:
    """Return the results of the parts that ran on the GPU of a folder, in the order of the page."""
    files = {part: folder / f"gpu_{part}.json" for part in PARTS}
    results = {part: _read(file) for part, file in files.items() if file.exists()}
    return {part: r for part, r in results.items() if not r["machine"]["rehearsal"]}


def sections(folder: Path) -> Iterator[str]:
    """Yield the sections of the results of a GPU."""
    results = found(folder)
    if not results:
        return
    yield f"## GPU, {folder.name}\n"
    yield HEAD
    machines = [result["machine"] for result in results.values()]
    once = all(_device(machine) == _device(machines[0]) for machine in machines)
    yield from [_device(machines[0])] if once else []
    figures = [(claim.text, _figure(claim, results)) for claim in CLAIMS]
    yield lines(["claim", "measured"], [[text, figure] for text, figure in figures if figure])
    for part, result in results.items():
        yield f"### {part.replace('_', ' ')}, {folder.name}\n"
        yield PARTS[part] + "\n"
        yield from [] if once else [_device(result["machine"])]
        measured = [record for record in result["records"] if "skipped" not in record]
        if measured:
            yield _bandwidth(measured) if part == "bandwidth" else table(measured, COLUMNS)
        yield from left_out(result["records"])


def not_measured(folder: Path) -> str:
    """Return the section of the claims for which no device has results."""
    devices = [found(path) for path in folder.iterdir() if path.is_dir()]
    missing = [c for c in CLAIMS if not any(_figure(c, results) for results in devices)]
    rows = [f"| {claim.text} | `{claim.command}` |" for claim in missing]
    return NOT_MEASURED + "\n".join(rows) + "\n" if rows else ""


def left_out(records: Sequence[Record]) -> Iterator[str]:
    """Yield a line for each reason for which cases of a part were not measured."""
    reasons: dict[str, list[Record]] = {}
    for record in records:
        if "skipped" in record:
            reason = "no time was left" if _ran_out(record) else record["skipped"]
            reasons.setdefault(reason, []).append(record)
    for reason, skipped in reasons.items():
        cases = [_name(r) for r in skipped if r["case"] != "the rest" and r["variant"] != _GRAPH]
        graphs = sum(record["variant"] == _GRAPH for record in skipped)
        stopped = sum(record["case"] == "the rest" for record in skipped)
        parts = [f"CUDA graphs: {graphs}"] if graphs else []
        parts += [f"processes stopped: {stopped}"] if stopped else []
        parts += [f"cases: {len(cases)} ({'; '.join(cases)})"] if cases else []
        yield f"Not measured, {reason.rstrip('.')}: {'; '.join(parts)}.\n"


def _bandwidth(records: Sequence[Record]) -> str:
    """Return a table with a row for each case and a column for each direction."""
    cases: dict[str, dict[str, Record]] = {}
    for record in records:
        cases.setdefault(record["case"], {})[record["variant"]] = record
    ways = ("inference", "forward", "backward")
    head = ["case", "copy GB/s", *(f"{way} {unit}" for way in ways for unit in ("ms", "of copy"))]
    return lines(
        head,
        [
            [
                case,
                cell(variants.get("copy", {}), "gigabytes_per_second"),
                *(
                    cell(variants.get(way, {}), column)
                    for way in ways
                    for column in ("median_ms", "of_copy")
                ),
            ]
            for case, variants in cases.items()
        ],
    )


def _ran_out(record: Record) -> bool:
    return record["skipped"].startswith(("no time", "stopped: its time was over"))


def _name(record: Record) -> str:
    return ", ".join(filter(None, (record["case"], record["variant"])))


def _figure(claim: Claim, results: dict[str, Record]) -> str | None:
    """Return what the results of a device say of a claim."""
    if claim.part not in results:
        return None
    return claim.figure([r for r in results[claim.part]["records"] if "skipped" not in r])


def _device(facts: Record) -> str:
    """Return one paragraph on the device on which the figures were measured."""
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v)
    text = f"{facts['device']}, {facts['processors']} processors, {facts['memory_gib']} GiB, "
    text += f"CUDA {facts['cuda']}, Python {facts['python']}, {versions}; {facts['date'][:10]}"
    return text + (f", commit {facts['commit'][:7]}.\n" if facts.get("commit") else ".\n")


def _read(file: Path) -> Record:
    result: Record = json.loads(file.read_text(encoding="utf-8"))
    return result
