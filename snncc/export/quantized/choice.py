"""The user's choice of whole numbers for a library: widths, examples, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snncc.arguments import Check
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

    def __post_init__(self) -> None:
        arithmetic = _ARITHMETIC.choice(self.arithmetic, ARITHMETICS)
        examples = _EXAMPLES.series(self.examples, "examples")
        checked = {
            "arithmetic": arithmetic,
            "examples": tuple(_EXAMPLE.arguments(example) for example in examples),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self.answers()

    def sizes(self) -> Arithmetic:
        """Return the sizes of numbers."""
        return ARITHMETICS[self.arithmetic]

    def answers(self) -> tuple[Tensor, ...] | None:
        """Return the right answers for each example as a tensor."""
        return None if self.labels is None else _checked(self.labels, 1 + len(self.examples))


def quantization_of(arithmetic: object) -> Quantization | None:
    """Return what an option of ``export`` means; None stands for floats.

    Raises:
        OptionError: It means nothing.
    """
    if isinstance(arithmetic, Quantization):
        return arithmetic
    name = _ARITHMETIC.choice(arithmetic, ("float", *ARITHMETICS))
    return None if name == "float" else Quantization(name)


def _checked(labels: object, count: int) -> tuple[Tensor, ...]:
    """Return the labels of some examples."""
    each = _LABELS.series(labels, "labels")
    if len(each) != count:
        raise OptionError(
            f"There are {len(each)} labels for {count} examples.",
            code="option.arithmetic",
            hints=[_LABELS.hint],
        )
    return tuple(map(_label, each))


def _label(label: object) -> Tensor:
    try:
        found = torch.as_tensor(label).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:  # it is no number and no numbers
        raise _LABELS.refused(label, "whole numbers") from error
    if found.dtype not in _WHOLE or not found.numel():
        raise _LABELS.refused(label, "whole numbers")
    return found


_WHOLE = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
_ARITHMETIC = Check(
    "Option 'arithmetic'",
    code="option.arithmetic",
    hint="Choose 'float', 'int8', 'int16', or a 'snncc.Quantization' of one of the last two.",
)
_EXAMPLES, _EXAMPLE = (
    Check(
        what,
        code="option.arithmetic",
        hint="Give further arguments of the model, each as a tuple: examples=[(x,), (y,)].",
    )
    for what in ("Option 'examples'", "One of 'examples'")
)
_LABELS = Check(
    "One of 'labels'",
    code="option.arithmetic",
    hint="Give one for 'example_inputs', then one for each of 'examples'.",
)
