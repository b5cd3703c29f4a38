"""Samples come in the order of their loss, hardest first, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.calibration import Batch, Calibration, default_loss
from graphprune.ir.program import Inputs
from graphprune.passes.selection.trials.hardest import hardest_first

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 1])
OUTPUTS = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))


def batches_of(sizes: list[int]) -> list[Batch]:
    inputs, labels = torch.arange(7.0).view(7, 1).split(sizes), LABELS.split(sizes)
    return [Batch(Inputs((x,)), y) for x, y in zip(inputs, labels, strict=True)]


def order(batches: Any) -> list[int]:
    return [int(number) for batch in batches for number in batch.inputs.args[0].flatten()]


def test_samples_are_sorted_across_batches_whose_sizes_stay() -> None:
    """The second batch is a sample of what is behind the first."""
    sizes = [2, 2, 2, 1]
    batches = batches_of(sizes)
    found = hardest_first(batches, OUTPUTS.split(sizes), Calibration(batches))
    ranked = torch.argsort(F.cross_entropy(OUTPUTS, LABELS, reduction="none"), descending=True).tolist()
    assert order(found) == [ranked[place] for place in (0, 1, 2, 4, 3, 5, 6)] != list(range(7))
    assert [batch.size for batch in found] == sizes
    assert torch.cat([batch.target for batch in found]).tolist() == LABELS[order(found)].tolist()


@pytest.mark.parametrize("kind", ["another loss", "the model's own loss", "other shapes", "more than samples"])
def test_batches_stay_where_nothing_is_gained_or_samples_do_not_fit_together(kind: str) -> None:
    batches = batches_of([4, 3])
    outputs: list[Any] = list(OUTPUTS.split([4, 3]))
    loss: Any = default_loss
    if kind == "another loss":
        loss = lambda output, target: F.cross_entropy(output, target)  # noqa: E731
    elif kind == "the model's own loss":
        outputs = [{"logits": output, "loss": torch.tensor(-1.0)} for output in outputs]
    elif kind == "other shapes":
        batches[1] = Batch(Inputs((torch.zeros(3, 2),)), batches[1].target)
    else:
        shared: Tensor = torch.zeros(5, 5)
        batches = [Batch(Inputs((*batch.inputs.args, shared)), batch.target) for batch in batches]
    assert hardest_first(batches, outputs, Calibration(batches, loss=loss)) is batches
