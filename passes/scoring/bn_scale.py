"""Scale of a unit's normalisations (Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017)."""

from __future__ import annotations

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.scoring.magnitude import slice_sums
from graphprune.passes.scoring.norms import scales


@criterion("bn-scale", reduction="mean", streams=True)
def bn_scale(context: ScoringContext) -> Floats:
    """``reduce_m |gamma_m|`` over the normalisations m that scale a unit's channels, summed over the channels; shape (units,), in
    units of the normalised activation. NaN for units without one.

    What is a scale is decided by the operator that multiplies with it: batch, layer, group, instance and root mean square norms,
    layers and functions alike. The paper compares the raw scales of all layers: ``normalise=none``. Data: none. Cost: none.
    """
    values = context.program.values
    found = [(values[name], context.axes[name]) for name in scales(context.program) if name in context.axes]
    return context.reduce(member for scale, axes in found for member in slice_sums(scale.detach().double().abs(), axes))
