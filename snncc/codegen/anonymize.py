"""Take the user's names out of a kernel, so that layers which differ in nothing else share one.

A deep network has many layers of the same neuron.  Their kernels compute the same under other
names, and the C compiler would take the same time for each.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

from snncc.codegen.kernel_ir import Kernel, Step, Sweep
from snncc.ir.nodes import Let


def anonymize(kernel: Kernel) -> Kernel:
    """Return the kernel with numbers for names, in order of their first appearance."""
    names: dict[str, str] = {}
    anonymous: Kernel = _renamed(replace(kernel, name="kernel", comment=""), names)
    return anonymous


def _renamed(node: Any, names: dict[str, str]) -> Any:
    """Rename everything inside a node: all strings but those in `_kept` are names."""
    if isinstance(node, Enum):
        return node
    if isinstance(node, str):
        return names.setdefault(node, f"x{len(names)}")
    if isinstance(node, tuple):
        return tuple([_renamed(part, names) for part in node])
    if not is_dataclass(node) or isinstance(node, type):
        return node
    kept = _kept(node)
    parts = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in kept}
    result = replace(node, **kept, **{key: _renamed(part, names) for key, part in parts.items()})
    if isinstance(node, Step):  # a set has no first name: all that matter have one by now
        bools = frozenset(names[name] for name in node.bools if name in names)
        return replace(result, bools=bools)
    return result


def _kept(node: Any) -> dict[str, Any]:
    """Return the fields of a node that are no names."""
    match node:
        case Kernel():
            return {"name": node.name, "comment": node.comment}
        case Sweep():
            return {"name": node.name}
        case Step():
            return {"bools": frozenset()}
        case Let():
            return {"where": None}
        case _:
            return {}
