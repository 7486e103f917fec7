"""What a user says of the whole numbers of a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.errors import OptionError
from snncc.export.quantized.formats import ARITHMETICS, Arithmetic


@dataclass(frozen=True)
class Quantization:
    """Whole numbers for a library, and examples that show how large its values become.

    Attributes:
        arithmetic: ``"int8"``: weights of 8 bits, states of 16, sums of 32.  ``"int16"``: twice
            as many of each.
        examples: Further arguments of the model, of the sizes of the example but for the number of
            steps; scales are chosen so that twice the largest value seen fits.
        labels: The right answers, for the example and each further one a number or one for each
            sample of its batch; an answer of the network is the largest of its first output.
    """

    arithmetic: str = "int8"
    examples: Sequence[tuple[Any, ...]] = ()
    labels: Sequence[int | Tensor] | None = None

    def sizes(self) -> Arithmetic:
        """Return the sizes of numbers.

        Raises:
            OptionError: There are none of that name, or there are too many or too few labels.
        """
        if self.arithmetic not in ARITHMETICS:
            raise OptionError(
                f"There is no arithmetic '{self.arithmetic}'.",
                code="option.arithmetic",
                hints=["Choose 'float', 'int8' or 'int16'."],
            )
        if self.labels is not None and len(self.labels) != 1 + len(self.examples):
            raise OptionError(
                f"There are {len(self.labels)} labels for {1 + len(self.examples)} examples.",
                code="option.arithmetic",
                hints=["Give one for 'example_inputs', then one for each of 'examples'."],
            )
        return ARITHMETICS[self.arithmetic]

    def answers(self) -> list[Tensor] | None:
        """Return the right answers for each example as a tensor."""
        if self.labels is None:
            return None
        return [torch.as_tensor(label).reshape(-1) for label in self.labels]


def quantization_of(arithmetic: str | Quantization) -> Quantization | None:
    """Return what an option of ``export`` means; None stands for floats."""
    if isinstance(arithmetic, str):
        return None if arithmetic == "float" else Quantization(arithmetic)
    return arithmetic
