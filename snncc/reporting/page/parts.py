"""The plan as HTML: a row for each part, and below it what is known of the part."""

from __future__ import annotations

from snncc.reporting.page.markup import Child, Markup, tag
from snncc.reporting.page.mathml import equations
from snncc.reporting.report import Layer, Plan, Rejected, Transfer, short
from snncc.reporting.wording import describe

# Details are shown for the first parts only: a page of thousands is not read.
MOST_DETAILS = 150


def identifier(number: int) -> str:
    """Return the id of the row of a part."""
    return f"part-{number}"


def rows(plan: Plan) -> Markup:
    """Return the rows of a plan."""
    first = next((n for n, layer in enumerate(plan.layers) if layer.kind == "neuron"), None)
    widest = max(
        (layer.training_bytes or layer.forward_bytes or 0.0 for layer in plan.layers), default=0.0
    )
    return tag(
        "div",
        [_part(n, layer, widest, is_open=n == first) for n, layer in enumerate(plan.layers)],
        class_="parts",
    )


def _part(number: int, layer: Layer, widest: float, *, is_open: bool) -> Markup:
    details = _details(layer, widest) if number < MOST_DETAILS else None
    head = [
        tag("span", layer.name, class_="name"),
        tag("span", layer.what, class_="what"),
        tag("span", short(layer.where), class_="place"),
        tag("span", layer.form, class_="form"),
        tag("span", layer.kernel, class_="kernel"),
        tag("span", layer.numerics.value, class_=f"numerics {layer.numerics.value}"),
    ]
    common = {
        "id": identifier(number),
        "class_": f"part-row {layer.kind}",
        "data_parts": identifier(number),
    }
    if not details:
        return tag("div", tag("div", head, class_="head"), **common)
    opened = "" if is_open else None
    return tag("details", tag("summary", head, class_="head"), details, open=opened, **common)


def _details(layer: Layer, widest: float) -> list[Child]:
    found: list[Child] = []
    step = layer.step
    if step is not None:
        found += [equations(step), _meaning(layer)]
    if layer.note and not layer.refused:
        found.append(tag("p", layer.note, class_="remark"))
    if layer.rejected or step is not None:
        found.append(_forms(layer))
    if layer.transfers:
        found.append(_bytes(layer, widest))
    return found


def _meaning(layer: Layer) -> Markup:
    told = [(tag("dt", what), tag("dd", sentence)) for what, sentence in describe(layer)]
    for operand in layer.operands:
        if operand.where is not None and operand.where.text:
            source = [operand.shown, " = ", operand.where.text]
            told.append((tag("dt", "where"), tag("dd", tag("code", source))))
    return tag("dl", told, class_="meaning")


def _forms(layer: Layer) -> Markup:
    chosen = tag(
        "li", tag("b", layer.form), f" \N{EM DASH} {layer.numerics.value}", class_="chosen"
    )
    return tag("ul", chosen, [_rejected(other) for other in layer.rejected], class_="forms")


def _rejected(other: Rejected) -> Markup:
    place = f" ({short(other.where)})" if other.where is not None else ""
    reason = [tag("b", other.form), f" \N{EM DASH} {other.reason}{place} ", tag("code", other.code)]
    return tag("li", reason, class_="rejected")


def _bytes(layer: Layer, widest: float) -> Markup:
    """Return the bytes of a neuron-step as bars, to the scale of the largest of the plan."""
    sweeps = [("forward", "forward"), ("backward", "backward")]
    bars: list[Child] = []
    for sweep, title in sweeps:
        own = [t for t in layer.transfers if t.sweep == sweep]
        if own:
            bars.append(_bar(title, own, widest))
    total = f"{layer.forward_bytes:g} bytes a neuron-step for inference"
    if layer.training_bytes is not None:
        total += f", {layer.training_bytes:g} with gradients; {layer.keeps}"
    return tag("div", tag("p", total), bars, class_="bytes")


def _bar(title: str, own: list[Transfer], widest: float) -> Markup:
    pieces = [
        tag(
            "span",
            style=f"width:{100 * t.bytes / (widest or 1.0):.3f}%",
            title=f"{t.what}: {t.bytes:g} bytes",
        )
        for t in own
    ]
    told = ", ".join(f"{t.what} {t.bytes:g}" for t in own)
    total = sum(t.bytes for t in own)
    bar = tag("span", pieces, class_="bar", role="img", aria_label=f"{title}: {told}")
    return tag(
        "div", tag("span", f"{title} {total:g} B", class_="label"), bar, class_=f"sweep {title}"
    )
