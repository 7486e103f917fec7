"""The explanation of a model as one page of HTML that needs nothing else: no network, no fonts."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from snncc.errors import SnnccError
from snncc.reporting.page.code import code
from snncc.reporting.page.graph import Box, draw, lay_out
from snncc.reporting.page.listing import Listing, Mark, listings
from snncc.reporting.page.markup import Child, Markup, tag
from snncc.reporting.page.parts import MOST_DETAILS, identifier, rows
from snncc.reporting.report import Plan
from snncc.source import excerpt

if TYPE_CHECKING:
    from snncc.reporting.explanation import Explanation

KINDS = {
    "neuron": "neuron kernel",
    "hoisted": "all steps at once",
    "operator": "once",
    "mapped": "once a step",
    "serial": "step by step",
    "refused": "refused",
}


def page(explanation: Explanation) -> str:
    """Return the page of an explanation."""
    plan, refusal = explanation.plan, explanation.refusal
    links = {} if plan is None else {p.name: f"#{identifier(n)}" for n, p in enumerate(plan.layers)}
    body = [
        _header(explanation),
        None if refusal is None else _refusal(refusal),
        None if plan is None else _graph(plan, links),
        tag(
            "main",
            None if plan is None else _plan(plan),
            _source(plan, refusal, links),
            class_="columns" if plan is not None else "single",
        ),
        _stages(explanation.seconds),
        tag(
            "footer",
            "Made by snncc from one run of the model. Bytes are those of one neuron at one step.",
        ),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{explanation.model} \N{MIDDLE DOT} snncc"),
        tag("style", Markup(_file("page.css"))),
    ]
    script = tag("script", Markup(_file("page.js")))
    html = tag("html", tag("head", head), tag("body", body, script), lang="en")
    return f"<!DOCTYPE html>\n{html}"


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _header(explanation: Explanation) -> Markup:
    plan = explanation.plan
    title = [tag("p", "snncc explains", class_="eyebrow"), tag("h1", explanation.model)]
    if plan is None:
        return tag("header", title, tag("p", "This model was refused.", class_="lead"))
    lead = f"{plan.specialized_on}; network: {plan.numerics.value}"
    return tag("header", title, tag("p", lead, class_="lead"), _summary(explanation, plan))


def _summary(explanation: Explanation, plan: Plan) -> Markup:
    kinds = [layer.kind for layer in plan.layers]
    neurons = kinds.count("neuron")
    stepwise = kinds.count("serial") + kinds.count("mapped")
    milliseconds = 1e3 * sum(explanation.seconds.values())
    tiles: list[tuple[str | int, str, str]] = [
        (neurons, "neuron kernel" if neurons == 1 else "neuron kernels", "neuron"),
        (kinds.count("hoisted"), "over all steps at once", "hoisted"),
        (stepwise, "one step after another", "serial" if stepwise else "none"),
        (f"{milliseconds:.0f} ms", "to record and plan", "time"),
    ]
    return tag(
        "ul",
        [tag("li", tag("b", number), " ", what, class_=kind) for number, what, kind in tiles],
        class_="tiles",
    )


def _refusal(error: SnnccError) -> Markup:
    where = error.location
    shown = "\n".join(excerpt(where)) if where is not None else ""
    place = (
        None if where is None else f"{where.file}, line {where.line}, in {where.function or '?'}"
    )
    return tag(
        "section",
        tag("h2", "Refused"),
        tag("p", error.message, class_="message"),
        tag("p", place, class_="place") if place else None,
        tag("pre", shown) if shown else None,
        [tag("p", tag("b", "Why "), note) for note in error.notes],
        [tag("p", tag("b", "What to do "), hint) for hint in error.hints],
        tag("p", tag("code", error.code)),
        class_="refusal",
        id="refusal",
    )


def _graph(plan: Plan, links: dict[str, str]) -> Markup | None:
    *inputs, output = plan.ends
    boxes = {name: Box(name, "input", "end", None, "an input of the model") for name in inputs}
    for layer in plan.layers:
        row, title = links[layer.name].removeprefix("#"), f"{layer.name}: {layer.form}"
        boxes[layer.name] = Box(layer.name, layer.what, layer.kind, row, title)
    boxes[output] = Box("output", "", "end", None, "what the model returns")
    layout = lay_out(list(boxes), plan.flow)
    if layout is None:
        many = f"The graph has {len(plan.layers)} parts; so many are not drawn."
        return tag("section", tag("h2", "Network"), tag("p", many, class_="remark"))
    drawing = tag("div", draw(layout, boxes), class_="scroll", tabindex="0", role="group")
    return tag("section", tag("h2", "Network"), drawing, _legend(plan), class_="network")


def _legend(plan: Plan) -> Markup:
    present = [kind for kind in KINDS if any(layer.kind == kind for layer in plan.layers)]
    return tag("ul", [tag("li", KINDS[kind], class_=kind) for kind in present], class_="legend")


def _plan(plan: Plan) -> Markup:
    remarks: list[Child] = [tag("p", note, class_="remark") for note in plan.remarks]
    if len(plan.layers) > MOST_DETAILS:
        more = f"Details are shown for the first {MOST_DETAILS} of {len(plan.layers)} parts."
        remarks.insert(0, tag("p", more, class_="remark"))
    return tag("section", tag("h2", "Plan"), rows(plan), remarks, class_="plan")


def _source(plan: Plan | None, refusal: SnnccError | None, links: dict[str, str]) -> Markup | None:
    marks = [] if plan is None else _marks(plan)
    if refusal is not None and refusal.location is not None:
        marks.append(Mark(refusal.location, "", "refused", f"refused: {refusal.message}"))
    found = listings(marks)
    if not found:
        return None
    below = _below(plan, refusal)
    shown = [(listing, _file_of(listing, links, below)) for listing in found]
    own = [figure for listing, figure in shown if not listing.is_library]
    library = [figure for listing, figure in shown if listing.is_library]
    if library:
        what = tag("summary", f"Library code that ran ({len(library)})")
        own.append(tag("details", what, library, open=None if own else "", class_="library"))
    return tag("section", tag("h2", "Source"), own, class_="source")


def _below(plan: Plan | None, refusal: SnnccError | None) -> dict[tuple[str, int], Markup]:
    """Return what stands below the lines that kept a part from running better."""
    notes: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for layer in () if plan is None else plan.layers:
        for other in layer.refused:
            where = other.where or layer.where
            if where is not None:
                text = f"{layer.name} runs {layer.form}: {other.reason}"
                notes.setdefault((where.file, where.last_line), []).append((layer.kind, text))
    if refusal is not None and refusal.location is not None:
        where = refusal.location
        text = " ".join(("Refused:", refusal.message, *refusal.hints))
        notes.setdefault((where.file, where.last_line), []).append(("refused", text))
    return {
        key: Markup("".join(_note(kind, text) for kind, text in dict.fromkeys(own)))
        for key, own in notes.items()
    }


def _note(kind: str, text: str) -> Markup:
    number = tag("span", "\N{RIGHTWARDS ARROW WITH HOOK}", class_="number")
    return tag("div", number, tag("span", text, class_="text"), class_=f"line below {kind}")


def _file_of(
    listing: Listing, links: dict[str, str], below: dict[tuple[str, int], Markup]
) -> Markup:
    stale = None if listing.is_current else "Parts of this file changed after it was imported."
    own = {line: note for (file, line), note in below.items() if file == listing.file}
    return tag(
        "figure",
        tag("figcaption", _short_path(listing.file)),
        None if stale is None else tag("p", stale, class_="remark"),
        code(listing, links.get, own),
    )


def _short_path(file: str) -> str:
    """Return a path as seen from the current folder, where it is below that."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _marks(plan: Plan) -> list[Mark]:
    marks = [Mark(where, "", "once", "combines or arranges values") for where in plan.others]
    for layer in plan.layers:
        says = f"{layer.name}: {layer.what}, {layer.form}"
        says += f" ({layer.note})" if layer.note else ""
        marks += [Mark(where, layer.name, layer.kind, says) for where in layer.lines]
    return marks


def _stages(seconds: dict[str, float]) -> Markup | None:
    if not seconds:
        return None
    longest = max(seconds.values()) or 1.0
    rows_ = [
        tag(
            "tr",
            tag("th", stage, scope="row"),
            tag("td", f"{1e3 * value:.1f} ms"),
            tag("td", tag("span", class_="bar", style=f"width:{100 * value / longest:.2f}%")),
        )
        for stage, value in seconds.items()
    ]
    return tag("section", tag("h2", "Stages"), tag("table", rows_), class_="stages")
