"""Names that a compiler of C or C++, or an exported library itself, takes for something else."""

from __future__ import annotations

import re
from typing import Any

_LONGEST = 100  # letters of a library's name: file names, of at most 255, are made of it

# Keywords of C23 and C++20, and macros of the headers that a library includes.
_KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t
    char32_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
    constinit continue decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int long mutable namespace new noexcept not
    not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires
    restrict return short signed sizeof static static_assert static_cast struct switch template
    this thread_local throw true try typedef typeid typename typeof typeof_unqual union unsigned
    using virtual void volatile wchar_t while xor xor_eq
    EOF HUGE_VAL INFINITY NAN NULL errno linux main unix
    """
# What functions with the inputs and outputs of a network as parameters read besides them.
_LOCALS = """
    NULL at before count error given in memcpy memset net out size_t stream total uint32_t weights
    """
_TAKEN = frozenset((_KEYWORDS + _LOCALS).split())
# Macros of a header that are no sizes of inputs and outputs, without what they start with.
_MACROS = re.compile(r"h|weights|steps|state_\w*|n_\w*|\w*_fraction", re.IGNORECASE)


def operator_name(target: Any) -> str:
    """Return what the user calls an operator."""
    name = getattr(target, "__name__", str(target))
    return str(name.removeprefix("go_on_with_"))


def is_library_name(name: object) -> bool:
    """Tell whether the names in a library, and of files, can start with a name."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None
        and len(name) <= _LONGEST
        and name not in _KEYWORDS.split()
    )


def parameter_name(name: str) -> str:
    """Return a name for an input or output, with an underscore if it means something already."""
    is_loop = re.fullmatch(r"[ij]\d*", name) is not None
    is_taken = name in _TAKEN or is_loop or _MACROS.fullmatch(name) is not None
    return f"{name}_" if is_taken else name
