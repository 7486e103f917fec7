"""Check an archive of a program of torch before torch reads it.

The loader of torch trusts its archives: it unpickles tensors that are marked so, constants and
example inputs, evaluates expressions of sizes and of guards, and writes names into code.  An
archive that holds more than sums and products of sizes, and names that are names, is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from typing import Any

from snncc.export.arrays import UntrustedError

# Whole names of what a program may call; parts of an archive that it may have.
_TARGETS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.ops\.snncc\.neuron_forward\.default"
    r"|_operator\.(getitem|add|sub|mul|floordiv)"
)
_PARTS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|archive_format|archive_version"
    r"|\.data/version|\.data/serialization_id|\.format_version|\.storage_alignment|byteorder|version"
)
# Operators of no use to a network: they open files, or trust the indices that they are given.
_REFUSED = re.compile(r"torch\.ops\.aten\.(from_file|_unsafe\w*)\.\w+")
# Names in the code that torch writes of a program; all other texts of an archive; containers.
_NAME = re.compile(r"[^\W\d]\w*")
_WORD = re.compile(r"[\w.+-]*")
_NESTED = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
# A size that may differ from call to call, as torch spells it, and what may be computed of sizes.
_SYMBOL = r"Symbol\('s\d{1,9}', positive=True, integer=True\)"
_SIZE = re.compile(rf"Pow\({_SYMBOL}, Integer\([2-4]\)\)|{_SYMBOL}|Integer\(-?\d{{1,18}}\)")
_COMPUTED = re.compile(r"(Add|Mul|FloorDiv)\(#(, #)*\)")
_LONGEST_SIZE = 2000


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
        if (key == "expr_str" and not is_size(value)) or (key == "guards_code" and value):
            raise UntrustedError(f"'{part}' holds an expression that is evaluated")
        if key == "target" and (not _TARGETS.fullmatch(str(value)) or _REFUSED.match(str(value))):
            raise UntrustedError(f"its program calls '{str(value)[:80]}'")
        if key in ("in_spec", "out_spec") and value:
            _check_spec(key, value)
        elif key not in ("as_string", "as_strings", "expr_str"):
            _check_words(key, value)
    return json.dumps(data)


def is_size(text: object) -> bool:
    """Tell whether a text is made of sums, products and quotients of sizes, and of nothing else."""
    if not isinstance(text, str) or len(text) > _LONGEST_SIZE or "#" in text:
        return False
    before, text = text, _SIZE.sub("#", text)
    while text != before:
        before, text = text, _COMPUTED.sub("#", text)
    return text == "#"


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
