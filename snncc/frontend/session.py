"""One recording under way: the modes that see the user's torch calls.

Two nets catch what the user's code does.  A ``TorchFunctionMode`` sees every call of torch's Python
interface and hands it to the recorder.  A ``TorchDispatchMode`` sees what reaches torch's
dispatcher in any other way: scripted functions, extensions, legacy constructors.  While a recorded
call runs, both are off.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from snncc.errors import SnnccError, UnsupportedError
from snncc.frontend import calls, departures
from snncc.frontend.functionalize import Edge
from snncc.frontend.location import CallSites
from snncc.frontend.operators import factories
from snncc.frontend.operators.invocation import Invocation
from snncc.frontend.precision import Casts, Precision, apply_casts, types_of, without_autocast
from snncc.frontend.recorder import Recorder

_DISPATCH_KEYS = DispatchKeySet(DispatchKey.Python) | DispatchKeySet(DispatchKey.PythonTLSSnapshot)


class _Quiet:
    __slots__ = ("_functions", "_operators")
    _functions: Any  # untyped in torch
    _operators: Any

    def __enter__(self) -> None:
        self._functions = torch._C.DisableTorchFunction()
        self._operators = torch._C._ExcludeDispatchKeyGuard(_DISPATCH_KEYS)
        self._functions.__enter__()
        self._operators.__enter__()

    def __exit__(self, *failure: object) -> None:
        self._operators.__exit__(*failure)
        self._functions.__exit__(*failure)


def quiet() -> AbstractContextManager[None]:
    """Run torch calls that are the compiler's own, unseen by the modes."""
    return _Quiet()


class Session:
    """A recording under way.

    Attributes:
        sites: Reads call paths.
        recorder: The recorder of the function that runs now: the model, or a custom gradient.
        grad: Whether the user's code has gradients switched on.  Autograd itself switches them off
            around the forward of a Function, which is not seen here.
        functions: The subclasses of torch.autograd.Function that were called.
        failure: The first refusal, kept because the user's code or torch may catch it.
    """

    def __init__(self, sites: CallSites) -> None:
        self.sites = sites
        self.recorder: Recorder
        self.grad = True
        self.failure: SnnccError | None = None
        self.functions: set[type] = set()
        self._thread = threading.get_ident()
        self._is_inside = False
        self._precision = Precision()
        # Tensors that came into being without a call of torch's Python interface, by id.
        self._made: dict[int, weakref.ref[Tensor]] = {}

    @property
    def is_listening(self) -> bool:
        """Whether the user's code runs, and not a torch call that is recorded as one."""
        return threading.get_ident() == self._thread and not self._is_inside

    def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one torch call of the user and record it."""
        if threading.get_ident() != self._thread:
            return function(*args, **kwargs)
        recorder = self.recorder
        recorder.start_call(sys._getframe(2))
        self._is_inside = True
        call = Invocation(function, args, kwargs)
        try:
            casts = self._casts(call) if torch._C._is_any_autocast_enabled() else None
            with torch._C._ExcludeDispatchKeyGuard(_DISPATCH_KEYS):
                if casts is None:
                    result = calls.handle(recorder, call)
                else:
                    result = self._call_with(casts, call)
            if function is torch._C._set_grad_enabled:
                self.grad = torch.is_grad_enabled()
            return result
        except SnnccError as error:
            self.failure = self.failure or error
            raise
        finally:
            recorder.start_call()  # a frame keeps what its variables hold
            self._is_inside = False

    def _casts(self, call: Invocation) -> Casts | None:
        """Return the casts that autocast inserts into a call."""
        if not any(isinstance(x, Tensor) for x in pytree.tree_leaves((call.args, call.kwargs))):
            return None
        try:
            return self._precision.casts(call)
        except Exception as error:
            raise self._under_autocast(call, f"{type(error).__name__}: {error}") from error

    def _call_with(self, casts: Casts, call: Invocation) -> Any:
        """Record casts and then a call without autocast."""
        changes = call.kwargs.get("out") is not None or call.name.endswith("_")
        if changes and any(casts.types):
            raise self._under_autocast(call, "it writes into a tensor")
        with without_autocast():
            result = calls.handle(self.recorder, apply_casts(call, casts, self._cast))
        if types_of(result) != casts.results:
            raise self._under_autocast(call, f"its result is {types_of(result)} without autocast")
        return result

    def _cast(self, x: Tensor, dtype: torch.dtype) -> Any:
        return calls.handle(self.recorder, Invocation(torch.Tensor.to, (x, dtype), {}))

    def _under_autocast(self, call: Invocation, reason: str) -> UnsupportedError:
        return UnsupportedError(
            f"What automatic mixed precision makes of '{call.name}' is not known.",
            code="unsupported.autocast",
            location=self.recorder.where,
            notes=[reason.splitlines()[0]],
            hints=["Switch it off around this line: 'with torch.autocast(..., enabled=False)'."],
        )

    def dispatch(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Judge an operator that ran without a call of torch's Python interface."""
        recorder = self.recorder
        recorder.start_call()
        operands = [x for x in departures.tensors_in(args, kwargs) if id(x) not in self._made]
        fresh = function.overloadpacket._qualified_op_name == "aten::lift_fresh"
        if operands and not fresh:
            if function.overloadpacket._qualified_op_name != "aten::detach":
                departures.refuse_unrecorded(recorder, f"Operator '{function}'")
            result = function(*args, **kwargs)
            parent = recorder.view(args[0])
            recorder.bind(result, recorder.child(parent, Edge(torch.detach), result))
            return result
        result = function(*args, **kwargs)
        if isinstance(result, Tensor):
            self._adopt(result, is_empty="empty" in function.overloadpacket._qualified_op_name)
        return result

    def _adopt(self, tensor: Tensor, *, is_empty: bool) -> None:
        """Bind a tensor that was made by a legacy constructor or from the data of numpy."""
        key, made = id(tensor), self._made
        made[key] = weakref.ref(tensor, lambda _: made.pop(key, None))
        if is_empty:
            factories.bind_fill(self.recorder, tensor, 0)
        else:
            factories.bind_data(self.recorder, tensor)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the torch calls of the user's code that runs in this context."""
        with _Watch(self), _Record(self):
            yield

    @contextmanager
    def recording(self, recorder: Recorder) -> Iterator[None]:
        """Record into another recorder for a while."""
        outer, grad = self.recorder, self.grad
        self.recorder, self.grad = recorder, False
        try:
            yield
        finally:
            self.recorder, self.grad = outer, grad


def is_recording() -> bool:
    """Tell whether the code that runs is being recorded in this thread."""
    if not torch._C._len_torch_function_stack():
        return False
    stack: Any = _get_current_function_mode_stack  # untyped in torch
    return any(isinstance(mode, _Record) for mode in stack())


class _Record(TorchFunctionMode):
    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.session.call(func, args, kwargs or {})


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, session: Session) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.session = session

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        try:
            with quiet():
                return self.session.dispatch(func, args, kwargs or {})
        except SnnccError as error:
            self.session.failure = self.session.failure or error
            raise
