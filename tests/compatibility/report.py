"""Check all cases and write ``docs/compatibility.md``: ``python -m tests.compatibility.report``.

What came of each case is stored in ``benchmarks/results/compatibility``, one file for each group;
the page is built from these files.  ``--measure`` times the cases too, on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import snncc
from benchmarks.harness import Budget, describe_machine, interleave
from tests.compatibility.case import WIDTH, Case
from tests.compatibility.check import check, inputs, is_parameter, made, state_of
from tests.compatibility.corpus import FOLDERS, cases_of
from tests.compatibility.exports import FORMATS, check_export
from tests.compatibility.forms import FORMS, check_form, compiling
from tests.compatibility.results import (
    EXPORTS_FILE,
    FORMS_FILE,
    RESULTS,
    stored,
    stored_exports,
    stored_forms,
)
from tests.compatibility.traps import TRAPS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
BUDGET = Budget(warmup=1, rounds=7, seconds=1.0)

Facts = dict[str, Any]

HEAD = """# Compatibility

Does your way of writing a network compile, stream and export?
Look for it below, among idioms and among the models of snnTorch, SpikingJelly and Norse.
Nearly all compile whole; the others are refused, with the line and the reason.

`make compatibility` compiles every case and compares it with its serial code: outputs, gradients of
inputs and parameters, state that is left behind, and random numbers, at several lengths and batch
sizes; it then writes this page.
The models are in `tests/compatibility`; the tests make the same checks.

## How many
"""
LEGEND = {
    "result": "*compiled*: every neuron layer runs as one kernel over the whole sequence, or in a"
    ' recurrent loop whose steps are fused; *serial part*: refused, unless `fallback="serial"`'
    " lets a part run step by step; *refused*: an error, whose code is in [errors](errors.md)",
    "numerics": "what the plan [promises](numerics.md) for the network",
    "stream": "how `fast.stream()`, step after step, compares with the sequence, products taken"
    " step by step in both: *bitwise* equal, or equal to *rounding*, where sums and means over"
    " time, and products that the code itself takes over all steps at once, add in another order;"
    " or why there is no stream",
    "speed-up": "the time of the serial code over that of the compiled model"
    " ([how it was measured](#speed-up))",
}
TIMES = """## Speed-up

The time of the serial code over that of the compiled model, in float32 at the sizes given as T x B,
in layers {width} wide: forward and backward where there is a gradient, medians of runs that take
turns.
Layers this narrow are mostly overhead in eager mode; [performance](performance.md) has wide ones.
"""
FORMS_HEAD = """How many of the cases that compile do so in each [parallel mode](parallel.md); the
others are refused with a code.
Cases in the first four modes were compared with the serial code.
"""
EXPORTS_HEAD = """How many of them, in evaluation mode, [export](export.md) to a C library in
floats, to ONNX models, to a program of torch, and to a [NIR graph](nir.md), each of which then ran
its test vector; the others are refused with a code and what to do.
"""
TITLES = {"idioms": "Idioms", "libraries": "Libraries"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, store and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="time the cases as well")
    parser.add_argument("--stored", action="store_true", help="write the page from stored results")
    parser.add_argument("--group", action="append", help="only this group; may be repeated")
    parser.add_argument("--forms", action="store_true", help="check the parallel modes instead")
    parser.add_argument("--exports", action="append", choices=FORMATS, help="check this instead")
    chosen = parser.parse_args(arguments)
    cases = [c for c in all_cases() if chosen.group is None or c.group in chosen.group]
    if chosen.forms:
        store_forms(compiling(cases))
    for format in chosen.exports or ():
        store_exports(compiling(cases), format)
    is_stored = chosen.stored or chosen.forms or chosen.exports
    for name, members in {} if is_stored else by_group(cases).items():
        store(name, members, measure_too=chosen.measure)
    PAGE.write_text(page(), encoding="utf-8")


def all_cases() -> list[Case]:
    """Return the cases of all folders."""
    return [case for folder in FOLDERS for case in cases_of(folder)]


def by_group(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Return the cases of each group."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    return groups


def store(group: str, cases: list[Case], *, measure_too: bool) -> None:
    """Check the cases of a group and store what came of them; times are kept if not taken."""
    before = stored(group)
    times = {} if measure_too else before.get("times", {})
    machine = describe_machine() if measure_too else before.get("machine")
    facts = {}
    for case in cases:
        facts[case.name] = asdict(check(case))
        if measure_too and can_be_timed(case):
            times[case.name] = measure(case, *(case.measured or case.sizes[0]))
    names = [case.name for case in cases]
    result = {
        "machine": machine,
        "cases": facts,
        "times": {name: times[name] for name in names if name in times},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{group}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    stored.cache_clear()


def store_forms(cases: list[Case]) -> None:
    """Check cases in all parallel modes, and store which are refused."""
    known = stored_forms() if FORMS_FILE.exists() else {}
    refused = dict(known.get("refused", {}))
    for form in FORMS:
        codes = {case.id: check_form(case, form) for case in cases}
        refused[form.title] = _renewed(refused.get(form.title, {}), codes)
    _write(FORMS_FILE, known, cases, refused)
    stored_forms.cache_clear()


def store_exports(cases: list[Case], format: str) -> None:
    """Export cases to a format, and store which are refused."""
    known = stored_exports() if EXPORTS_FILE.exists() else {}
    refused = dict(known.get("refused", {}))
    with tempfile.TemporaryDirectory() as folder:
        codes = {case.id: check_export(case, format, Path(folder) / "bundle") for case in cases}
    refused[format] = _renewed(refused.get(format, {}), codes)
    _write(EXPORTS_FILE, known, cases, dict(sorted(refused.items())))
    stored_exports.cache_clear()


def _renewed(refused: dict[str, str], codes: dict[str, str]) -> dict[str, str]:
    """Return the codes of what is refused, those of the cases that were checked anew."""
    found = {**refused, **codes}
    order = [case.id for case in compiling(all_cases())]
    return {name: code for name in order if (code := found.get(name))}


def _write(
    file: Path, known: Facts, checked: list[Case], refused: dict[str, dict[str, str]]
) -> None:
    """Store what is refused of the cases that were ever checked, in the order of the corpus."""
    names = {*known.get("cases", ()), *(case.id for case in checked)}
    result = {
        "cases": [case.id for case in compiling(all_cases()) if case.id in names],
        "refused": refused,
    }
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def can_be_timed(case: Case) -> bool:
    """Tell whether the serial code takes the sizes, and a second training step after the first."""
    if case.measured is None or case.expect == "refused":
        return False
    model = made(case)
    step = _step(case.serial(model), model, inputs(case, case.measured, seed=1), case)
    try:
        step()
        step()
    except (RuntimeError, IndexError):  # a state holds the graph of the call before; tables end
        return False
    return True


def measure(case: Case, T: int, B: int) -> Facts:
    """Return the median times of the serial code and of the compiled model, in turns."""
    model, twin = made(case), made(case)
    fallback = {"fallback": "serial"} if case.expect == "serial part" else {}
    fast = snncc.compile(twin, **case.options, **fallback)
    args = inputs(case, (T, B), seed=1)
    variants = {
        "eager": _step(case.serial(model), model, args, case),
        "compiled": _step(fast, twin, args, case),
    }
    medians = {n: statistics.median(s) for n, s in interleave(variants, BUDGET).items()}
    return {
        "sizes": [T, B],
        "eager_ms": 1e3 * medians["eager"],
        "compiled_ms": 1e3 * medians["compiled"],
    }


def _step(run: Callable[..., Any], model: Any, args: Any, case: Case) -> Callable[[], None]:
    """Return one training step of a model, or its forward pass where it has no gradient."""
    leaves = [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor) and x.requires_grad]
    leaves += [x for x in state_of(model) if is_parameter(x)]

    def step() -> None:
        case.reset(model)
        with torch.set_grad_enabled(case.differentiable):
            results = [y for y in pytree.tree_leaves(run(*args)) if isinstance(y, Tensor)]
        live = [y.sum() for y in results if y.requires_grad]
        if live:
            torch.autograd.grad(sum(live), leaves, allow_unused=True)  # type: ignore[arg-type]

    return step


def page() -> str:
    """Return the page that the stored results make."""
    parts = [HEAD, summary(), forms(), exports(), legend(), traps()]
    for folder in FOLDERS:
        groups = by_group(cases_of(folder))
        parts += [f"## {TITLES[folder]}\n"] if groups else []
        for group, cases in groups.items():
            parts += [f"### {group}\n", table(cases, stored(group))]
    parts += [TIMES.format(width=WIDTH), _machines()]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _machines() -> str:
    """Return one line for each machine and load at which groups were timed."""
    found = []
    for group in by_group(all_cases()):
        facts = stored(group).get("machine")
        if facts:
            torch_version = facts["versions"]["torch"]
            found.append(
                f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, "
                f"torch {torch_version}; {facts['date'][:10]}, "
                f"load before the run {facts['load_average_at_start']}: {group}."
            )
    return "".join(f"- {line}\n" for line in found)


def summary() -> str:
    """Return how many cases there are of each status, group by group."""
    lines = ["| group | compiled | serial part | refused |", "|---|---|---|---|"]
    for group, cases in by_group(all_cases()).items():
        counts = [
            sum(case.expect == status for case in cases)
            for status in ("compiled", "serial part", "refused")
        ]
        lines.append(f"| {group} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


def forms() -> str:
    """Return how many of the cases that compile do so in each parallel mode, group by group."""
    found = stored_forms()
    titles = [form.title for form in FORMS]
    lines = [
        FORMS_HEAD,
        f"| group | cases | {' | '.join(titles)} |",
        "|---" * (2 + len(titles)) + "|",
    ]
    for group, cases in by_group(compiling(all_cases())).items():
        known = [case.id for case in cases if case.id in found["cases"]]
        counts = [sum(i not in found["refused"][title] for i in known) for title in titles]
        lines.append("| " + " | ".join(map(str, (group, len(known), *counts))) + " |")
    return "\n".join(lines) + "\n"


def exports() -> str:
    """Return how many of the cases that compile are exported to each format, group by group."""
    found = stored_exports()
    lines = [
        EXPORTS_HEAD,
        f"| group | cases | {' | '.join(FORMATS)} |",
        "|---" * (2 + len(FORMATS)) + "|",
    ]
    for group, cases in by_group(compiling(all_cases())).items():
        known = [case.id for case in cases if case.id in found["cases"]]
        counts = [sum(i not in found["refused"][format] for i in known) for format in FORMATS]
        lines.append("| " + " | ".join(map(str, (group, len(known), *counts))) + " |")
    return "\n".join(lines) + "\n"


def legend() -> str:
    """Return what each column of the tables of cases says."""
    lines = ["## How to read the tables\n", "| column | says |", "|---|---|"]
    lines += [f"| {column} | {text} |" for column, text in LEGEND.items()]
    return "\n".join(lines) + "\n"


def traps() -> str:
    """Return what is easily got wrong, and the cases that hold it."""
    lines = ["## What is easily got wrong\n", "| trap | cases |", "|---|---|"]
    lines += [f"| {trap} | {', '.join(names)} |" for trap, names in TRAPS.items()]
    return "\n".join(lines) + "\n"


def table(cases: Iterable[Case], results: Facts) -> str:
    """Return the cases of a group as a table."""
    lines = [
        "| case | what it is | result | neurons | numerics | stream | sizes | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        facts = results.get("cases", {}).get(case.name, {})
        times = results.get("times", {}).get(case.name)
        cells = [
            case.name,
            case.notes,
            case.expect,
            facts.get("neurons") or "",
            f"`{facts['code']}`" if facts.get("code") else facts.get("numerics", ""),
            facts.get("stream", "").replace("|", "\\|"),
            "x".join(map(str, times["sizes"])) if times else "",
            f"{times['eager_ms'] / times['compiled_ms']:.1f}" if times else "",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
