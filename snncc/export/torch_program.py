"""A compiled model as a program of `torch.export`, with the neurons that its operators name.

An archive of torch says which operators a program calls; what the neurons behind them compute lies
beside it, as plain data.  The loader of torch trusts its archives: it unpickles tensors that are
marked so, constants and example inputs, evaluates expressions of sizes and guards, and writes names
into code.  What is written here has no such tensors and expressions, and its names are names; an
archive that is otherwise is refused before torch sees it.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snncc.errors import UnsupportedError
from snncc.export.arrays import TEST_VECTOR, UntrustedError, archive, compare, read_arrays
from snncc.ir import validate
from snncc.ir.plain import from_plain, to_plain
from snncc.runtime.neuron import find_neuron, key_of
from snncc.runtime.operators import Neuron

_OPERATOR = "torch.ops.snncc.neuron_forward.default"
# Whole names of what a program may call; parts of an archive that it may have.
_TARGETS = re.compile(rf"torch\.ops\.aten\.\w+\.\w+|{re.escape(_OPERATOR)}|_operator\.getitem")
_PARTS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|archive_format|archive_version"
    r"|\.data/version|\.data/serialization_id|\.format_version|\.storage_alignment|byteorder|version"
)
# Operators of no use to a network: they open files, or trust the indices that they are given.
_REFUSED = re.compile(r"torch\.ops\.aten\.(from_file|_unsafe\w*)\.\w+")
_MOST_THREADS = 1 << 12
# Names in the code that torch writes of a program; all other texts of an archive; containers.
_NAME = re.compile(r"[^\W\d]\w*")
_WORD = re.compile(r"[\w.+-]*")
_NESTED = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def program_files(
    model: torch.nn.Module, example: tuple[Any, ...], outputs: Sequence[Tensor], name: str
) -> dict[str, bytes]:
    """Return the files of a program.

    Args:
        model: The compiled model, in evaluation mode.
        example: Its arguments.
        outputs: What the PyTorch model returns for them.
        name: What the files are called.

    Raises:
        UnsupportedError: torch cannot export the model, or exports another one.
    """
    program = _exported(model, example)
    pairs = zip(_run(program, example), outputs, strict=True)
    if not all(compare("", a.numpy(), b.detach().numpy()).is_ok for a, b in pairs):
        raise _refused(
            "what it exports computes something else: the model keeps or draws "
            "values, or a sum in another order moved a spike"
        )
    nodes = [n for n in program.graph.nodes if str(n.target).startswith("snncc.neuron_forward")]
    keys = dict.fromkeys(str(node.args[2]) for node in nodes)
    neurons = {key: _described(find_neuron(key)) for key in keys}
    arrays = {f"input_{i}": x for i, x in enumerate(pytree.tree_leaves(example))}
    arrays |= {f"output_{i}": y for i, y in enumerate(outputs)}
    files = {
        f"{name}.pt2": _archive(program),
        "neurons.json": json.dumps(neurons, indent=1).encode(),
        TEST_VECTOR: archive(arrays),
    }
    try:
        check_archive(files[f"{name}.pt2"])
    except UntrustedError as error:
        raise _refused(str(error)) from error
    return files


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


def _exported(model: torch.nn.Module, example: tuple[Any, ...]) -> Any:
    try:
        with torch.no_grad():
            return torch.export.export(model, example)
    except Exception as error:  # torch raises what it likes
        raise _refused(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def _refused(reason: str) -> UnsupportedError:
    return UnsupportedError(
        "The model cannot be exported as a program of torch.",
        code="unsupported.export",
        notes=[reason],
        hints=["Export a model without state between calls, in evaluation mode, on the CPU."],
    )


def _run(program: Any, example: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(program.module()(*example))


def _archive(program: Any) -> bytes:
    """Return a program as an archive without example inputs, which torch would unpickle."""
    program._example_inputs = None
    program._guards_code = []
    archive = io.BytesIO()
    torch.export.save(program, archive)
    return archive.getvalue()


def check_archive(data: bytes) -> bytes:
    """Check that reading an archive neither unpickles nor evaluates anything.

    Returns:
        An archive of the parts that were checked, so that no other reader can find others in it.

    Raises:
        UntrustedError: It would, or its program calls something unknown.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            contents = {entry.filename: archive.read(entry) for entry in entries}
        for name, content in contents.items():
            if name.endswith(".json"):
                contents[name] = _checked_part(name.partition("/")[2], content.decode()).encode()
    except (
        zipfile.BadZipFile,
        LookupError,
        TypeError,
        ValueError,
        EOFError,
        RuntimeError,
    ) as error:
        raise UntrustedError(f"its archive cannot be read: {error}") from error
    checked = io.BytesIO()
    with zipfile.ZipFile(checked, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return checked.getvalue()


def _check_entries(entries: Sequence[zipfile.ZipInfo]) -> None:
    """Check what parts an archive has, before any is read."""
    parts = {entry.filename.partition("/")[2]: entry for entry in entries}
    unknown = [part for part in parts if _PARTS.fullmatch(part) is None]
    if unknown or len(parts) < len(entries):
        raise UntrustedError(f"its archive holds '{(unknown or ['a name twice'])[0]}'")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UntrustedError("its archive is compressed")
    if parts["data/sample_inputs/model.pt"].file_size:
        raise UntrustedError("its archive holds pickled example inputs")


def _checked_part(part: str, text: str) -> str:
    """Check a part of an archive that says what is to be read and run; return what torch may read.

    Raises:
        UntrustedError: It would have torch unpickle or evaluate something.
        ValueError: It is no JSON.
    """
    data = json.loads(text)
    for key, value in list(_pairs(data)):
        if key == "metadata" and isinstance(value, dict):
            value.clear()  # where the author wrote what: names and texts of any kind
    for key, value in _pairs(data):
        if key == "use_pickle" and value is not False:
            raise UntrustedError(f"'{part}' asks for unpickling")
        if key in ("expr_str", "as_expr") or (key == "guards_code" and value):
            raise UntrustedError(f"'{part}' holds an expression that is evaluated")
        if key == "target" and (not _TARGETS.fullmatch(str(value)) or _REFUSED.match(str(value))):
            raise UntrustedError(f"its program calls '{str(value)[:80]}'")
        if key in ("in_spec", "out_spec") and value:
            _check_spec(key, value)
        elif key not in ("as_string", "as_strings"):
            _check_words(key, value)
    return json.dumps(data)


def _check_words(key: str, value: Any) -> None:
    """Check the texts of a pair: torch writes names into code, which it runs."""
    texts = [text for text in (*_items(value), key) if isinstance(text, str)]
    is_name = key in ("name", "forward_arg_names")
    wrong = [t for t in texts if (_NAME if is_name else _WORD).fullmatch(t) is None]
    if wrong:
        raise UntrustedError(f"its program has a name {wrong[0][:80]!a}")


def _check_spec(key: str, text: str) -> None:
    """Check what arguments or results are nested in; torch writes keywords into code."""
    pairs = list(_pairs(json.loads(text)))
    unknown = [v for k, v in pairs if k == "type" and v not in _NESTED]
    if unknown:
        raise UntrustedError(f"its program has arguments in a {str(unknown[0])[:80]!a}")
    contexts = [json.loads(v) for k, v in pairs if k == "context" and isinstance(v, str)]
    for context in contexts if key == "in_spec" else ():
        _check_words("name", context)


def _items(value: Any) -> list[Any]:
    """Return the items of a list, or the value alone."""
    return value if isinstance(value, list) else [value]


def _pairs(value: Any) -> Any:
    """Yield all keys of nested data with their values."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _pairs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _pairs(item)


def load_files(folder: Path, name: str) -> Any:
    """Return the program of a folder, whose neurons are known to its operators from now on.

    Raises:
        UntrustedError: It is none of ours.
    """
    try:
        data = check_archive((folder / f"{name}.pt2").read_bytes())
        neurons: Mapping[str, Any] = json.loads((folder / "neurons.json").read_text())
        for key, plain in neurons.items():
            _neuron_of(key, plain)
        return torch.export.load(io.BytesIO(data))
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
            found = pytree.tree_leaves(program.module()(*args, **kwargs))
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
