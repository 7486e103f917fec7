"""A compiled model as a program of `torch.export`, with the neurons that its operators name.

An archive of torch says which operators a program calls; what the neurons behind them compute lies
beside it, as plain data.  Sizes of inputs are free where the compiled model leaves them free, torch
can record them as symbols, and the program computes what the model does at some other sizes.
"""

from __future__ import annotations

import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import UnsupportedError
from snncc.export.arrays import TEST_VECTOR, UntrustedError, archive, compare, read_arrays
from snncc.export.torch_program.archive import check_archive
from snncc.ir import validate
from snncc.ir.plain import from_plain, to_plain
from snncc.runtime.neuron import find_neuron, key_of
from snncc.runtime.operators import Neuron

_MOST_THREADS = 1 << 12
_FEW = (1, 2, 3)  # sizes that torch, or a model, may treat in another way than others

Reference: TypeAlias = Callable[[tuple[Any, ...]], Sequence[Tensor]]
# For each name of a size, and each leaf of the arguments, the axis that is of this size, or None.
Axes: TypeAlias = Mapping[str, Sequence[int | None]]


def program_files(
    model: torch.nn.Module, reference: Reference, example: tuple[Any, ...], free: Axes, name: str
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the files of a program, and which sizes are free in it.

    Args:
        model: The compiled model, in evaluation mode.
        reference: Returns what the PyTorch model makes of some arguments.
        example: Arguments of it.
        free: The sizes that the compiled model leaves free.
        name: What the files are called.

    Raises:
        UnsupportedError: torch cannot export the model, or exports another one.
    """
    program, names = _program(model, reference, example, free)
    nodes = [n for n in program.graph.nodes if str(n.target).startswith("snncc.neuron_forward")]
    keys = dict.fromkeys(str(node.args[2]) for node in nodes)
    neurons = {key: _described(find_neuron(key)) for key in keys}
    arrays = {f"input_{i}": x for i, x in enumerate(pytree.tree_leaves(example))}
    arrays |= {f"output_{i}": y for i, y in enumerate(reference(example))}
    files = {
        f"{name}.pt2": _archive(program),
        "neurons.json": json.dumps(neurons, indent=1).encode(),
        TEST_VECTOR: archive(arrays),
    }
    return files, names


def _program(
    model: torch.nn.Module, reference: Reference, example: tuple[Any, ...], free: Axes
) -> tuple[Any, tuple[str, ...]]:
    """Return a program with as many free sizes as there can be, and which they are."""
    wishes = [tuple(free), *((name,) for name in free if len(free) > 1), ()]
    for names in wishes:
        chosen = {name: free[name] for name in names}
        try:
            program = _exported(model, example, chosen)
            _read(_archive(program))
        except (UnsupportedError, UntrustedError) as error:
            if not names:
                raise _refused(str(error)) from error
            continue
        if all(_agrees(program, reference, args) for args in trials(example, chosen)):
            return program, names
    raise _refused(
        "what it exports computes something else: the model keeps or draws "
        "values, or a sum in another order moved a spike"
    )


def trials(example: tuple[Any, ...], free: Axes) -> Iterator[tuple[Any, ...]]:
    """Yield an example, and the same in other sizes."""
    yield example
    more = {name: _size(example, axes) + 1 for name, axes in free.items()}
    for few in _FEW if free else ():
        yield resized(example, free, dict.fromkeys(free, few))
    for few in _FEW[:1] if len(free) > 1 else ():
        for name in free:
            yield resized(example, free, more | {name: few})
    if free:
        yield resized(example, free, more)


def resized(example: tuple[Any, ...], free: Axes, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """Return arguments in other sizes: their rows, some of them repeated or left out."""
    leaves, spec = pytree.tree_flatten(example)
    for name, size in sizes.items():
        for i, axis in enumerate(free[name]):
            if axis is not None:
                rows = torch.arange(size) % leaves[i].shape[axis]
                leaves[i] = leaves[i].index_select(axis, rows)
    arguments: tuple[Any, ...] = pytree.tree_unflatten(leaves, spec)
    return arguments


def _size(example: tuple[Any, ...], axes: Sequence[int | None]) -> int:
    pairs = zip(pytree.tree_leaves(example), axes, strict=True)
    return next(int(x.shape[axis]) for x, axis in pairs if axis is not None)


def _agrees(program: Any, reference: Reference, arguments: tuple[Any, ...]) -> bool:
    """Tell whether a program computes what the model does; what either refuses is no difference."""
    try:
        expected = reference(arguments)
        found = _run(program, arguments)
    except Exception:  # the model raises what it likes, and torch
        return True
    return len(found) == len(expected) and all(
        compare("", a.numpy(), b.numpy()).is_ok for a, b in zip(found, expected, strict=True)
    )


class Pinned(torch.nn.Module):
    """A module that is another one, but for what its call runs.

    Args:
        module: The other one.
        call: What is run on the arguments.
        example: Arguments, in containers of any classes; the module takes and returns plain ones.
        free: Sizes of the arguments that are equal in every call.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        call: Callable[..., Any],
        example: tuple[Any, ...],
        free: Axes,
    ) -> None:
        super().__init__()
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[shared] = module.__dict__[shared]
        self.__dict__["_call"], self.__dict__["_free"] = call, free
        self.__dict__["_spec"] = pytree.tree_structure(example)

    def forward(self, *args: Any) -> Any:
        """Run what was chosen; comparing sizes makes them one symbol, where they are symbols."""
        leaves = pytree.tree_leaves(args)
        for axes in self.__dict__["_free"].values():
            pairs = zip(leaves, axes, strict=True)
            first, *others = (x.shape[axis] for x, axis in pairs if axis is not None)
            if any(size != first for size in others):
                raise ValueError("inputs have different numbers of steps, or of samples")
        return plain_nest(
            self.__dict__["_call"](pytree.tree_unflatten(leaves, self.__dict__["_spec"]))
        )


def _described(neuron: Neuron) -> dict[str, Any]:
    """Return a neuron as plain data, after reading it back."""
    plain = {
        "program": to_plain(neuron.program),
        "target": neuron.target,
        "threads": neuron.num_threads,
    }
    try:
        _neuron_of(neuron.key, plain)
    except ValueError as error:
        raise _refused(f"the neuron '{neuron.program.forward.name}': {error}") from error
    return plain


def _neuron_of(key: str, plain: Mapping[str, Any]) -> Neuron:
    """Return the neuron of plain data, known to the operators from now on.

    Raises:
        ValueError: The data is no neuron, or one of another key.
    """
    program, target, threads = from_plain(plain["program"]), plain["target"], plain["threads"]
    if target not in ("auto", "c", "triton", "cuda", "torch"):
        raise ValueError("it has no such target")
    if threads is not None and (type(threads) is not int or not 0 < threads <= _MOST_THREADS):
        raise ValueError("it has no such number of threads")
    validate.validate(program.forward)
    if key_of(program, target, threads, None) != key:
        raise ValueError("it has another key than its operator")
    return Neuron(program, target=target, num_threads=threads)


def _exported(model: torch.nn.Module, example: tuple[Any, ...], free: Axes) -> Any:
    """Return the program, whose sizes of these names are free."""
    leaves, spec = pytree.tree_flatten(example)
    dims: list[dict[int, Any] | None] = [{} if isinstance(x, Tensor) else None for x in leaves]
    for axes in free.values():
        for each, axis in zip(dims, axes, strict=True):
            if each is not None and axis is not None:
                each[axis] = torch.export.Dim.AUTO
    shapes = (plain_nest(pytree.tree_unflatten(dims, spec)),) if free else None
    try:
        with torch.no_grad():
            program = torch.export.export(model, plain_nest(example), dynamic_shapes=shapes)
    except Exception as error:  # torch raises what it likes
        raise _refused(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    if free and not _is_free(program, dims):
        raise _refused("a size that is to be free is none")
    return program


def _is_free(program: Any, dims: Sequence[Mapping[int, Any] | None]) -> bool:
    """Tell whether sizes are free, each on its own: torch checks no bound of several at a call."""
    names = set(program.graph_signature.user_inputs)
    places = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    shapes = [node.meta["val"].shape for node in places if hasattr(node.meta["val"], "shape")]
    wanted = [each for each in dims if each is not None]
    bounds = [g for g in program._guards_code if re.search("[<>]", g) and g.count(".size()") > 1]
    return not bounds and all(
        isinstance(shape[axis], torch.SymInt)
        for shape, each in zip(shapes, wanted, strict=True)
        for axis in each
    )


def _refused(reason: str) -> UnsupportedError:
    return UnsupportedError(
        "The model cannot be exported as a program of torch.",
        code="unsupported.export",
        notes=[reason],
        hints=["Export in evaluation mode, on the CPU, or write that part in another way."],
    )


def _run(program: Any, example: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [y.detach() for y in pytree.tree_leaves(program.module()(*plain_nest(example)))]


def plain_nest(nest: Any) -> Any:
    """Return nested values in plain containers: classes of the user's are known to no reader."""
    if isinstance(nest, tuple):
        return tuple(map(plain_nest, nest))
    if isinstance(nest, dict):
        return {key: plain_nest(value) for key, value in nest.items()}
    return [*map(plain_nest, nest)] if isinstance(nest, list | deque) else nest


def _archive(program: Any) -> bytes:
    """Return a program as an archive without example inputs, which torch would unpickle.

    Raises:
        UnsupportedError: torch cannot write it.
    """
    program._example_inputs = None
    program._guards_code = []
    archive = io.BytesIO()
    try:
        torch.export.save(program, archive)
    except Exception as error:  # torch raises what it likes
        raise _refused(f"torch cannot write it: {error}") from error
    return archive.getvalue()


def _read(data: bytes) -> Any:
    """Return the program of an archive.

    Raises:
        UntrustedError: It is none of ours.
    """
    data = check_archive(data)
    try:
        return torch.export.load(io.BytesIO(data))
    except Exception as error:  # torch raises what it likes
        raise UntrustedError(f"torch cannot read it: {error}") from error


def load_files(folder: Path, name: str) -> Any:
    """Return the program of a folder, whose neurons are known to its operators from now on.

    Raises:
        UntrustedError: It is none of ours.
    """
    try:
        data = (folder / f"{name}.pt2").read_bytes()
        neurons: Mapping[str, Any] = json.loads((folder / "neurons.json").read_text())
        for key, plain in neurons.items():
            _neuron_of(key, plain)
        return _read(data)
    except UntrustedError:
        raise
    except Exception as error:  # torch raises what it likes
        raise UntrustedError(f"it cannot be read: {error}") from error


def replay(folder: Path, name: str) -> tuple[bool, str]:
    """Run the test vector of a program; tell whether its outputs are those of the model.

    Raises:
        UntrustedError: It is none of ours.
    """
    program = load_files(folder, name)
    values = read_arrays(folder / TEST_VECTOR, "fiub")
    try:
        inputs = [torch.from_numpy(x) for key, x in values.items() if key.startswith("input_")]
        args, kwargs = pytree.tree_unflatten(inputs, program.call_spec.in_spec)
        with torch.no_grad():
            found = [y.detach() for y in pytree.tree_leaves(program.module()(*args, **kwargs))]
    except Exception as error:  # torch raises what it likes
        raise UntrustedError(f"its program does not run: {error}") from error
    pairs = {f"output_{i}": y for i, y in enumerate(found)}
    results = [compare(key, y.numpy(), values.get(key)) for key, y in pairs.items()]
    ok = all(result.is_ok for result in results)
    lines = [
        *map(str, results),
        "the program of the model" if ok else "NOT the program of the model",
    ]
    return ok, "\n".join(lines)
