"""The passes on sequence graphs, in the order in which they run."""

from __future__ import annotations

from typing import assert_never

from snncc.ir.nodes import FixedPoint, Form, FusedTime, ParallelReset, Scan, Sequential
from snncc.ir.program import Place
from snncc.passes.base import Pass, Rejection
from snncc.passes.events.cut_feedback import CutFeedback
from snncc.passes.folding.fold_membrane_norm import FoldMembraneNorm
from snncc.passes.folding.fold_norms import FoldNorms
from snncc.passes.folding.fold_threshold_norm import FoldThresholdNorm
from snncc.passes.fusion.fuse_edges import FuseEdges
from snncc.passes.fusion.fuse_readouts import FuseReadouts
from snncc.passes.fusion.fuse_time import FuseTime
from snncc.passes.fusion.narrow_spikes import NarrowSpikes
from snncc.passes.gradients.differentiate import Differentiate
from snncc.passes.gradients.plan_storage import PlanStorage
from snncc.passes.hoisting.hoist_stateless import HoistStateless
from snncc.passes.hoisting.restore_copies import RestoreCopies
from snncc.passes.hoisting.separate_draws import SeparateDraws
from snncc.passes.keep_layouts import KeepLayouts
from snncc.passes.loops.differentiate_loops import DifferentiateLoops
from snncc.passes.loops.fuse_steps import FuseSteps
from snncc.passes.loops.open_layers import OpenLayers
from snncc.passes.pack_spikes import PackSpikes
from snncc.passes.parallel.parallelize_fixed_point import ParallelizeFixedPoint
from snncc.passes.parallel.parallelize_reset import ParallelizeReset, ScanResetAdjoints
from snncc.passes.parallel.parallelize_scan import ParallelizeScan
from snncc.passes.simplify_step import SimplifyStep
from snncc.passes.skip_zeros import SkipZeros
from snncc.passes.split_results import SplitResults

__all__ = ["Pass", "Rejection", "gradient_passes", "passes_for", "queueing", "substituting"]


def passes_for(  # noqa: PLR0913 - the choices of a compilation
    place: Place | None,
    leaves: tuple[bool, ...],
    form: Form | None = None,
    *,
    on_gpu: bool = False,
    skip_zeros: bool = False,
    pack_spikes: bool = False,
    fold_norms: bool = False,
    open_layers: bool = False,
    cut_time: Pass | None = None,
) -> tuple[Pass, ...]:
    """Return the passes of a compilation.

    Args:
        place: Where forward leaves what backward needs; None chooses by bytes moved.
        leaves: For each placeholder of the graph whether its tensor requires gradients.
        form: The form of spiking neurons; None stands for fused time.
        on_gpu: Whether the kernels run on a GPU.
        skip_zeros: Whether convolutions may skip the zeros of their input.
        pack_spikes: Whether products keep spikes as bits.
        fold_norms: Whether batch norms are folded into weights.
        open_layers: Whether recurrent layers of torch become loops, whose steps can be told apart.
        cut_time: The pass that ends gradients at the step that they are of, where that is wanted.
    """
    is_fused = not isinstance(form, FixedPoint | ParallelReset)
    return (
        *((OpenLayers(),) if open_layers else ()),
        *(() if cut_time is None else (cut_time,)),
        SeparateDraws(),
        RestoreCopies(),
        SplitResults(),
        FoldThresholdNorm(fold_norms),
        FoldMembraneNorm(),
        *((FoldNorms(),) if fold_norms else ()),
        HoistStateless(halves=on_gpu and is_fused),
        FuseSteps(halves=on_gpu and is_fused),
        *((FuseEdges(),) if is_fused else ()),
        SimplifyStep(),
        *((FuseReadouts(on_gpu),) if is_fused else ()),
        _set_form(form),
        *((NarrowSpikes(),) if on_gpu and form is None else ()),
        *gradient_passes(place, leaves, on_gpu=on_gpu),
        *((ParallelizeScan(form.forward),) if isinstance(form, Scan) else ()),
        *((ScanResetAdjoints(),) if isinstance(form, ParallelReset) else ()),
        *((SkipZeros(),) if skip_zeros else ()),
        KeepLayouts(),
        *((PackSpikes(),) if pack_spikes else ()),
    )


def gradient_passes(
    place: Place | None, leaves: tuple[bool, ...], *, on_gpu: bool = False
) -> tuple[Pass, ...]:
    """Return the passes that give neurons and loops their adjoints, as `passes_for` takes them."""
    return (Differentiate(leaves), DifferentiateLoops(), PlanStorage(place, on_gpu))


def _set_form(form: Form | None) -> Pass:
    """Return the pass that sets a form."""
    match form:
        case FixedPoint():
            return ParallelizeFixedPoint(form)
        case ParallelReset():
            return ParallelizeReset()
        case Sequential() | FusedTime() | Scan() | None:
            return FuseTime()
        case _:
            assert_never(form)


def substituting(passes: tuple[Pass, ...], substitution: Pass) -> tuple[Pass, ...]:
    """Return passes with a change of the neurons right after these are found."""
    found = next(i for i, each in enumerate(passes) if isinstance(each, HoistStateless))
    return (*passes[: found + 1], substitution, *passes[found + 1 :])


def queueing(passes: tuple[Pass, ...], queue: Pass) -> tuple[Pass, ...]:
    """Return passes that make one queue of a network, feedback of its spikes included."""
    found = next(i for i, each in enumerate(passes) if isinstance(each, HoistStateless))
    apart = (CutFeedback(), HoistStateless(apart=True), queue)
    return (*passes[:found], *apart, *passes[found + 1 :])
