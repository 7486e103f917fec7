"""Calls through which values leave torch, and calls that cannot be part of a pure program.

A value that depends on constants alone may leave.  One that depends on inputs, parameters, buffers
or attributes may leave by ``.item()`` or ``.tolist()`` to be printed or collected
(`snncc.frontend.traced`); where it would steer the program or lose its trace, that is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from snncc.errors import CaptureError, UnsupportedError
from snncc.frontend.autograd import hooks
from snncc.frontend.operators.invocation import Call, Invocation
from snncc.frontend.operators.varying import refuse_size
from snncc.frontend.recorder import Handler, Recorder
from snncc.frontend.traced import leaked


def tensors_in(*values: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments, also inside tuples, lists and dicts."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(*value)
        elif isinstance(value, dict):
            yield from tensors_in(*value.values())


def _depends(recorder: Recorder, values: Any) -> bool:
    may_leave = [recorder.may_leave(x) for x in tensors_in(values)]
    return not all(may_leave)


def _leave_as_number(recorder: Recorder, call: Invocation) -> Any:
    """Let numbers leave, tagged where they depend on the model's inputs."""
    if recorder.varying.of(call.args[0]):
        refuse_size(recorder.where)  # the list is as long
    result = call.run()
    if not _depends(recorder, call.args[0]):
        return result
    tagged = _tagged(recorder, result)
    if not isinstance(tagged, list):
        tagged.node = recorder.node(call.args[0])
    return tagged


def _tagged(recorder: Recorder, value: Any) -> Any:
    if isinstance(value, list):
        return [_tagged(recorder, v) for v in value]
    if type(value) is int or type(value) is float:
        return leaked(value, recorder.where)
    return _refuse_branch(recorder)


def _leave_as_condition(recorder: Recorder, call: Invocation) -> Any:
    if _depends(recorder, call.args):
        _refuse_branch(recorder)
    return call.run()


def _refuse_branch(recorder: Recorder) -> NoReturn:
    raise CaptureError(
        "The value of a tensor decides what the program does next.",
        code="capture.tensor-dependent-branch",
        location=recorder.where,
        notes=["snncc compiles code whose control flow does not depend on tensor values."],
        hints=["Select with 'torch.where(condition, a, b)'."],
    )


def _leave_untraced(recorder: Recorder, call: Invocation) -> Any:
    if not _depends(recorder, call.args[0]):
        return call.run()
    spelled = {"__float__": "float(...)", "__int__": "int(...)", "__index__": "an index"}
    raise CaptureError(
        f"The value of a tensor leaves torch by '{spelled.get(call.name, f'.{call.name}()')}'.",
        code="capture.value-left-torch",
        location=recorder.where,
        notes=["What is computed from it outside of torch would be frozen into the program."],
        hints=["Stay in torch; for printing and logging use '.item()'."],
    )


def refuse_training(recorder: Recorder, call: Invocation) -> NoReturn:
    """Raise the error for a gradient or an update inside the model."""
    raise CaptureError(
        "The model computes gradients or updates parameters while it runs.",
        code="capture.backward-inside",
        location=recorder.where,
        notes=["Only the forward computation can be compiled."],
        hints=["Move the backward pass and the optimizer's step out of the compiled function."],
    )


def _refuse_memory(recorder: Recorder, call: Invocation) -> NoReturn:
    owner = getattr(call.function, "__self__", None)
    name = getattr(owner, "__name__", None) or call.name
    raise UnsupportedError(
        f"'{name}' depends on how tensors lie in memory.",
        code="unsupported.memory",
        location=recorder.where,
        hints=["Bind a name to a new tensor, and take parts of tensors by index."],
    )


def _refuse_gradient(recorder: Recorder, call: Invocation) -> Any:
    if call.run() is not None:
        refuse_training(recorder, call)


def refuse_generator(recorder: Recorder) -> NoReturn:
    """Raise the error for random numbers that do not come from torch's own generator."""
    raise UnsupportedError(
        "Random numbers come from a generator of their own.",
        code="unsupported.generator",
        location=recorder.where,
        hints=["Drop 'generator=...' and seed with 'torch.manual_seed'."],
    )


def refuse_unrecorded(recorder: Recorder, what: str) -> NoReturn:
    """Raise the error for an operator that ran without being recorded."""
    raise CaptureError(
        f"{what} ran where it cannot be recorded.",
        code="capture.unrecorded-operator",
        location=recorder.where,
        notes=["Functions of torch.jit.script and of C++ extensions hide what they compute."],
        hints=["Call the Python function itself; for torch.jit, set PYTORCH_JIT=0 before import."],
    )


def versions(args: Any, kwargs: Any) -> tuple[tuple[Tensor, int], ...]:
    """Return the version counters of the tensors among arguments."""
    found = [x for x in tensors_in(args, kwargs) if not x.is_inference()]
    return tuple((x, x._version) for x in found)


def check_versions(
    recorder: Recorder, call: Invocation, before: tuple[tuple[Tensor, int], ...]
) -> None:
    """Refuse an operator that changed one of its arguments without telling."""
    if any(x._version != version for x, version in before):
        recorder.refuse_alias(f"'{call.name}' changes its argument.")


_WITH_EFFECTS = frozenset({F.scaled_dot_product_attention, F.batch_norm, F.instance_norm})


def has_side_effect(recorder: Recorder, call: Call) -> bool:
    """Tell whether a pure spelling updates buffers, and keep what they held before."""
    if call.target not in _WITH_EFFECTS:
        return False
    if call.target is F.scaled_dot_product_attention:
        return bool(call.args[4] if len(call.args) > 4 else call.kwargs.get("dropout_p"))
    buffers, is_active = call.args[1:3], call.args[5]
    if not is_active or buffers[0] is None:
        return False
    for buffer in buffers:
        view = recorder.view(buffer)
        recorder.before_write(view)
        if view.memory.owner is None and not view.memory.is_updated:
            # What the tape takes for another name of a buffer is changed, and the buffer is not.
            recorder.write(view, recorder.emit(torch.clone, (recorder.read(view),), like=view))
            view.memory.is_updated = True
    return True


_LEFT = (
    "numpy", "__array__", "__float__", "__int__", "__index__", "__complex__", "data_ptr",
    "__dlpack__", "__reduce_ex__",
)  # fmt: skip
_CONDITIONS = ("__bool__", "equal", "allclose", "is_nonzero", "__contains__")
_TRAINING = ("backward", "grad", "set:grad")
_MEMORY = (
    "set_", "resize_", "resize_as_", "as_strided", "as_strided_", "set:data", "apply_", "map_",
)  # fmt: skip

HANDLERS: Mapping[str, Handler] = {
    "item": _leave_as_number,
    "tolist": _leave_as_number,
    **dict.fromkeys(_LEFT, _leave_untraced),
    **dict.fromkeys(_CONDITIONS, _leave_as_condition),
    **dict.fromkeys(_TRAINING, refuse_training),
    **dict.fromkeys(_MEMORY, _refuse_memory),
    "register_hook": hooks.refuse_hook,
    "register_post_accumulate_grad_hook": hooks.refuse_hook,
    "get:grad_fn": hooks.history,
    "get:grad": _refuse_gradient,
}

OPTIMIZER_PREFIXES = ("_foreach_", "_fused_")
