"""The shape of what leaves each node of a NIR graph, without time and batch.

NIR says the shapes of inputs and of neurons; what lies between follows from what arrives.  In a
cycle a node may have to wait for another one that waits for it: the weights of one of them, or its
size, tell.  Nothing is broadcast: what arrives at a node has one shape, and it is what the node
takes.
"""

from __future__ import annotations

from snncc.nir.checks import CHECK, refused, whole
from snncc.nir.graph import Plan
from snncc.nir.stages import Shape, Stage


def find_shapes(plan: Plan, stages: dict[str, Stage]) -> dict[str, Shape | None]:
    """Return the shape of what leaves each input and each inner node, None where nothing says.

    Raises:
        OptionError: A node does not take what arrives; or nothing says the shape of what arrives
            one step later.
    """
    given = {name: _declared(plan, name) for name in plan.inputs}
    try:
        shapes = _propagate(plan, stages, given)
    except ValueError as error:
        batched = {n for n, shape in given.items() if shape and len(shape) > 1 and shape[0] == 1}
        try:  # exporters that count the batch of their sample
            shapes = _propagate(
                plan, stages, {n: (s or ())[1:] if n in batched else s for n, s in given.items()}
            )
        except ValueError:
            raise refused(f"{error}.", CHECK) from error
    for source, target in plan.delayed:
        if shapes[source] is None:
            raise refused(f"Nothing says the shape of what '{source}' sends to '{target}'.", CHECK)
    return shapes


def _declared(plan: Plan, name: str) -> Shape | None:
    """Return the shape that an input says, None where it says none."""
    shape = next(iter((plan.nodes[name].output_type or {"output": None}).values()))
    return None if shape is None else whole(name, "shape", shape, least=1)


def _propagate(
    plan: Plan, stages: dict[str, Stage], given: dict[str, Shape | None]
) -> dict[str, Shape | None]:
    """Find shapes in the order of evaluation, again while what arrives late becomes known."""
    shapes: dict[str, Shape | None] = dict.fromkeys(plan.order) | given
    while True:
        before = dict(shapes)
        for name in plan.order:
            arriving = _arriving(plan, name, shapes)
            try:
                shapes[name] = stages[name].leaving(arriving)
            except (RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"Node '{name}' does not take {list(arriving or ())}, which arrives: {error}"
                ) from error
        for name in plan.outputs:
            _arriving(plan, name, shapes)
        if shapes == before:
            return shapes


def _arriving(plan: Plan, name: str, shapes: dict[str, Shape | None]) -> Shape | None:
    """Return the one shape of what arrives at a node."""
    known = {source: shapes[source] for source in plan.sources[name] if shapes[source] is not None}
    if len(set(known.values())) > 1:
        raise ValueError(
            f"What arrives at node '{name}' has several shapes: "
            + ", ".join(f"{list(shape or ())} from '{n}'" for n, shape in known.items())
        )
    return next(iter(known.values()), None)
