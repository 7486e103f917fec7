"""A tensor that belongs to the compiled module and not to the user's model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class OwnTensor:
    """Target of a ``call_function`` node without arguments: a parameter or buffer as it is now.

    Attributes:
        holder: The module that has it.
        name: Its name there.
        shown: Its name in plans.
    """

    holder: nn.Module
    name: str
    shown: str

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self) -> Tensor:
        """Return the tensor."""
        tensor: Tensor = getattr(self.holder, self.name)
        return tensor

    @property
    def requires_grad(self) -> bool:
        """Whether it is a parameter; one that is frozen may be trained later."""
        return isinstance(self(), nn.Parameter)
