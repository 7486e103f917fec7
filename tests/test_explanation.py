"""``explain``: what is said of a model is true, whatever the model and its source are."""

from __future__ import annotations

import json
import linecache
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snncc
from snncc.nn import LIF, ATan
from snncc.reporting.explanation import Explanation
from tests.models import Branching, Convolutional, Feedforward, Recurrent
from tests.passes.test_classify_neurons import looped, self_recurrent, ternary

VOID = {"meta", "br", "hr", "link"}
LOOP = """
import torch


def model(x):
    v = torch.zeros_like(x[0])
    out = []
    for x_t in x:
        v = 0.5 * v + x_t
        s = (v > 1.0).float()
        v = v * (1.0 - s)
        out.append(s)
    return torch.stack(out)
"""


class Page(HTMLParser):
    """Reads a page and notes what a browser would: elements, attributes, text, nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def values(self, name: str) -> list[str]:
        """Return all values of an attribute."""
        return [a[name] or "" for _, a in self.tags if name in a]


def check_page(explanation: Explanation) -> Page:
    """Return the page of an explanation, which has to stand alone and hold together."""
    html = explanation.to_html()
    page = Page(html)

    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {h for h in page.values("href") if h[0] != "#" or h[1:] not in ids} == set()
    assert {p for parts in page.values("data-parts") for p in parts.split()} <= set(ids)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"src", "onclick", "onload", "onerror", "srcset"} & {
        k for _, a in page.tags for k in a
    }
    assert re.findall(r"https?:|url\(|@import", html) == []
    return page


def explain_text(text: str, path: Path, *, edit: str | None = None) -> Explanation:
    """Explain the function ``model`` of a module, whose file may change after its import."""
    path.write_text(text)
    namespace: dict[str, Any] = {}
    exec(compile(text, str(path), "exec"), namespace)
    if edit is not None:
        path.write_text(edit)
    linecache.checkcache(str(path))
    return snncc.explain(namespace["model"], torch.randn(5, 2, 3))


def test_every_line_of_the_loop_is_marked() -> None:
    """Each expression of the loop belongs to the part that it became."""
    plan = snncc.explain(Feedforward(), torch.randn(6, 2, 5)).plan
    assert plan is not None
    texts = {layer.name: {where.text for where in layer.lines} for layer in plan.layers}

    assert texts["layer1"] == {"self.layer1(x[t])"}
    assert texts["neuron1"] >= {"0.9 * v1 + self.layer1(x[t])", "h1 - 1.0", "h1 * (1.0 - s1)"}
    assert texts["neuron2"] >= {"s2.detach()", "h2 - s2.detach()"}
    assert texts["neuron3"] == {"total + self.readout(s2)"}


def test_parts_have_the_names_of_the_user() -> None:
    """Operators are named after their module, neurons after what they are, inputs after both."""
    plan = snncc.explain(Feedforward(), torch.randn(6, 2, 5)).plan
    assert plan is not None

    assert [(layer.name, layer.what) for layer in plan.layers] == [
        ("layer1", "linear"), ("neuron1", "LIF"), ("layer2", "linear"), ("neuron2", "PLIF"),
        ("readout", "linear"), ("neuron3", "running sum"),
    ]  # fmt: skip
    assert plan.flow == (
        ("x", "layer1"), ("layer1", "neuron1"), ("neuron1", "layer2"), ("layer2", "neuron2"),
        ("neuron2", "readout"), ("readout", "neuron3"), ("neuron3", "output"),
    )  # fmt: skip
    assert plan.neurons[1].equations == (
        "v2[-1] = 0",
        "h2[t] = sigmoid * v2[t-1] + layer2[t]",
        "s2[t] = 1 if h2[t] - 1 >= 0 else 0    gradient: ATanFunction",
        "v2[t] = h2[t] - detach(s2[t])",
    )
    (_, decay) = plan.neurons[1].operands
    assert (decay.shown, decay.is_learned, decay.varies) == (
        "sigmoid", True, "one value for each neuron",
    )  # fmt: skip
    assert decay.where is not None
    assert decay.where.text == "torch.sigmoid(self.decay)"


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Feedforward(), (6, 2, 5)),
        (Convolutional(), (4, 3, 2, 4, 4)),
        (Recurrent(), (5, 2, 4)),
        (LIF(learnable=True, shape=(4, 1, 1)), (5, 2, 4, 3, 3)),
        (looped(self_recurrent, 2), (5, 2, 3)),
        (looped(ternary), (5, 2, 3)),
    ],
    ids=["feedforward", "convolutional", "recurrent", "channels", "self", "ternary"],
)
def test_pages_stand_alone(model: Callable[..., Any], shape: tuple[int, ...]) -> None:
    """A page is well formed, refers to nothing outside, and shows every part."""
    explanation = snncc.explain(model, torch.randn(*shape))
    page = check_page(explanation)
    assert explanation.plan is not None

    for layer in explanation.plan.layers:
        assert layer.name in page.text
        assert layer.form in page.text


def test_bytes_add_up() -> None:
    """The transfers of a neuron are its bytes, with and without gradients."""
    for training in (True, False):
        x = torch.randn(6, 2, 5, dtype=torch.float64)
        model = Feedforward().double().requires_grad_(training)
        plan = snncc.explain(model, x).plan
        assert plan is not None
        for layer in plan.neurons:
            total = layer.training_bytes if training else layer.forward_bytes

            assert sum(t.bytes for t in layer.transfers) == total


def test_refusal_shows_the_line_the_reason_and_the_remedy() -> None:
    """The page of a refused model has its line, why, and what to do."""
    explanation = snncc.explain(Branching(), torch.randn(5, 2, 3))
    page = check_page(explanation)

    assert explanation.plan is None
    assert "if v.max() > 1.0:" in page.text
    assert "snncc compiles code whose control flow does not depend on tensor values." in page.text
    assert "torch.where(condition, a, b)" in page.text
    assert "line marked refused" in page.values("class")


def test_recurrent_loop_is_shown_in_the_plan() -> None:
    """Feedback through a product is one part of the plan, with the reason for its steps."""
    model, x = Recurrent(), torch.randn(5, 2, 4)
    explanation = snncc.explain(snncc.compile(model), x)
    check_page(explanation)

    assert explanation.refusal is None
    assert explanation.plan is not None
    assert [layer.kind for layer in explanation.plan.layers] == ["recurrent"]


def test_compiled_models_are_explained_as_compiled() -> None:
    """The plan is the one that runs; options belong to the compiled model."""
    fast = snncc.compile(Feedforward(), target="torch", storage="save")
    x = torch.randn(6, 2, 5)
    fast(x)
    explanation = snncc.explain(fast, x)

    assert explanation.plan is fast.plans[0]
    assert explanation.options.target == "torch"
    assert len(fast.plans) == 1
    with pytest.raises(snncc.OptionError) as refusal:
        snncc.explain(fast, x, options={"target": "c"})
    assert refusal.value.code == "option.model"


def test_options_are_used() -> None:
    """Options are given as a dict or as `Options`, and are checked."""
    x = torch.randn(6, 2, 5)
    for options in ({"storage": "save"}, snncc.Options(storage="save")):
        plan = snncc.explain(Feedforward(), x, options=options).plan
        assert plan is not None

        assert plan.neurons[0].keeps.endswith("stored")
    with pytest.raises(snncc.OptionError):
        snncc.explain(Feedforward(), x, options={"storag": "save"})


def test_files(tmp_path: Path) -> None:
    """A page, data and text are written by the end of the name; other names are refused."""
    explanation = snncc.explain(Feedforward(), torch.randn(6, 2, 5))
    html, data, text = (explanation.save(tmp_path / f"x{s}") for s in (".html", ".json", ".txt"))

    assert html.read_text().startswith("<!DOCTYPE html>")
    assert json.loads(data.read_text()) == json.loads(json.dumps(explanation.to_dict()))
    assert text.read_text().rstrip() == str(explanation)
    with pytest.raises(snncc.OptionError) as refusal:
        explanation.save(tmp_path / "x.pdf")
    assert refusal.value.code == "option.file"


def test_data_for_tools() -> None:
    """The data has plan, meaning, forms and lines as plain values."""
    data = json.loads(json.dumps(snncc.explain(Feedforward(), torch.randn(6, 2, 5)).to_dict()))
    neuron = data["plan"]["layers"][1]

    assert data["plan"]["numerics"] == "reassociated"
    assert (neuron["name"], neuron["what"], neuron["form"]) == ("neuron1", "LIF", "fused time")
    assert neuron["meaning"]["states"][0]["decay"] == "0.9"
    assert neuron["meaning"]["spikes"][0]["threshold"] == "1.0"
    assert {r["form"] for r in neuron["rejected"]} == {
        "scan", "fixed point", "parallel reset",
    }  # fmt: skip
    assert neuron["where"]["function"] == "forward"
    assert data["seconds"].keys() >= {"capture", "reroll"}


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """Names and source that look like markup are shown, and do nothing."""
    evil = "</style><script>alert(1)</script><b onload='x'>"

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<img src=x>&\"'", nn.Linear(3, 3))
            self.spike = ATan()

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            x = inputs[evil]
            v = torch.zeros_like(x[0])
            for x_t in x:  # </span><script>alert("<!--")</script>
                v = 0.5 * v + self._modules["<img src=x>&\"'"](x_t)  # type: ignore[misc]
                v = v - self.spike(v - 1.0)
            return v

    Net.__name__ = f"Net{evil}"
    explanation = snncc.explain(Net(), {evil: torch.randn(5, 2, 3)})
    page = check_page(explanation)

    assert evil in page.text
    assert '</span><script>alert("<!--")</script>' in page.text
    assert {tag for tag, _ in page.tags} & {"img", "b"} == {
        "b"
    }  # the page has bold text of its own
    assert evil in str(explanation)
    json.dumps(explanation.to_dict())


def test_code_without_a_file() -> None:
    """Executed text has line numbers but no text, in errors as on the page."""
    namespace: dict[str, Any] = {}
    exec(LOOP, namespace)
    page = check_page(snncc.explain(namespace["model"], torch.randn(5, 2, 3)))

    assert "in model: source not available" in page.text


def test_cell_of_a_notebook() -> None:
    """A cell is shown as a whole."""
    name = "<ipython-input-8-explained>"
    linecache.cache[name] = (len(LOOP), None, LOOP.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {}
    exec(compile(LOOP, name, "exec"), namespace)
    page = check_page(snncc.explain(namespace["model"], torch.randn(5, 2, 3)))

    assert "s = (v > 1.0).float()" in page.text


def test_lambda() -> None:
    """A model that is a lambda has its line."""
    scan = lambda x: torch.stack([x[0], *(x[t] * 0.5 + x[t - 1] for t in range(1, 5))])  # noqa: E731
    page = check_page(snncc.explain(scan, torch.randn(5, 2, 3)))

    assert "scan = lambda x" in page.text


@pytest.mark.parametrize(
    ("edit", "shown", "hidden"),
    [
        (LOOP.replace("0.5 * v", "0.7 * v"), "s = (v > 1.0).float()", "0.5 * v + x_t"),
        (LOOP.replace("out = []", "out = list()"), "changed after it was imported", "nothing"),
        ("\n\n" + LOOP, "source not available", "s = (v > 1.0).float()"),
        ("", "source not available", "s = (v > 1.0).float()"),
        (LOOP + "\n# and more\n", "s = (v > 1.0).float()", "changed after it was imported"),
    ],
    ids=["line", "other-line", "moved", "emptied", "appended"],
)
def test_edited_files(edit: str, shown: str, hidden: str, tmp_path: Path) -> None:
    """What is shown is what ran; where that cannot be, it is said."""
    page = check_page(explain_text(LOOP, tmp_path / "model.py", edit=edit))

    assert shown in page.text
    assert hidden not in page.text


def test_models_from_two_files(tmp_path: Path) -> None:
    """Each file has its listing."""
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("def step(v, x):\n    return 0.5 * v + x\n")
    body = "v = x[0] * 0\n    for x_t in x:\n        v = step(v, x_t)\n    return v\n"
    second.write_text(f"def model(x):\n    {body}")
    namespace: dict[str, Any] = {}
    for path in (first, second):
        exec(compile(path.read_text(), str(path), "exec"), namespace)
    page = check_page(snncc.explain(namespace["model"], torch.randn(5, 2, 3)))

    assert str(first) in page.text
    assert str(second) in page.text
    assert "v = step(v, x_t)" in page.text


@pytest.mark.slow
def test_large_models_stay_readable() -> None:
    """Hundreds of layers: a page of a sane size, in a sane time, that says what it omits."""

    class Deep(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
            self.spike = ATan()

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                v = torch.zeros(x.shape[1:])
                out = []
                for x_t in x:
                    h = 0.5 * v + layer(x_t)
                    s = self.spike(h - 1.0)
                    v = h - s
                    out.append(s)
                x = torch.stack(out)
            return x

    explanation = snncc.explain(Deep(170), torch.randn(4, 1, 2))
    page = check_page(explanation)
    text = str(explanation)

    assert len(explanation.to_html()) < 3_000_000
    assert "so many are not drawn" in page.text
    assert "and 169 more" in page.text
    assert "more neurons, see the table" in text
