"""First-order Taylor expansion at batch norms (Shen et al., HALP, NeurIPS 2022, eq. 3; Molchanov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.channels.groups import Ints
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.saliency import ParameterGradients
from graphprune.passes.scoring.magnitude import slice_sums
from graphprune.passes.scoring.norms import batch_norm_parameters
from graphprune.statistic import Statistic


def _needs(**options: object) -> tuple[Statistic, ...]:
    return (ParameterGradients(),)


@criterion("bn-taylor", needs=_needs, reduction="sum")
def bn_taylor(context: ScoringContext) -> Floats:
    """``reduce_m |gamma * dL/dgamma + beta * dL/dbeta|`` over the batch norms m of a unit's channels; shape (units,), in units of
    the loss: its change, to first order, if the norm's output were zero, with the mean gradient over all samples. NaN for units
    without a batch norm.

    Data: labelled. Cost: a backward pass.
    """
    gradients, tensors = context.measured[ParameterGradients()].sums, context.program.tensors
    samples = float(gradients[ParameterGradients.COUNT])

    def members() -> Iterator[tuple[Ints, Floats]]:
        for names in batch_norm_parameters(context.program):
            changes = [tensors[name].detach().double() * (gradients[name] / samples) for name in names if name in gradients]
            if changes and names[0] in context.axes:
                yield from slice_sums(sum(changes[1:], changes[0]), context.axes[names[0]])

    return context.reduce(members())
