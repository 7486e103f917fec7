"""What users give: models, and arguments of a call that is to show what a network is like."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snncc.arguments import Check
from snncc.errors import OptionError

EXAMPLE = Check(
    "Option 'example_inputs'",
    code="option.example",
    hint="Give the arguments of a call as a tuple: example_inputs=(x,).",
)


def require_model(model: object) -> None:
    """Refuse what is no model.

    Raises:
        OptionError: It cannot be called, or is the class of a module.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise OptionError(
            f"The model is the class '{model.__name__}' itself.",
            code="option.model",
            hints=[f"Make a module of it: '{model.__name__}(...)'."],
        )
    if not callable(model):
        check = Check("The model", code="option.model", hint="Pass a module or a function.")
        raise check.refused(model, "something that can be called")


def example_of(arguments: object) -> tuple[Any, ...]:
    """Return the arguments of a call that is to show what a network is like.

    Raises:
        OptionError: They are no tuple, or a tensor is empty.
    """
    example = EXAMPLE.arguments(arguments)
    if any(isinstance(x, Tensor) and not x.numel() for x in pytree.tree_leaves(example)):
        raise OptionError(
            "A tensor in 'example_inputs' is empty.", code="option.example", hints=[EXAMPLE.hint]
        )
    return example
