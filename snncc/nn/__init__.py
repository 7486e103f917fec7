"""Reference neurons as plain serial PyTorch: the code a user would write, step after step.

Nothing here is fast on its own; these modules are input for the compiler and the reference for its
tests. Potentials are dimensionless and time is counted in steps.
"""

from snncc.nn.adaptive import AdaptiveLIF
from snncc.nn.current import CubaLIF
from snncc.nn.dynamic_decay import DynamicDecay
from snncc.nn.graded import HDLIF
from snncc.nn.integrator import LI
from snncc.nn.leaky import IF, LIF
from snncc.nn.parallel import PSN, MaskedPSN, SlidingPSN
from snncc.nn.surrogate import ATan, FastSigmoid, IntegerSpike, Rectangle, Sigmoid, Triangle

__all__ = [
    "HDLIF",
    "IF",
    "LI",
    "LIF",
    "PSN",
    "ATan",
    "AdaptiveLIF",
    "CubaLIF",
    "DynamicDecay",
    "FastSigmoid",
    "IntegerSpike",
    "MaskedPSN",
    "Rectangle",
    "Sigmoid",
    "SlidingPSN",
    "Triangle",
]
