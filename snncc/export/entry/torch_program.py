"""The writer of programs of torch, and which sizes are free in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.fx
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import SnnccError
from snncc.export.bundle import PROGRAM, Bundle, write_bundle
from snncc.export.entry.exported import ExportedModel
from snncc.export.entry.stepped import SteppedModel
from snncc.export.torch_program.program import Pinned, program_files, resized
from snncc.ir.loop_call import loop_of
from snncc.ir.sequence_ops import TripLength


def write_program(model: ExportedModel, folder: Path, name: str) -> Bundle:
    """Write a program of torch, which needs snncc for its operators."""
    _ = model.folded  # refuses statistics of the batch
    free = _free(model)
    pinned = Pinned(model.fast, model.without_writing, model.example, free)

    def reference(arguments: tuple[Any, ...]) -> list[Tensor]:
        return pytree.tree_leaves(model.expected(arguments))

    files, dynamic = program_files(pinned, reference, model.example, free, name)
    facts = model.versions(name) | {"dynamic": list(dynamic)}
    return write_bundle(folder, files, facts, PROGRAM)


def _free(model: ExportedModel) -> dict[str, list[int | None]]:
    """Return which sizes a network leaves free, and where they are in the arguments."""
    leaves = pytree.tree_leaves(model.example)
    times = _time_axes(model)
    batches = {
        s.index: next((d for d in range(leaves[s.index].dim()) if d != times.get(s.index)), None)
        for s in model.sources
        if s.index is not None
    }
    is_unrolled = any(loop_of(node) is not None for node in model.compiled.graph.nodes)
    found: dict[str, list[int | None]] = {}
    for name, places in (("time", {} if is_unrolled else times), ("batch", batches)):
        sizes = {i: leaves[i].shape[axis] for i, axis in places.items() if axis is not None}
        size = next(iter(sizes.values()), 1)
        axes = [places[i] if sizes.get(i) == size else None for i in range(len(leaves))]
        if size > 1 and model.serves_call(resized(model.example, {name: axes}, {name: size + 1})):
            found[name] = axes
    return found


def _time_axes(model: ExportedModel) -> dict[int, int]:
    """Return for each input that has a time axis which one it is."""
    steps = SteppedModel(model)
    try:
        if steps.lists.arguments.has_lists:
            return {}  # sizes of lists are no sizes of tensors
        axes = steps.program.input_axes
    except SnnccError:  # as with attention over time: all steps at once
        return _visited_axes(model)
    pairs = zip(model.sources, axes, strict=True)
    return {s.index: axis for s, axis in pairs if s.index is not None and axis is not None}


def _visited_axes(model: ExportedModel) -> dict[int, int]:
    """Return for each input the axis that has as many steps as a loop over what it makes."""
    places = [node for node in model.compiled.graph.nodes if node.op == "placeholder"]
    indices = dict(zip(places, (source.index for source in model.sources), strict=True))
    found: dict[int, int] = {}
    for node in model.compiled.graph.nodes:
        if isinstance(node.target, TripLength):
            steps = node.args[0].meta["shape"][node.target.dim]
            for place in _placeholders(node.args[0]):
                index, shape = indices[place], tuple(place.meta["shape"])
                if index is not None and steps in shape:
                    found.setdefault(index, shape.index(steps))
    return found


def _placeholders(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Return what a value is computed from."""
    seen = [node]
    for each in seen:
        seen += [before for before in each.all_input_nodes if before not in seen]
    return [each for each in seen if each.op == "placeholder"]
