"""From the flat record of a run to time loops: L0 to L1.

The tape of a serial model says each iteration of its loops anew.  Re-rolling finds the iterations,
proves that they are one body, and replaces them by one call of a `TimeLoop`.  Nothing is assumed:
what cannot be proven stays as it was recorded, and `Rolled.diagnostics` says why.

The stages: bring the ways to collect values to one form (`simplify`), number the operations
(`symbols`), find what repeats (`repeats`), prove it (`prove`), choose (`search`), replace (`roll`),
until nothing more is found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx

from snncc.frontend.garbage import rare_collections
from snncc.frontend.reroll.collect import collect
from snncc.frontend.reroll.diagnose import Difference, diagnose
from snncc.frontend.reroll.first_iteration import complete_first
from snncc.frontend.reroll.flat import to_graph
from snncc.frontend.reroll.item import Item
from snncc.frontend.reroll.last_iteration import complete_last, complete_second
from snncc.frontend.reroll.modules import find_loops_over_modules
from snncc.frontend.reroll.read import from_tape
from snncc.frontend.reroll.roll import prune, roll, take_last
from snncc.frontend.reroll.search import find_loops
from snncc.frontend.reroll.simplify import simplify
from snncc.frontend.reroll.symbols import live_classes, place_moves, sequence
from snncc.ir.tape import Source, Tape
from snncc.ir.time_loop import TimeLoop

# How often the second of two iterations is completed, in programs where no loop is proven.
PAIRS = 4


@dataclass(eq=False)
class Rolled:
    """A run in which the loops over time are loops again.

    Attributes:
        graph: Same placeholders and outputs as the tape's graph.  Each loop is one call_function
            node whose target is a `TimeLoop`; ``operator.getitem`` nodes take its results.
        sources: For each placeholder of the graph, in order, where its tensor comes from.
        diagnostics: What looks like a loop and could not be proven to be one.
    """

    graph: torch.fx.Graph
    sources: tuple[Source, ...]
    diagnostics: tuple[Difference, ...] = ()

    @property
    def loops(self) -> tuple[TimeLoop, ...]:
        """The loops, in the order of the graph."""
        return tuple(n.target for n in self.graph.nodes if isinstance(n.target, TimeLoop))


def reroll(tape: Tape, *, values_only: bool = False) -> Rolled:
    """Find and prove the loops of a recorded run.

    Args:
        tape: The record; it is not changed.
        values_only: Whether to leave out what matters to gradients alone: where only some steps
            detach their state, all of them are one loop then.

    Returns:
        An equal program in which every proven loop is a `TimeLoop`.
    """
    with rare_collections():
        return _reroll(tape, values_only)


def _reroll(tape: Tape, values_only: bool) -> Rolled:
    program = from_tape(tape, values_only=values_only)
    simplify(program)
    place_moves(program)
    live = live_classes(program)
    program.items = [item for item in program.items if item in live]
    number, pairs = 1, PAIRS
    tried: set[Item] = set()
    while True:
        place_moves(program)
        numbered = strict = sequence(program)
        loops, unproven = find_loops(strict)
        if not loops and pairs > 0 and complete_second(program, strict, tried):
            pairs -= 1
            continue
        if not loops:  # perhaps each step has a module of its own
            numbered, loops = find_loops_over_modules(program)
        if not loops:
            break
        completed = [complete_first(program, numbered, loop.aligned) for loop in loops]
        completed += [complete_last(program, numbered, loop.aligned, tried) for loop in loops]
        if any(completed):
            continue
        roll(program, numbered, loops, number)
        number += len(loops)
    collect(program)
    take_last(program)
    prune(program)
    differences = diagnose(program, strict, unproven)
    return Rolled(to_graph(program), tape.sources, differences)
