"""Re-rolling: from the flat record of a run to loops over time, each proven."""

from snncc.frontend.reroll.check import check
from snncc.frontend.reroll.diagnose import Difference
from snncc.frontend.reroll.stages import Rolled, reroll

__all__ = ["Difference", "Rolled", "check", "reroll"]
