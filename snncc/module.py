"""The compiled model: shares everything with the user's ``nn.Module`` and runs the kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.errors import OptionError, TargetError, UnsupportedError
from snncc.frontend.generalize import same_program
from snncc.frontend.session import is_recording
from snncc.frontend.sources import attribute_signature, gather, holds, write_back
from snncc.options import Options
from snncc.pipeline import Compiled, Recording, build, record
from snncc.report import Plan
from snncc.runtime import memory
from snncc.runtime.stream import Stream
from snncc.short_sequence import record_longer
from snncc.streaming import finish, open_stream

# Recording patches torch for the whole process, so one thread records at a time.
RECORDING = threading.RLock()

Shapes = tuple[tuple[int, ...] | None, ...]


class CompiledModule(nn.Module):
    """A model whose time loops run as fused kernels.

    Parameters and buffers are those of the original model, by reference: optimisers, ``to()``,
    ``state_dict()``, ``train()`` and ``eval()`` act on both.  The model is recorded at the first
    call for each combination of training flags, dtypes, devices and state; sizes along the time
    and batch axes are free once a second recording has proven it.

    ``print(fast)`` shows the plan of each specialisation.
    """

    def __init__(self, model: Callable[..., Any], options: Options) -> None:
        super().__init__()
        self.__dict__["_model"] = model
        self.__dict__["_options"] = options
        self.__dict__["_families"] = {}
        self.__dict__["_streams"] = {}
        if isinstance(model, nn.Module):
            self.__dict__["training"] = model.training
            for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
                self.__dict__[shared] = getattr(model, shared)

    @property
    def original(self) -> Callable[..., Any]:
        """The model that was compiled."""
        model: Callable[..., Any] = self.__dict__["_model"]
        return model

    @property
    def options(self) -> Options:
        """How it is compiled."""
        options: Options = self.__dict__["_options"]
        return options

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each specialisation, in the order in which they were made."""
        families: dict[Any, _Family] = self.__dict__["_families"]
        return tuple(s.compiled.plan for f in families.values() for s in f.members)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; record and compile it first where this is a new specialisation."""
        if is_recording():  # by the compilation of a model around this one
            return self.original(*args, **kwargs)
        compiled = self.specialize(*args, **kwargs)
        tape = compiled.recording.tape
        if self.options.mode == "serial":
            stream = self._stream_of(compiled, args, kwargs)
            outputs = tuple(stream.whole_sequence(args, kwargs))
        else:
            outputs = compiled.run(*gather(tape, self.original, args, kwargs))
        write_back(tape, self.original, outputs, args, kwargs)
        return finish(tape, outputs)

    def stream(self, *args: Any, **kwargs: Any) -> Stream:
        """Return the model as a stream, which takes one time step after another.

        The stream starts from the state that the model starts from, and reads the parameters of
        the model at its start and at each reset.  It never changes the model.

        Args:
            *args: Example arguments, with the time axis; none, where the model was called before.
            **kwargs: Example keyword arguments.

        Raises:
            OptionError: There are no example arguments.
            UnsupportedError: The model relates time steps other than by its states.
        """
        if not args and not kwargs:
            args, kwargs = self._last_arguments()
        with torch.no_grad():
            compiled = self.specialize(*args, **kwargs)
        return open_stream(self.original, compiled, self.options, args, kwargs)

    def _last_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        members = [s for f in self.__dict__["_families"].values() for s in f.members]
        if not members:
            raise OptionError(
                "A stream needs to know the inputs of the model.",
                code="option.stream",
                hints=["Give an example, with the time axis: 'fast.stream(x)'."],
            )
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = members[-1].compiled.recording.arguments
        return arguments

    def _stream_of(
        self, compiled: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Stream:
        streams: dict[int, Stream] = self.__dict__["_streams"]
        if id(compiled) not in streams:
            streams[id(compiled)] = open_stream(self.original, compiled, self.options, args, kwargs)
        return streams[id(compiled)]

    def specialize(self, *args: Any, **kwargs: Any) -> Compiled:
        """Return the program for these arguments, compiling it if there is none."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        _require_cpu(leaves)
        key = (spec, *map(_leaf_key, leaves), _model_key(self.original))
        families: dict[Any, _Family] = self.__dict__["_families"]
        family = families.get(key)
        if family is None:
            family = families.setdefault(key, _Family(self))
        return family.find(_shapes(leaves), args, kwargs)

    def train(self, mode: bool = True) -> CompiledModule:
        """Set the training flag of the model."""
        if isinstance(self.original, nn.Module):
            self.original.train(mode)
        self.__dict__["training"] = mode
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the model, under the model's own names."""
        if isinstance(self.original, nn.Module):
            return self.original.state_dict(*args, **kwargs)
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state of the model."""
        if isinstance(self.original, nn.Module):
            return self.original.load_state_dict(state_dict, *args, **kwargs)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def __repr__(self) -> str:
        name = _name_of(self.original)
        head = f"snncc.compile({name}, mode={self.options.mode!r})"
        plans = self.plans
        if not plans:
            return f"{head}: not recorded yet; call it once"
        return "\n".join([head, *map(str, plans)])


class _Specialization:
    """A compiled program and the input shapes that it serves; None marks a free size."""

    def __init__(self, compiled: Compiled, shapes: Shapes) -> None:
        self.compiled = compiled
        self.shapes: list[list[int | None] | None] = [
            None if shape is None else list(shape) for shape in shapes
        ]
        self.others: set[Shapes] = set()

    def serves(self, shapes: Shapes) -> bool:
        return shapes in self.others or all(
            mine is None
            or theirs is None
            or all(a is None or a == b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self.shapes, shapes, strict=True)
        )

    def free(self, shapes: Shapes) -> None:
        """Free every size in which the new shapes differ from those recorded.

        Where sizes steer the program, only these very shapes are known to be served.
        """
        if self.compiled.recording.tape.is_steered_by_sizes:
            self.others.add(shapes)
            return
        for mine, theirs in zip(self.shapes, shapes, strict=True):
            if mine is not None and theirs is not None:
                mine[:] = [a if a == b else None for a, b in zip(mine, theirs, strict=True)]


class _Family:
    """The specialisations that differ in nothing but sizes."""

    def __init__(self, owner: CompiledModule) -> None:
        self.owner = owner
        self.members: list[_Specialization] = []

    def find(self, shapes: Shapes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compiled:
        """Return the program for these shapes; record again where none is known to serve them."""
        model = self.owner.original
        for member in self.members:
            tape = member.compiled.recording.tape
            if member.serves(shapes) and holds(tape, model, args, kwargs):
                return member.compiled
        with RECORDING, memory.passing():
            recording = record(model, args, kwargs)
            if not recording.rolled.loops:
                recording = record_longer(model, args, kwargs, recording) or recording
        for member in [] if recording.exact else self.members:
            tape = member.compiled.recording.tape
            same = same_program(member.compiled.recording.rolled, recording.rolled)
            if same and holds(tape, model, args, kwargs):
                member.free(shapes)
                return member.compiled
        leaves = gather(recording.tape, model, args, kwargs)
        compiled = build(recording, self.owner.options, leaves, _name_of(model))
        recorded = shapes if recording.exact else _recorded_shapes(recording, shapes)
        member = _Specialization(compiled, recorded)
        member.free(shapes)
        self.members.append(member)
        return compiled


def _require_cpu(leaves: list[Any]) -> None:
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
            raise TargetError(
                f"The input is on '{leaf.device}'; kernels exist for the CPU.",
                code="target.device",
                hints=["Move model and input with '.to(\"cpu\")'."],
            )


def _leaf_key(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return (leaf.dtype, leaf.device, leaf.dim(), leaf.requires_grad)
    try:
        hash(leaf)
    except TypeError:
        return (type(leaf), id(leaf))
    return (type(leaf), leaf)


def _shapes(leaves: list[Any]) -> Shapes:
    return tuple(tuple(x.shape) if isinstance(x, Tensor) else None for x in leaves)


def _recorded_shapes(recording: Recording, shapes: Shapes) -> Shapes:
    """Return the shapes that a recording was made with; they may be longer than what was passed."""
    seen = {s.index: p.meta["shape"] for s, p in _inputs(recording) if s.index is not None}
    return tuple(seen.get(i, shape) for i, shape in enumerate(shapes))


def _inputs(recording: Recording) -> Iterator[tuple[Any, Any]]:
    places = (n for n in recording.tape.graph.nodes if n.op == "placeholder")
    return zip(recording.tape.sources, places, strict=True)


def _model_key(model: Callable[..., Any]) -> Any:
    """Return what a recording depends on besides the arguments."""
    if not isinstance(model, nn.Module):
        return attribute_signature(model)
    return (
        tuple(m.training for m in model.modules()),
        tuple((t.dtype, t.device, t.requires_grad, t.shape) for t in _tensors(model)),
        attribute_signature(model),
    )


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _name_of(model: Callable[..., Any]) -> str:
    name = getattr(model, "__name__", type(model).__name__)
    return str(name)


def compile_model(
    model: Callable[..., Any], options: Options, example_inputs: tuple[Any, ...] | None = None
) -> CompiledModule:
    """Return the compiled model; record it at once where example inputs are given.

    Raises:
        OptionError: The model is not callable, or is compiled already.
        UnsupportedError: The mode does not exist yet.
    """
    if not callable(model) or isinstance(model, CompiledModule):
        what = "compiled already" if callable(model) else "not callable"
        raise OptionError(f"The model is {what}.", code="option.model")
    if options.mode not in ("fused", "auto", "serial"):
        raise UnsupportedError(
            f"Mode '{options.mode}' does not exist yet.",
            code="unsupported.mode",
            hints=["Use mode='fused', which is exact."],
        )
    compiled = CompiledModule(model, options)
    if example_inputs is not None:
        compiled.specialize(*example_inputs)
    return compiled
