"""What published code does that a rewrite easily gets wrong, and the cases that hold it."""

from __future__ import annotations

TRAPS: dict[str, tuple[str, ...]] = {
    "A reset by one step late, computed again from the potential before.": (
        "resets-DelayedRecomputed",
        "resets-DelayedMaskedWrite",
    ),
    "A hard reset before or behind the decay, to zero, to the threshold, or to what is above it.": (
        "resets-Hard",
        "resets-HardBeforeDecay",
        "resets-ToThresholdThenDecay",
        "resets-ResidualAboveThreshold",
    ),
    "A reset is detached or not; the threshold apart from the spike.": (
        "resets-HardDetached",
        "resets-SoftThresholdDetached",
        "resets-SoftSpikeDetached",
    ),
    "States that begin as one tensor, of which one is then changed in place.": (
        "state-AliasedStart",
        "state-AliasedInPlace",
        "loops-ListsFromTheStart",
    ),
    "Operators that write in place inside of an expression, or detach in place.": (
        "dynamics-ComplementaryInPlace",
        "dynamics-RefractoryInteger",
        "resets-DetachedInPlace",
        "resets-TemporaryDetachedInPlace",
        "resets-AddedInPlace",
        "resets-MaskedWrite",
        "networks-SpikesAddedInPlace",
    ),
    "One stateful module is used twice in a step, its state hidden or passed.": (
        "state-UsedTwice",
        "state-ExplicitStatesOfOneModule",
    ),
    "A state grows by broadcasting at the first step, or is dropped for its shape.": (
        "state-LearnedStart",
        "state-BufferState",
        "snntorch-State_of_another_shape",
    ),
    "Norms with statistics of one step, of all steps, inside of the recurrence, or one a step.": (
        "networks-BatchNormEachStep",
        "networks-BatchNormMerged",
        "networks-BatchNormOfPotential",
        "networks-BatchNormOfEachStep",
        "networks-BatchNormEvaluated",
    ),
    "A mask for each step, for the whole sequence, or until it is reset.": (
        "networks-DropoutEachStep",
        "networks-DropoutOnce",
        "networks-DropoutUntilReset",
    ),
    "Operators that need all steps in front of a neuron; feedback that forbids that.": (
        "networks-AttentionOverTime",
        "networks-CausalConvolutionOverTime",
        "loops-Bidirectional",
        "networks-FeedbackFromLaterLayer",
        "networks-Autoregressive",
    ),
    "A linear layer behind the leaky trace.": ("dynamics-LinearAfterTrace",),
    "The order in which two states read one another.": (
        "dynamics-SynapseNew",
        "dynamics-SynapseOld",
        "dynamics-AdaptiveSE",
        "dynamics-TwoCompartmentLIF",
    ),
    "A decay that depends on the state or on spikes.": (
        "dynamics-StateDecay",
        "dynamics-SpikeDecay",
        "dynamics-GLIF",
    ),
    "Outputs are dropped, and the state is read afterwards.": ("state-ReadAfterwards",),
    "Records that begin with the start, steps peeled off, late counts, arrays beside tensors.": (
        "loops-LongRecords",
        "loops-FirstStepPeeled",
        "loops-CountsLate",
        "readouts-ArraysOfNumpy",
    ),
    "Gradients that are lost on purpose, or taken inside of the loop.": (
        "resets-DetachedCharge",
        "resets-ClippedOnline",
        "hostile-BackwardInLoop",
    ),
    "Spikes that are neither 0 nor 1.": (
        "dynamics-Ternary",
        "dynamics-MultiLevel",
        "dynamics-RealSpikes",
        "spikes-GradedSpikes",
        "networks-SpikesAddedInPlace",
    ),
    "The same input at each step, behind which norms and masks still differ.": (
        "loops-StaticInput",
        "networks-BatchNormOfStaticInput",
        "networks-DropoutOfStaticInput",
    ),
    "Parameters that are constrained in place between calls, shared, or not listed.": (
        "resets-ConstrainedThreshold",
        "resets-SharedThreshold",
        "hostile-ClampedInForward",
    ),
    "A library that no longer calls the methods that a subclass overrides.": (
        "spikingjelly-LIF_overridden_s",
        "spikingjelly-SimpleLIF_overridden_s",
    ),
}
