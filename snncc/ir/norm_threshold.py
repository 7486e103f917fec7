"""The threshold of a potential that stands for a norm and a comparison behind it.

``norm(h) >= theta`` grows or falls with ``h``, whatever its coefficients, and so does what rounds
to it: each operation of the norm, rounded, keeps the order of its operands.  So in each channel
there is one float from which on the comparison holds, upwards or downwards::

    side h >= level        side in {-1, 0, 1}

Over the real numbers ``level`` is ``side ((theta - beta) sqrt(var + eps) / gamma + mean)``, which
rounds elsewhere than the norm does.  Here it is the very float, found by asking the operators of
the user's code: the bracket around it is cut in 16 until it holds two neighbours.  Where the
comparison says the same of all finite floats, as with ``gamma = 0``, ``side`` is 0 and ``level``
is -1 or 1.

Numerics: the comparisons of the user's code on the same device, bit by bit, as long as torch
rounds a norm of these values as it rounds one of contiguous values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.fx
from torch import Tensor

from snncc.ir.custom_gradient import run_graph

_CUTS = 16
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
_END = {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}  # the bits of infinity
Decide: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold that was found, and how to tell whether it still is one.

    Attributes:
        side: Of each channel [C].
        level: Of each channel [C].
        asked: Values [3, C] whose comparisons tell it from all other thresholds.
        answers: These comparisons.
    """

    side: Tensor
    level: Tensor
    asked: Tensor
    answers: Tensor

    def holds(self, decide: Decide) -> bool:
        """Tell whether it is the threshold of what decides now."""
        return torch.equal(decide(self.asked), self.answers)


@dataclass(eq=False)
class NormThreshold:
    """Target of a node: ``call(*parameters) -> (side, level)``, channel by channel.

    Parameters may change between calls in any way, so each call asks whether the threshold of the
    call before still holds: at the float itself and at its neighbour.

    Attributes:
        graph: Maps values [K, C], then the parameters, to bools [K, C]: the norm and what decides.
        last: The last threshold on each device.
    """

    graph: torch.fx.Graph
    last: dict[torch.device, Threshold] = field(default_factory=dict, repr=False)

    __name__ = "norm_threshold"

    def __call__(self, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the side and the level of each channel."""
        like = parameters[0].detach()

        def decide(values: Tensor) -> Tensor:
            answer: Tensor = run_graph(self.graph, (values, *parameters))
            return answer

        with torch.no_grad():
            if type(like) is not Tensor or torch.compiler.is_compiling():  # there are no values yet
                found = find_threshold(decide, like)
                return found.side, found.level
            last = self.last.get(like.device)
            if last is None or last.side.dtype is not like.dtype or not last.holds(decide):
                last = self.last[like.device] = find_threshold(decide, like)
            return last.side, last.level


def find_threshold(decide: Decide, like: Tensor) -> Threshold:
    """Return the threshold of each channel.

    Args:
        decide: What says of values [K, C] whether they are above the threshold; monotone.
        like: A tensor [C] of the type of the values.
    """
    ends = torch.tensor([-torch.inf, 0.0, torch.inf], dtype=like.dtype, device=like.device)
    ends = ends[:, None].expand(-1, like.numel()).contiguous()
    low, middle, high = decide(ends)
    first, last = _neighbours(decide, middle != high, high, like.dtype)
    side = high.to(like.dtype) - low.to(like.dtype)
    level = torch.where(side < 0, -first, last)
    level = torch.where(side == 0, 1 - 2 * middle.to(like.dtype), level)
    asked = torch.where(side == 0, ends, torch.stack((first, last, last)))
    return Threshold(side, level, asked, decide(asked))


def _neighbours(
    decide: Decide, is_above: Tensor, high: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the two floats between which the comparison changes.

    Args:
        decide: What decides.
        is_above: Whether the change is above 0.
        high: The comparisons of infinity.
        dtype: The type of the floats.
    """
    end = _END[dtype]
    first = torch.where(is_above, 0, -end - 1)
    last = torch.where(is_above, end, 0)
    cuts = torch.arange(1, _CUTS + 1, device=high.device)[:, None]
    width = end + 1
    while width > 1:
        width = -(-width // _CUTS)
        places = torch.minimum(first + cuts * width, last)
        passed = (decide(_floats(places, dtype)) != high).sum(0)
        last = torch.minimum(first + (passed + 1) * width, last)
        first = torch.minimum(first + passed * width, last)
    return _floats(first, dtype), _floats(last, dtype)


def _floats(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return floats by their places in order: that of 0 is 0, that of -0 is -1."""
    bits = _BITS[dtype]
    turned = torch.where(numbers < 0, ~numbers | torch.iinfo(bits).min, numbers)
    return turned.to(bits).view(dtype)
