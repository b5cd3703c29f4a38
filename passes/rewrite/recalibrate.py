"""Re-estimation of batch-norm statistics on calibration data, for a slim model whose activations have changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.arithmetic import full_precision
from graphprune.errors import UsageError
from graphprune.ir.program import Program
from graphprune.ir.twins import named_tensors
from graphprune.passes.calibration.consumers import Norm, find_norms
from graphprune.passes.calibration.lanes import Lanes, calibration_batches
from graphprune.passes.rewrite.copies import copy_of
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass


def moments(activations: Sequence[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of every channel (axis 1) over all batches and positions, float64, and the number of elements."""
    rows = [activation.detach().transpose(0, 1).flatten(1).double() for activation in activations]
    count = sum(part.shape[1] for part in rows)
    mean = torch.stack([part.sum(1) for part in rows]).sum(0) / count
    variance = torch.stack([(part - mean[:, None]).square().sum(1) for part in rows]).sum(0) / count
    return mean, variance, count


def reestimate(norm: Norm, tensors: dict[str, Tensor], activations: Sequence[Tensor]) -> None:
    """Give a norm the mean and (unbiased) variance of what it reads."""
    mean, variance, count = moments(activations)
    tensors[norm.mean].copy_(mean)
    tensors[norm.variance].copy_(variance * (count / max(1, count - 1)))


@dataclass(frozen=True)
class RecalibratePass(Pass):
    """Re-estimate the running mean and variance of every batch norm on the calibration data.

    The statistics are those of all samples together, the variance unbiased, as torch's running one is; so they do not depend on
    the batches that the samples come in. Norms are taken in the order of the graph, and each sees activations that were made, in
    eval mode, with the new statistics of those before it. Norms without running statistics, and those that several calls share,
    keep theirs.
    """

    name: ClassVar[str] = "recalibrate"
    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """A program with new statistics. Raises UsageError where the model has none, or does not run on the data."""
        norms = find_norms(program)
        if not norms:
            raise UsageError("recalibrate: the model has no batch norm with running statistics of its own. Leave the pass out.")
        batches = calibration_batches(program, "recalibrate")
        module = copy_of(program.module)
        tensors = named_tensors(module)
        by_name = {norm.node.name: norm for norm in norms}
        assert program.calibration is not None
        lanes = Lanes(module, batches, program.calibration)
        with torch.no_grad(), full_precision():
            nodes = {node.name: node for node in module.graph.nodes}
            for node in nodes.values():
                norm = by_name.get(node.name)
                if norm is not None:
                    reestimate(norm, tensors, lanes.values(nodes[norm.reads.name]))
                lanes.advance(node)
        return program.with_(module=module)
