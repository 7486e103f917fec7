"""The compiled model: shares everything with the user's ``nn.Module`` and runs the kernels."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snncc.compilation.pipeline import Compiled
from snncc.compilation.specializations import Specializations
from snncc.errors import FormError, OptionError, UnsupportedError
from snncc.frontend.placement import placed
from snncc.frontend.session import is_recording
from snncc.frontend.state.results import apart, returned, write_back
from snncc.frontend.stepping import OverTime
from snncc.frontend.surroundings import matter_to_programs, plain_surroundings
from snncc.model.given import EXAMPLE, require_model
from snncc.model.streaming import open_stream
from snncc.options import Options
from snncc.passes.dynamic_decay.gates import DecayGates
from snncc.reporting.report import Plan
from snncc.runtime.forms.parallel_reset import Chunks
from snncc.runtime.streams.stream import Stream
from snncc.runtime.tracing import refuse_transforms

# What a compiled module has in common with its model, and what each has for itself.
_SHARED = frozenset({
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
})  # fmt: skip
_OWN = frozenset({*nn.Module().__dict__, "_compiled_call_impl"}) - _SHARED


class CompiledModule(nn.Module):
    """A model whose time loops run as fused kernels.

    Parameters and buffers are those of the original model, by reference: optimisers, ``to()``,
    ``state_dict()``, ``train()`` and ``eval()`` act on both, and so do its other attributes and
    methods: ``fast.reset()``, ``fast.v``.  The model is recorded at the first call for each
    combination of training flags, dtypes, devices and state; sizes along the time and batch axes
    are free once a second recording and short trials have shown it.  ``print(fast)`` shows plans.
    """

    def __init__(
        self, model: Callable[..., Any], options: Options, gates: DecayGates | None = None
    ) -> None:
        super().__init__()
        self.__dict__["_model"] = model
        self.__dict__["_options"] = options
        program = program_of(model, options)
        self.__dict__["_streams"] = {}
        if options.mode == "dynamic_decay" and gates is None:
            gates = DecayGates(options.kernel_size, options.tau)
        self.__dict__["_gates"] = gates
        self.__dict__["_programs"] = Specializations(program, _name_of(model), options, gates)
        if isinstance(model, nn.Module):
            for shared in _SHARED:
                self.__dict__[shared] = getattr(model, shared)
        if gates is not None:
            own = {_free_name(model, "dynamic_decay"): gates}
            self.__dict__["_modules"] = ChainMap(own, self.__dict__["_modules"])

    @property
    def original(self) -> Callable[..., Any]:
        """The model that was compiled."""
        model: Callable[..., Any] = self.__dict__["_model"]
        return model

    @property
    def program(self) -> Callable[..., Any]:
        """The serial code: the model, or the loop over time around a model of one step."""
        return self._specializations.program

    @property
    def _specializations(self) -> Specializations:
        programs: Specializations = self.__dict__["_programs"]
        return programs

    @property
    def options(self) -> Options:
        """How it is compiled."""
        options: Options = self.__dict__["_options"]
        return options

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each specialisation, in the order in which they were made."""
        return tuple(compiled.plan for compiled in self._specializations)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_model" not in self.__dict__:  # while it is copied
                raise
            return getattr(self.original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.original, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.original, name)

    @property
    def sweeps(self) -> dict[str, int]:
        """How many sweeps each neuron took in its last call, in mode ``"fpt"``."""
        layers = (compiled.fixed_points for compiled in self._specializations)
        return {layer.program.forward.name: layer.sweeps for each in layers for layer in each}

    @property
    def chunks(self) -> dict[str, Chunks]:
        """How each neuron was cut into chunks in its last call, in mode ``"parallel_reset"``."""
        layers = (compiled.parallel_resets for compiled in self._specializations)
        found = {layer.program.forward.name: layer.chunks for each in layers for layer in each}
        return {name: chunks for name, chunks in found.items() if chunks is not None}

    @property
    def last_events(self) -> dict[str, Tensor]:
        """What happened in the last call in mode ``"async"``, for each sample: spikes and so on."""
        ran: Compiled | None = self.__dict__.get("_ran")
        return {} if ran is None else {k: x for n in ran.event_networks for k, x in n.seen.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; record and compile it first where this is a new specialisation."""
        if is_recording():  # by the compilation of a model around this one
            if self._own_gates is not None:
                raise _substituted_inside()
            return self.program(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            return _call_uncompiled(self, args, kwargs)
        return self.run(self.specialize(*args, **kwargs), args, kwargs)

    def run(self, compiled: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a program that serves these arguments."""
        tape, self.__dict__["_ran"] = compiled.recording.tape, compiled
        values = self._specializations.gather(compiled, args, kwargs)
        if self.options.mode == "serial":
            outputs = tuple(self._stream_of(compiled, args, kwargs).whole_sequence(args, kwargs))
        elif matter_to_programs():
            with plain_surroundings():
                outputs = compiled.run(*apart(tape, values))
        else:
            outputs = compiled.run(*apart(tape, values))
        outputs = placed(tape, values, outputs)
        result = returned(tape, self.program, outputs, args, kwargs)
        write_back(tape, self.program, outputs, args, kwargs)
        return result

    def stream(self, *args: Any, **kwargs: Any) -> Stream:
        """Return the model as a stream, which takes one time step after another.

        The stream starts from the state that the model starts from, and reads the parameters of
        the model at its start and at each reset.  It never changes the model, but that in mode
        ``"online"`` steps have gradients, each of its own, and update running statistics.

        Args:
            *args: Example arguments, with the time axis; none, where the model was called before.
            **kwargs: Example keyword arguments.

        Raises:
            OptionError: There are no example arguments.
            UnsupportedError: The model relates time steps other than by its states.
        """
        if not args and not kwargs:
            args, kwargs = self._last_arguments()
        _require_no_autocast()
        with torch.no_grad():
            compiled = self.specialize(*args, **kwargs)
        try:
            return self._open(compiled, args, kwargs)
        except UnsupportedError as refusal:
            compiled = self._specializations.for_values(compiled, args, kwargs, refusal)
        return self._open(compiled, args, kwargs)

    def _open(self, compiled: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        with plain_surroundings():
            return open_stream(self.program, compiled, self.options, args, kwargs)

    def _last_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        made = list(self._specializations)
        if not made:
            raise OptionError(
                "A stream needs to know the inputs of the model.",
                code="option.stream",
                hints=["Give an example, with the time axis: 'fast.stream(x)'."],
            )
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = made[-1].recording.arguments
        return arguments

    def _stream_of(
        self, compiled: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Stream:
        _require_no_autocast()
        streams: dict[int, Stream] = self.__dict__["_streams"]
        if id(compiled) not in streams:
            streams[id(compiled)] = self._open(compiled, args, kwargs)
        return streams[id(compiled)]

    def specialize(self, *args: Any, **kwargs: Any) -> Compiled:
        """Return the program for these arguments, compiling it if there is none."""
        refuse_transforms((args, kwargs))
        if isinstance(self.program, OverTime):
            self.program.length(args[0] if args else None)
        return self._specializations.find(args, kwargs, training=self.training)

    def without_norms(self, compiled: Compiled, leaves: Sequence[Tensor]) -> Compiled:
        """Return a program as it is exported: its norms in evaluation mode folded.

        Args:
            compiled: The program.
            leaves: The tensors that it reads.

        Raises:
            UnsupportedError: A norm takes the statistics of its batch.
        """
        return self._specializations.without_norms(compiled, leaves)

    def train(self, mode: bool = True) -> CompiledModule:
        """Set the training flag of the model."""
        if isinstance(self.original, nn.Module):
            self.original.train(mode)
        self.training = mode
        return self

    @property
    def training(self) -> bool:
        """Whether the model is in training mode; a function is as the compiled module was told."""
        return bool(self._flagged["training"])

    @training.setter
    def training(self, mode: bool) -> None:
        self._flagged["training"] = mode

    @property
    def _flagged(self) -> dict[str, Any]:
        model = self.__dict__.get("_model")
        return (model if isinstance(model, nn.Module) else self).__dict__

    @property
    def _own_gates(self) -> DecayGates | None:
        """The parameters of substituted neurons, where there are such neurons."""
        gates: DecayGates | None = self.__dict__["_gates"]
        return gates

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules of the model, and those that substituted neurons brought with them.

        Raises:
            OptionError: The neurons are not known before the first call.
        """
        self._require_gates()
        modules: Iterator[tuple[str, nn.Module]] = super().named_modules(*args, **kwargs)
        return modules

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the model under the model's own names, and that of its gates."""
        self._require_gates()
        if not isinstance(self.original, nn.Module):
            return super().state_dict(*args, **kwargs)
        state = self.original.state_dict(*args, **kwargs)
        for name, gates in self._own_modules.items():
            prefix = f"{kwargs.get('prefix', '')}{name}."
            gates.state_dict(**{**kwargs, "destination": state, "prefix": prefix})
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state of the model, and of its gates."""
        self._require_gates()
        if not isinstance(self.original, nn.Module):
            return super().load_state_dict(state_dict, *args, **kwargs)
        rest, problems = dict(state_dict), []
        for name, gates in self._own_modules.items():
            start = f"{name}."
            own = {k: rest.pop(k) for k in state_dict if k.startswith(start)}
            found = gates.load_state_dict(
                {k.removeprefix(start): value for k, value in own.items()}, *args, **kwargs
            )
            problems += [[f"{start}{key}" for key in keys] for keys in found]
        result = self.original.load_state_dict(rest, *args, **kwargs)
        for known, more in zip(result, problems, strict=False):
            known.extend(more)
        return result

    @property
    def _own_modules(self) -> dict[str, nn.Module]:
        """What this module has and the model has not."""
        modules: Any = self.__dict__["_modules"]
        return dict(modules.maps[0]) if isinstance(modules, ChainMap) else {}

    def _require_gates(self) -> None:
        gates = self._own_gates
        if gates is not None and not len(gates):
            raise OptionError(
                "The parameters of a model with dynamic decays are known after its first call.",
                code="option.parameters",
                notes=["Each neuron brings parameters of its own, one gate for each channel."],
                hints=["Pass 'example_inputs' to 'snncc.compile', or call the model once."],
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles are of the model; they compile anew, kernels come from the cache.
        gates = self._own_gates
        return CompiledModule, (self.original, self.options, *(() if gates is None else (gates,)))

    def __repr__(self) -> str:
        name = _name_of(self.original)
        head = f"snncc.compile({name}, mode={self.options.mode!r})"
        plans = self.plans
        if not plans:
            return f"{head}: not recorded yet; call it once"
        return "\n".join([head, *map(str, plans)])


def _require_no_autocast() -> None:
    if torch._C._is_any_autocast_enabled():
        raise UnsupportedError(
            "A stream is opened under automatic mixed precision.",
            code="unsupported.autocast",
            notes=["A step of it may be taken where autocast is off."],
            hints=["Leave 'torch.autocast' around it, or cast inputs and parameters yourself."],
        )


# Dynamo cannot see on what a specialisation depends, so the call is no part of its graph.
_call_uncompiled: Any = torch.compiler.disable(  # type: ignore[no-untyped-call]
    lambda fast, args, kwargs: fast.forward(*args, **kwargs),
    reason="a model compiled by snncc; torch.export takes it with strict=False",
)


def _free_name(model: Callable[..., Any], name: str) -> str:
    """Return a name that no attribute of the model has."""
    while hasattr(model, name):
        name += "_"
    return name


def _substituted_inside() -> FormError:
    return FormError(
        "A model with dynamic decays is part of a model that is compiled.",
        code="form.dynamic-decay",
        notes=["What would be recorded is the original with its own neurons."],
        hints=["Compile the model around it with mode='dynamic_decay', or leave it uncompiled."],
    )


def _name_of(model: Callable[..., Any]) -> str:
    name = getattr(model, "__name__", type(model).__name__)
    return str(name)


def program_of(model: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """Return the serial code over a whole sequence that a model stands for."""
    return OverTime(model, options.time_dim) if options.step else model


def compile_model(
    model: Callable[..., Any], options: Options, example_inputs: tuple[Any, ...] | None = None
) -> CompiledModule:
    """Return the compiled model; record it at once where example inputs are given.

    Raises:
        OptionError: The model is not callable, or is compiled already.
    """
    if isinstance(model, CompiledModule):
        raise OptionError(
            "The model is compiled already.",
            code="option.model",
            hints=["Pass the serial model: 'fast.original'."],
        )
    require_model(model)
    compiled = CompiledModule(model, options)
    if example_inputs is not None:
        compiled.specialize(*EXAMPLE.arguments(example_inputs))
    return compiled
