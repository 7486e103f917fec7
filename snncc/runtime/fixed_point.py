"""Neuron layers in fixed-point form: sweeps over all steps until the spikes are those assumed.

Until stable, the spikes of a sweep are the assumption of the next; the step is evaluated in its
serial order, so what is found is the serial result bit for bit, and its gradient is that of the
serial neuron: one reverse sweep, whatever the number of sweeps.  With a number of sweeps, autograd
runs back through each of them, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from snncc.errors import UnsupportedError
from snncc.ir.nodes import FixedPoint
from snncc.ir.program import NeuronProgram
from snncc.runtime.neuron import Neuron, NeuronTarget
from snncc.runtime.solved import solved
from snncc.runtime.tracing import is_traced


class FixedPointNeuron:
    """A neuron layer whose threshold feedback is solved by sweeps.

    Args:
        program: The neuron, with its sweeps.
        target: The language of the kernels, as for `Neuron`.
        num_threads: Threads of a kernel; None means ``torch.get_num_threads()`` at each call.

    Attributes:
        sweeps: How many sweeps the last call took.
    """

    def __init__(
        self,
        program: NeuronProgram,
        *,
        target: NeuronTarget = "c",
        num_threads: int | None = None,
    ) -> None:
        assert isinstance(program.forward.form, FixedPoint)
        self.program = program
        self.form = program.forward.form
        options: dict[str, Any] = {"target": target, "num_threads": num_threads}
        self.serial = Neuron(replace(program, sweeps=()), **options)
        self._each = [Neuron(sweep.program, **options) for sweep in program.sweeps]
        self._found = program.sweeps[0].found
        self.sweeps = 0

    def run(self, arguments: Sequence[Tensor], length: int | None) -> list[Tensor]:
        """Run the layer over time.

        Args:
            arguments: The STEP inputs, then the LANE inputs.
            length: T.

        Returns:
            The outputs [T, *lanes], then the finals [*lanes].
        """
        if self.form.sweeps is not None:
            return self._fixed_number(arguments, length, self.form.sweeps)
        if is_traced(arguments):
            raise UnsupportedError(
                "Sweeps until stable depend on values and cannot be traced.",
                code="unsupported.traced-sweeps",
                location=self.program.forward.where,
                hints=["Compile with 'sweeps=3', or with mode='fused'."],
            )
        return solved(self, arguments, length)

    def solve(self, arguments: Sequence[Tensor], length: int | None) -> list[Tensor]:
        """Sweep until no spike changes: at most one sweep more than there are steps."""
        steps = self._length(arguments, length)
        guesses = self._first(arguments, steps)
        for count in range(1, steps + 2):
            results, found = self._sweep(self._each[-1], arguments, guesses, length)
            self.sweeps = count
            if all(_same(a, b) for a, b in zip(guesses, found, strict=True)):
                break
            guesses = found
        return results

    def _fixed_number(
        self, arguments: Sequence[Tensor], length: int | None, sweeps: int
    ) -> list[Tensor]:
        guesses = self._first(arguments, self._length(arguments, length))
        for k in range(sweeps):
            each = self._each[min(k, len(self._each) - 1)]
            results, guesses = self._sweep(each, arguments, guesses, length)
        self.sweeps = sweeps
        return results

    def _sweep(
        self, each: Neuron, arguments: Sequence[Tensor], guesses: list[Tensor], length: int | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the results of one sweep, and what its guesses should have been."""
        steps = len(self.program.forward.step_inputs)
        values = list(each.run((*arguments[:steps], *guesses, *arguments[steps:]), length))
        outputs, finals = len(self.program.forward.outputs), len(self.program.forward.finals)
        results = values[:outputs] + values[len(values) - finals :]
        return results, [values[position] for position in self._found]

    def _length(self, arguments: Sequence[Tensor], length: int | None) -> int:
        steps = arguments[: len(self.program.forward.step_inputs)]
        return max((int(x.shape[0]) for x in steps), default=0) if length is None else int(length)

    def _first(self, arguments: Sequence[Tensor], steps: int) -> list[Tensor]:
        """Return the assumption of the first sweep: no spike at any step."""
        return [arguments[0].new_zeros(()).expand(steps) for _ in self._found]


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a.reshape(a.shape + (1,) * (b.dim() - a.dim())) == b).all())
