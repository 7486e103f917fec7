"""The user's choices: compile options, and settings of the process environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from snncc.arguments import Check, shown
from snncc.errors import OptionError

Mode: TypeAlias = Literal[
    "fused",
    "scan",
    "parallel_reset",
    "fpt",
    "dynamic_decay",
    "serial",
    "online",
    "async",
    "auto",
]
TargetName: TypeAlias = Literal["auto", "c", "triton", "cuda", "torch"]
Fallback: TypeAlias = Literal["error", "serial"]
StorageChoice: TypeAlias = Literal["auto", "recompute", "save"]
KeptSpikes: TypeAlias = Literal["auto", "bits", "values"]
Spikes: TypeAlias = Literal["threshold", "bernoulli"]
SpikeOrder: TypeAlias = Literal["momentum", "random"]

# A number of sweeps is a chain of as many neurons in one kernel, which takes seconds to build.
MOST_SWEEPS = 64
MOST_THREADS = 4096
MOST_STEPS = 2**31 - 1
MOST_AXES = 63  # of a tensor

# Languages whose kernels run on GPUs.
GPU_TARGETS = frozenset({"triton", "cuda"})


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is compiled.

    Attributes:
        mode: How the time axis is executed.
        target: The language of the kernels; ``"auto"`` is C on the CPU and Triton on a GPU,
            ``"cuda"`` is CUDA C++, and ``"torch"`` is the reference interpreter.
        fallback: What happens to code that cannot be compiled: an error, or it runs serially.
        storage: Whether backward recomputes what it needs in cache, or forward saves it.
        keep_spikes: How linear layers and convolutions keep spikes for the gradients of their
            weights: a bit for each, or as values; ``"auto"`` is bits on the CPU.
        skip_zeros: Whether convolutions on the CPU may skip the zeros of spikes; they then add in
            another order.
        fold_norms: Whether batch norms in evaluation mode are folded into weights; they then
            round in another way.
        num_threads: Threads of a CPU kernel; None means ``torch.get_num_threads()`` at each call.
        step: Whether the model is one time step, and the sequence of its calls is compiled.
        time_dim: The time axis of the sequences that a model of one step is called with.
        sweeps: In mode ``"fpt"`` how many sweeps, or ``"exact"``: until no spike changes.
        schedule: With a number of sweeps, the steepness of each sweep's sigmoid; None keeps the
            threshold and the user's surrogate.
        backward_scale: Steepness of the derivative of those sigmoids, over that of the sigmoids.
        spikes: With a schedule, whether the spikes of the last sweep are where the threshold is
            reached, or, in training mode, are drawn from its sigmoid.
        chunk: In modes ``"scan"`` and ``"parallel_reset"`` the steps of a chunk; None chooses for
            each call, by its sizes.  In mode ``"dynamic_decay"`` a number asks for chunks.
        kernel_size: In mode ``"dynamic_decay"`` how many inputs, the present one included, the
            decay depends on.
        tau: In mode ``"dynamic_decay"`` the exponent ``1 / tau`` of the decay's sigmoid.
        order: In mode ``"async"`` which queued spikes are processed first: those of neurons of the
            highest potential, or any.
        group_size: In mode ``"async"`` how many neurons deliver their spikes at a time.
        order_noise: In mode ``"async"`` the scale of random numbers in [0, 1) that are added to
            potentials where these decide the order.
        refractory_dropout: In mode ``"async"``, in training, the chance that a neuron that fires
            may fire again in the same time step.
        prioritize_input: In mode ``"async"`` whether the input of a time step arrives at once,
            before all spikes; else its values are queued like spikes.
        stop: In mode ``"async"`` what ends a time step: ``"quiet"``, when no spike is queued, or
            how many more groups are processed after the first with a spike of an output.
    """

    mode: Mode = "fused"
    target: TargetName = "auto"
    fallback: Fallback = "error"
    storage: StorageChoice = "auto"
    keep_spikes: KeptSpikes = "auto"
    skip_zeros: bool = True
    fold_norms: bool = False
    num_threads: int | None = None
    step: bool = False
    time_dim: int = 0
    sweeps: int | Literal["exact"] = "exact"
    schedule: tuple[float, ...] | None = (2.0, 6.0, 12.0)
    backward_scale: float = 1.0 / 3.0
    spikes: Spikes = "threshold"
    chunk: int | None = None
    kernel_size: int = 4
    tau: float = 0.25
    order: SpikeOrder = "momentum"
    group_size: int = 8
    order_noise: float = 0.0
    refractory_dropout: float = 0.0
    prioritize_input: bool = True
    stop: int | Literal["quiet"] = "quiet"

    @classmethod
    def of(cls, choices: Mapping[str, object]) -> Options:
        """Return options by name.

        Raises:
            OptionError: There is no option of that name, or it has no such value.
        """
        if not isinstance(choices, Mapping):
            raise _CHOICES.refused(choices, "a dict of options")
        known = [field.name for field in fields(cls)]
        for name in choices:
            if name not in known:
                raise OptionError(
                    f"There is no option {shown(name)}.",
                    code="option.unknown",
                    hints=[f"The options are {', '.join(repr(k) for k in known)}."],
                )
        return cls(**choices)  # type: ignore[arg-type]

    def layered(self) -> Options:
        """Return the options of the same model without a queue of spikes."""
        own = {field.name: field.default for field in fields(self) if field.name in _OF_EVENTS}
        return replace(self, **{"mode": "fused", **own})  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        checked = {
            "mode": _choice("mode", self.mode, get_args(Mode)),
            "target": _choice("target", self.target, get_args(TargetName)),
            "fallback": _choice("fallback", self.fallback, get_args(Fallback)),
            "storage": _choice("storage", self.storage, get_args(StorageChoice)),
            "keep_spikes": _choice("keep_spikes", self.keep_spikes, get_args(KeptSpikes)),
            "spikes": _choice("spikes", self.spikes, get_args(Spikes)),
            "skip_zeros": _flag("skip_zeros", self.skip_zeros),
            "fold_norms": _flag("fold_norms", self.fold_norms),
            "step": _flag("step", self.step),
            "num_threads": _number_or_none(_THREADS, self.num_threads, MOST_THREADS),
            "time_dim": self._checked_time(),
            **self._checked_sweeps(),
            "chunk": self.chunk
            if self.chunk is None
            else _CHUNK.whole(self.chunk, most=MOST_STEPS),
            "kernel_size": _KERNEL_SIZE.whole(self.kernel_size, most=MOST_STEPS),
            "tau": _TAU.positive(self.tau),
            **self._checked_events(),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _checked_time(self) -> int:
        """Return the time axis of a model of one step."""
        axis = _TIME_DIM.whole(self.time_dim, least=-MOST_AXES, most=MOST_AXES)
        if axis != 0 and not self.step:
            raise OptionError(
                "Option 'time_dim' is for a model of one time step.",
                code="option.time-dim",
                hints=[_TIME_DIM.hint],
            )
        return axis

    def _checked_sweeps(self) -> dict[str, object]:
        """Return the options of mode 'fpt', which are checked against one another."""
        sweeps: object = self.sweeps
        if not (isinstance(sweeps, str) and sweeps == "exact"):
            if isinstance(sweeps, str):
                raise _SWEEPS.refused(sweeps, f"'exact' or a whole number up to {MOST_SWEEPS}")
            sweeps = _SWEEPS.whole(sweeps, most=MOST_SWEEPS)
        schedule = self.schedule
        if schedule is not None:
            each = _SCHEDULE.series(schedule, "numbers")
            schedule = tuple(_STEEPNESS.positive(steepness) for steepness in each)
            if sweeps != "exact" and len(schedule) != sweeps:
                raise OptionError(
                    f"{sweeps} sweeps have a schedule of {len(schedule)}.",
                    code="option.sweeps",
                    hints=[_SWEEPS.hint],
                )
        if self.spikes == "bernoulli" and (
            self.mode != "fpt" or sweeps == "exact" or schedule is None
        ):
            raise OptionError(
                "Spikes are drawn in mode 'fpt' with a number of soft sweeps, and only there.",
                code="option.sweeps",
                hints=[_SWEEPS.hint],
            )
        scale = _SCALE.positive(self.backward_scale)
        return {"sweeps": sweeps, "schedule": schedule, "backward_scale": scale}

    def _checked_events(self) -> dict[str, object]:
        """Return the options of mode 'async', which no other mode takes."""
        stop: object = self.stop
        if not (isinstance(stop, str) and stop == "quiet"):
            if isinstance(stop, str):
                raise _STOP.refused(stop, "'quiet' or a whole number")
            stop = _STOP.whole(stop, least=0, most=MOST_STEPS)
        checked: dict[str, object] = {
            "order": _ORDER.choice(self.order, get_args(SpikeOrder)),
            "group_size": _GROUP_SIZE.whole(self.group_size, most=MOST_STEPS),
            "order_noise": _ORDER_NOISE.number(self.order_noise, least=0.0),
            "refractory_dropout": _DROPOUT.number(self.refractory_dropout, least=0.0, most=1.0),
            "prioritize_input": _PRIORITY.flag(self.prioritize_input),
            "stop": stop,
        }
        defaults = {field.name: field.default for field in fields(self)}
        chosen = [name for name, value in checked.items() if value != defaults[name]]
        if chosen and self.mode != "async":
            raise OptionError(
                f"Option '{chosen[0]}' is for mode 'async', and the mode is '{self.mode}'.",
                code="option.async",
                hints=["Pass mode='async', or leave the option out."],
            )
        return checked


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process environment says, read anew at each use.

    Attributes:
        dump: ``SNNCC_DUMP``: folder that receives every stage as text.
        print_after: ``SNNCC_PRINT``: a pass name or ``after-all``; prints stages to stderr.
        validate: ``SNNCC_VALIDATE``: check the invariants of the IR after each pass.
        cache_dir: ``SNNCC_CACHE_DIR``, else ``snncc`` in ``XDG_CACHE_HOME`` or ``~/.cache``.
        cc: ``SNNCC_CC``: the C compiler.
        nvcc: ``SNNCC_NVCC``: the CUDA compiler.
    """

    dump: Path | None
    print_after: str | None
    validate: bool
    cache_dir: Path
    cc: str | None
    nvcc: str | None


def settings() -> Settings:
    """Read the settings from the environment of the process."""
    env = os.environ
    dump = env.get("SNNCC_DUMP")
    return Settings(
        dump=Path(dump) if dump else None,
        print_after=env.get("SNNCC_PRINT") or None,
        validate=env.get("SNNCC_VALIDATE", "").lower() not in ("", "0", "false", "no"),
        cache_dir=_cache_dir(env.get("SNNCC_CACHE_DIR"), env.get("XDG_CACHE_HOME")),
        cc=env.get("SNNCC_CC") or None,
        nvcc=env.get("SNNCC_NVCC") or None,
    )


def _cache_dir(own: str | None, shared: str | None) -> Path:
    if own:
        return Path(own)
    # The XDG convention: a relative path is invalid and is to be ignored.
    if shared and Path(shared).is_absolute():
        return Path(shared) / "snncc"
    try:
        return Path.home() / ".cache" / "snncc"
    except RuntimeError:  # no home directory: a user id without an account
        return Path("/nonexistent/snncc")


def _choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    hint = f"Choose one of {', '.join(map(repr, choices))}."
    return Check(f"Option '{name}'", code=f"option.{name}", hint=hint).choice(value, choices)


def _flag(name: str, value: object) -> bool:
    hint = "Choose one of False, True."
    return Check(f"Option '{name}'", code=f"option.{name}", hint=hint).flag(value)


def _number_or_none(check: Check, value: object, most: int) -> int | None:
    return None if value is None else check.whole(value, most=most)


_CHOICES = Check(
    "What is given as options", code="option.unknown", hint="For example: {'storage': 'save'}."
)
_THREADS = Check(
    "Option 'num_threads'",
    code="option.num-threads",
    hint="Leave it out to follow 'torch.get_num_threads()'.",
)
_TIME_DIM = Check(
    "Option 'time_dim'",
    code="option.time-dim",
    hint="Pass 'step=True', or leave it out: loops show their time axis.",
)
_CHUNK = Check(
    "Option 'chunk'",
    code="option.chunk",
    hint="Leave it out: each call is cut by its sizes.",
)
_SWEEPS, _SCHEDULE, _STEEPNESS, _SCALE = (
    Check(
        what,
        code="option.sweeps",
        hint="For example: sweeps=3, schedule=(2, 6, 12); or sweeps='exact'.",
    )
    for what in (
        *("Option 'sweeps'", "Option 'schedule'"),
        *("A steepness in 'schedule'", "Option 'backward_scale'"),
    )
)
_KERNEL_SIZE, _TAU = (
    Check(
        f"Option '{name}'",
        code="option.dynamic-decay",
        hint="Leave it out: a gate takes four inputs, and its exponent is a quarter.",
    )
    for name in ("kernel_size", "tau")
)
_OF_EVENTS = (
    *("order", "group_size", "order_noise", "refractory_dropout", "prioritize_input", "stop"),
)
_ORDER, _GROUP_SIZE, _ORDER_NOISE, _DROPOUT, _PRIORITY, _STOP = (
    Check(
        f"Option '{name}'",
        code="option.async",
        hint="Leave it out: groups of eight, the highest potential first, until all is quiet.",
    )
    for name in _OF_EVENTS
)
