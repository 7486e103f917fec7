"""Mode ``"auto"``: which exact form each neuron runs in, by what a call will probably take.

Legality is a matter of passes; this is profit.  The choice is made again for each call by its own
sizes (`snncc.runtime.forms.chosen`); what is written into the plan is the choice for the sizes that
the model was recorded with, and what the others would take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch import Tensor

from snncc.ir.nodes import Form, FusedTime, ParallelReset, Scan
from snncc.ir.program import Estimate, NeuronProgram, Restart
from snncc.options import TargetName
from snncc.passes.meaning.find_feedback import find_feedback, find_nonlinearity
from snncc.passes.neurons import rewrite_neurons
from snncc.passes.parallel.parallelize_reset import restart_of, with_backward_scan
from snncc.passes.parallel.parallelize_scan import FLOATS
from snncc.runtime.costs.forms import FORMS, Sizes, estimates, sweeps_work
from snncc.runtime.costs.work import prices_of

# What a plan calls the form of each name.
_FORM_OF: dict[str, Form] = {
    FORMS[0].name: FusedTime(),
    "fused time, backward scan": Scan(forward=False),
    "parallel reset": ParallelReset(),
    "parallel reset, backward scan": ParallelReset(backward=True),
}


def select_forms(
    graph: torch.fx.Graph, leaves: Sequence[Tensor], target: TargetName, threads: int | None
) -> torch.fx.Graph:
    """Return a graph whose neurons say which form was chosen for its sizes, and why.

    Args:
        graph: The graph after all passes.
        leaves: The tensors of its placeholders.
        target: The language of the kernels.
        threads: Threads of a kernel; None means ``torch.get_num_threads()``.
    """
    prices = prices_of(target)

    def choose(program: NeuronProgram, node: torch.fx.Node) -> NeuronProgram:
        if prices is None:
            reason = f"no prices were measured for target '{target}', so fused time is taken"
            return replace(program, estimates=(Estimate(FORMS[0].name, None, reason),))
        sizes = Sizes(
            steps=int(_value(node.args[0], node.graph, leaves)),
            lanes=torch.Size(node.meta["lanes"]).numel(),
            threads=threads or torch.get_num_threads(),
            training=program.adjoint is not None,
        )
        is_single = node.meta.get("dtype") in FLOATS and not program.narrow
        restart = restart_of(program.forward) if is_single else None
        if isinstance(restart, Restart):
            program = replace(program, restart=restart)
            program = program if program.scan is None else with_backward_scan(program)
        made = tuple(_judged(program, sizes, prices))
        forward = replace(program.forward, form=_FORM_OF[made[0].form])
        return replace(program, forward=forward, estimates=made)

    return rewrite_neurons(graph, choose)


def _judged(
    program: NeuronProgram, sizes: Sizes, prices: Mapping[str, float]
) -> Iterator[Estimate]:
    """Yield the forms for some sizes, the one that takes least first."""
    found = sorted(estimates(program, sizes, prices), key=lambda pair: pair[1])
    best = found[0][1]
    for form, seconds in found:
        if seconds == best:
            yield Estimate(form.name, seconds, f"chosen for {sizes}: {_ms(seconds)} estimated")
        else:
            yield Estimate(form.name, seconds, f"{_ms(seconds)} estimated for {sizes}")
    cuts = find_feedback(program.forward)
    if cuts and find_nonlinearity(program.forward, cuts) is None:
        least = sweeps_work(program, sizes).seconds(prices)
        reason = f"two sweeps at least, each with every step again: {_ms(least)} or more"
        yield Estimate("fixed point", least, reason)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _value(wanted: Any, graph: torch.fx.Graph, leaves: Sequence[Tensor]) -> Any:
    """Return what an argument of a node is, given the tensors of the placeholders."""
    places = [node for node in graph.nodes if node.op == "placeholder"]
    known: dict[torch.fx.Node, Any] = dict(zip(places, leaves, strict=True))

    def value(node: torch.fx.Node) -> Any:
        if node not in known:
            target: Any = node.target
            args: Any = torch.fx.node.map_arg(node.args, value)
            kwargs: Any = torch.fx.node.map_arg(node.kwargs, value)
            known[node] = target(*args, **kwargs)
        return known[node]

    with torch.no_grad():
        return torch.fx.node.map_arg(wanted, value)
