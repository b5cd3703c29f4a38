"""First-order Taylor expansion of the loss (Molchanov et al., ICLR 2017, eq. 8, and CVPR 2019, eq. 8, over coupled units)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from graphprune.channels.groups import Ints
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.saliency import ParameterGradients, Saliency
from graphprune.passes.scoring.magnitude import slice_sums
from graphprune.statistic import Place, Statistic


def _needs(form: str, at: Place, **options: object) -> tuple[Statistic, ...]:
    return (ParameterGradients(),) if form == "weight" else (Saliency(at),)


def _streams(form: str, **options: object) -> bool:
    return form == "activation"


@criterion("taylor", needs=_needs, streams=_streams)
def taylor(context: ScoringContext, *, form: Literal["activation", "weight"] = "activation", at: Place = "consumed") -> Floats:
    """Change of the loss, to first order, if a unit were zero; shape (units,), in units of the loss.

    ``activation``: ``mean_n |sum_t sum a * dL_n/da|`` over samples n and the activations t of a unit. ``weight``: ``reduce_m |sum
    w * dL/dw|`` over the members m, with the gradient of the mean loss. Data: labelled. Cost: a backward pass.
    """
    if form == "activation":
        measured = context.measured[Saliency(at)].sums
        if "abs" not in measured:
            return context.reduce(())
        return context.seen(at, (measured["abs"] / measured["count"]).numpy(force=True))
    gradients = context.measured[ParameterGradients()].sums
    samples = float(gradients[ParameterGradients.COUNT])
    names = {id(tensor): name for name, tensor in reversed(context.program.tensors.items())}

    def members() -> Iterator[tuple[Ints, Floats]]:
        for parameter, axes in context.members():
            gradient = gradients.get(names[id(parameter)])
            if gradient is not None:
                yield from slice_sums(parameter.detach().double() * (gradient / samples), axes)

    return context.reduce(members())
