"""What the user may choose: compile options, and settings of the process environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias, get_args, get_origin, get_type_hints

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
Spikes: TypeAlias = Literal["threshold", "bernoulli"]

# A number of sweeps is a chain of as many neurons in one kernel, which takes seconds to build.
MOST_SWEEPS = 64

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
        storage: What the backward pass needs is recomputed in cache, or saved in memory.
        skip_zeros: Whether convolutions on the CPU may skip the zeros of spikes, and so add in
            another order.
        fold_norms: Whether batch norms in evaluation mode are folded into weights, and so round
            in another way.
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
    """

    mode: Mode = "fused"
    target: TargetName = "auto"
    fallback: Fallback = "error"
    storage: StorageChoice = "auto"
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

    @classmethod
    def of(cls, **choices: object) -> Options:
        """Return options by name.

        Raises:
            OptionError: There is no option of that name, or it has no such value.
        """
        known = [field.name for field in fields(cls)]
        for name in choices:
            if name not in known:
                raise OptionError(
                    f"There is no option '{name}'.",
                    code="option.unknown",
                    hints=[f"The options are {', '.join(repr(k) for k in known)}."],
                )
        return cls(**choices)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            hint, value = hints[field.name], getattr(self, field.name)
            choices = (False, True) if hint is bool else get_args(hint)
            if (hint is bool or get_origin(hint) is Literal) and value not in choices:
                raise _not_a_choice(field.name, value, choices)
        threads = self.num_threads
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise OptionError(
                f"Option 'num_threads' is {threads!r}, not a positive number.",
                code="option.num-threads",
                hints=["Leave it out to follow 'torch.get_num_threads()'."],
            )
        self._check_sweeps()
        if self.chunk is not None and (type(self.chunk) is not int or self.chunk < 1):
            raise OptionError(
                f"Option 'chunk' is {self.chunk!r}, not a positive number of steps.",
                code="option.chunk",
                hints=["Leave it out: each call is cut by its sizes."],
            )
        if type(self.kernel_size) is not int or self.kernel_size < 1 or not self.tau > 0:
            raise OptionError(
                "Options 'kernel_size' and 'tau' are positive; the first is a whole number.",
                code="option.dynamic-decay",
                hints=["Leave them out: four inputs, and a quarter."],
            )
        if type(self.time_dim) is not int or (self.time_dim != 0 and not self.step):
            raise OptionError(
                f"Option 'time_dim' is {self.time_dim!r}, not the number of an axis."
                if self.step
                else "Option 'time_dim' is for a model of one time step.",
                code="option.time-dim",
                hints=["Pass 'step=True', or leave it out: loops show their time axis."],
            )

    def _check_sweeps(self) -> None:
        """Check the options of mode 'fpt' against one another."""
        sweeps, schedule = self.sweeps, self.schedule
        problem = ""
        if sweeps != "exact" and (type(sweeps) is not int or sweeps < 1):
            problem = f"Option 'sweeps' is {sweeps!r}, neither 'exact' nor a positive number."
        elif sweeps != "exact" and sweeps > MOST_SWEEPS:
            problem = f"Option 'sweeps' is {sweeps}; {MOST_SWEEPS} sweeps is the most."
        elif schedule is not None and not all(s > 0 for s in schedule):
            problem = f"Option 'schedule' is {schedule!r}; steepness is positive."
        elif sweeps != "exact" and schedule is not None and len(schedule) != sweeps:
            problem = f"{sweeps} sweeps have a schedule of {len(schedule)}."
        elif self.backward_scale <= 0:
            problem = f"Option 'backward_scale' is {self.backward_scale!r}, not positive."
        elif self.spikes == "bernoulli" and (
            self.mode != "fpt" or sweeps == "exact" or schedule is None
        ):
            problem = "Spikes are drawn in mode 'fpt' with a number of soft sweeps, and only there."
        if problem:
            raise OptionError(
                problem,
                code="option.sweeps",
                hints=["For example: sweeps=3, schedule=(2, 6, 12); or sweeps='exact'."],
            )


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


def _not_a_choice(name: str, value: object, choices: tuple[object, ...]) -> OptionError:
    return OptionError(
        f"Option '{name}' has no value {value!r}.",
        code=f"option.{name}",
        hints=[f"Choose one of {', '.join(repr(choice) for choice in choices)}."],
    )
