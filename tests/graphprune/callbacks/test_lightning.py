"""The callback of Lightning: what it takes for the share of the training that is done."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import graphprune
from graphprune.callbacks import GradualPruning

pytest.importorskip("lightning", reason="needs lightning")


def test_several_optimisers_that_make_more_steps_than_there_are_batches_end_at_the_whole_training() -> None:
    from graphprune.callbacks.lightning import PruningCallback

    masks = graphprune.masked(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.zeros(1, 8))
    callback = PruningCallback(GradualPruning(masks, "channels=50%"))
    callback.on_train_batch_start(SimpleNamespace(global_step=20, estimated_stepping_batches=10), None, None, 0)
    assert int(masks.mask[masks.groups.prunable[0].units].sum()) == 8
