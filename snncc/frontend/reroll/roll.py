"""Rewriting of the flat program: proven iterations are replaced by one call of a loop."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from snncc.frontend.reroll.body import Built, build
from snncc.frontend.reroll.flat import Program, element, live_items, replace
from snncc.frontend.reroll.item import Item, is_floating, operands
from snncc.frontend.reroll.patterns import Proof
from snncc.frontend.reroll.search import Loop
from snncc.frontend.reroll.symbols import Sequence
from snncc.ir.time_loop import Result, TimeLoop


def roll(program: Program, sequence: Sequence, loops: list[Loop], first_name: int) -> None:
    """Replace the iterations of each proof by one call of a loop, in place.

    What the rest of the program reads of an iteration becomes an element of a stacked result, or
    the last value where nothing else is read.
    """
    replaced: dict[Item, Any] = {}
    before: dict[Item, list[Item]] = {}
    gone: set[Item] = set()
    for number, loop in enumerate(loops):
        proof = loop.proof
        built = build(sequence, proof, loop.starts, f"loop{first_name + number}")
        first = sequence.items[proof.start]
        call = _call(built, first)
        used = _used_outside(program, sequence, proof)
        results = _results(sequence, proof, built, call, used)
        replaced |= results
        before[first] = [*built.made, call, *built.after, *_made(results)]
        kept = {sequence.items[p] for p in used if proof.place(p) in proof.selects}
        for item in kept:
            item.is_element = True
        gone.update(set(sequence.items[proof.start : proof.stop]) - kept)
    program.items = [
        x
        for item in program.items
        for x in (*before.get(item, ()), *(() if item in gone else (item,)))
    ]
    replace(program, replaced)


def _call(built: Built, first: Item) -> Item:
    meta = {k: v for k, v in first.meta.items() if k in ("where", "grad")}
    meta["impure"] = any(node.meta.get("impure") for node in built.loop.body.nodes)
    return Item(built.loop, tuple(built.operands), meta=meta, name=built.loop.name)


def _made(results: dict[Item, Item]) -> list[Item]:
    made: dict[Item, None] = {}
    for item in results.values():
        made.update(dict.fromkeys([x for x in operands(item) if x.target is operator.getitem]))
        made[item] = None
    return list(made)


def _used_outside(program: Program, sequence: Sequence, proof: Proof) -> list[int]:
    """Return the positions of the iterations that the rest of the program reads."""
    owners = np.repeat(np.arange(len(sequence.items)), np.diff(sequence.offsets))
    codes = sequence.codes
    inside = (codes >= proof.start) & (codes < proof.stop)
    outside = (owners < proof.start) | (owners >= proof.stop)
    used = set(codes[inside & outside].tolist())
    floating = set(codes[outside & (codes < 0)].tolist())
    roots = [sequence.value(c) for c in floating]
    used.update(
        code
        for code in map(sequence.code, _settled([*roots, *program.outputs]))
        if proof.start <= code < proof.stop
    )
    return sorted(used)


def _settled(roots: Iterable[Any]) -> set[Item]:
    """Return the items with a place in the sequence that values are, or are made from."""
    found: set[Item] = set()
    seen: set[Item] = set()
    stack = [root for root in roots if isinstance(root, Item)]
    while stack:
        item = stack.pop()
        if item in seen or item.target is None:
            continue
        seen.add(item)
        if is_floating(item):
            stack.extend(operands(item))
        else:
            found.add(item)
    return found


def _results(
    sequence: Sequence, proof: Proof, built: Built, call: Item, used: list[int]
) -> dict[Item, Item]:
    """Return for each value that is read outside what takes its place."""
    steps: dict[int, list[int]] = {}
    for position in used:
        if proof.place(position) not in proof.selects:
            step = (position - proof.start) // proof.period
            steps.setdefault(proof.place(position), []).append(step)
    replaced: dict[Item, Item] = {}
    for place, at in steps.items():
        stacked = at != [proof.count - 1]
        node = built.nodes[place].name
        like = sequence.items[proof.start + proof.period * at[0] + place]
        whole = result_item(call, node, like, proof.count if stacked else None)
        for step in at:
            item = sequence.items[proof.start + proof.period * step + place]
            replaced[item] = _element(whole, step, item) if stacked else whole
    return replaced


def result_item(call: Item, node: str, like: Item, count: int | None) -> Item:
    """Add a result to a loop and return the item that takes it; no ``count``: the last value."""
    loop: TimeLoop = call.target
    loop.results = (*loop.results, Result(node, count is not None))
    meta = _unplaced(like)
    if count is not None:
        meta["shape"] = (count, *meta["shape"])
    item = Item(operator.getitem, (call, len(loop.results) - 1), meta=meta, name=like.name)
    item.is_element = True
    return item


def _element(whole: Item, step: int, like: Item) -> Item:
    item = Item(torch.select, (whole, 0, step), meta=_unplaced(like), name=like.name)
    item.is_element = True
    return item


def _unplaced(like: Item) -> dict[str, Any]:
    return {k: v for k, v in like.meta.items() if k not in ("path", "impure")}


def take_last(program: Program) -> None:
    """Let what reads the last element of a stacked result read the last value instead."""
    replaced: dict[Item, Any] = {}
    last: dict[Item, Item] = {}
    live = live_items(program)
    items: list[Item] = []
    for item in program.items:
        items.append(item)
        found = element(item)
        if item not in live or found is None or found[0].target is not operator.getitem:
            continue
        whole, dim, index = found
        call = whole.args[0]
        length = whole.meta["shape"][0]
        if isinstance(call, Item) and isinstance(call.target, TimeLoop):
            stacked = call.target.results[whole.args[1]]
            if dim == 0 and stacked.stacked and index in (length - 1, -1):
                if whole not in last:
                    last[whole] = result_item(call, stacked.node, item, None)
                    items.append(last[whole])
                replaced[item] = last[whole]
    program.items = items
    replace(program, replaced)


def prune(program: Program) -> None:
    """Drop what nobody reads: items, results of loops, and what only they needed."""
    live = {leaf for leaf in program.outputs if isinstance(leaf, Item)}
    effects = {item for item in program.items if item.impure}
    kept: list[Item] = []
    for item in _last_first(program):
        if item not in live and item not in effects:
            continue
        kept.append(item)
        if isinstance(item.target, TimeLoop):
            readers = [x for x in live if x.target is operator.getitem and x.args[0] is item]
            _prune_loop(item, readers)
        live.update(operands(item))
    program.items = kept[::-1]


def _last_first(program: Program) -> list[Item]:
    """Return the items such that each comes after everything that reads it."""
    order: list[Item] = []
    placed: set[Item] = set()
    for root in [*[x for x in program.items if not is_floating(x)], *program.items]:
        stack = [root]
        while stack:
            item = stack[-1]
            missing = [] if item in placed else [x for x in operands(item) if x not in placed]
            missing = [x for x in missing if x.target is not None]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if item not in placed:
                placed.add(item)
                order.append(item)
    return order[::-1]


def _prune_loop(call: Item, readers: list[Item]) -> None:
    loop: TimeLoop = call.target
    used = sorted({reader.args[1] for reader in readers})
    for reader in readers:
        reader.become(reader.target, (call, used.index(reader.args[1])))
    loop.results = tuple([loop.results[i] for i in used])
    needed = _needed(loop)
    loop.carries = tuple([c for c in loop.carries if c.name in needed])
    loop.steps = tuple([s for s in loop.steps if s.name in needed])
    loop.tables = tuple([t for t in loop.tables if t.name in needed])
    loop.invariants = tuple([i for i in loop.invariants if i.name in needed])
    for node in reversed(list(loop.body.nodes)):
        if node.name not in needed:
            loop.body.erase_node(node)
    _prune_operands(call)


def _needed(loop: TimeLoop) -> set[str]:
    """Return the names of the body nodes that results, effects and needed carries depend on."""
    by_name = {node.name: node for node in loop.body.nodes}
    updates = {c.name: c for c in loop.carries}
    stack = [result.node for result in loop.results]
    stack += [node.name for node in loop.body.nodes if node.meta.get("impure")]
    needed: set[str] = set()
    while stack:
        name = stack.pop()
        if name in needed:
            continue
        needed.add(name)
        stack.extend(node.name for node in by_name[name].all_input_nodes)
        if name in updates:
            carry = updates[name]
            stack.append(carry.update)
            if not isinstance(carry.initial, int) and carry.initial.like is not None:
                stack.append(carry.initial.like)
    return needed


def _prune_operands(call: Item) -> None:
    """Drop the operands that no part of a loop reads any more."""
    loop: TimeLoop = call.target
    used = {s.operand for s in loop.steps} | {i.operand for i in loop.invariants}
    used |= {c.initial for c in loop.carries if isinstance(c.initial, int)}
    if loop.trip.operand is not None:
        used.add(loop.trip.operand)
    order = sorted(used)
    at = {old: new for new, old in enumerate(order)}
    call.become(loop, tuple([call.args[i] for i in order]))
    loop.operands = len(order)
    loop.steps = tuple([dataclasses.replace(s, operand=at[s.operand]) for s in loop.steps])
    loop.invariants = tuple(
        [dataclasses.replace(i, operand=at[i.operand]) for i in loop.invariants]
    )
    loop.carries = tuple(
        [
            dataclasses.replace(c, initial=at[c.initial]) if isinstance(c.initial, int) else c
            for c in loop.carries
        ]
    )
    if loop.trip.operand is not None:
        loop.trip = dataclasses.replace(loop.trip, operand=at[loop.trip.operand])
