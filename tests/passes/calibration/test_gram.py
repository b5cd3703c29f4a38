"""Products of channels: of many rows at once, and the same however these come."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from graphprune.passes.calibration.gram import ChannelGram
from graphprune.statistic import Tap

TAP = Tap("a", 1, np.arange(0), ())


def measured(batches: list[Tensor]) -> dict[Any, Tensor]:
    """Totals of activations of (samples, channels, places); each is overwritten once it was seen, as a model may do."""
    observer = ChannelGram().observer(cast(Any, None))
    for batch in batches:
        held = batch.clone(memory_format=torch.preserve_format)
        observer.see(TAP, held)
        held.fill_(torch.nan)
    observer.end()
    return dict(observer.totals.sums)


@pytest.mark.parametrize("channels", [1, 5, 300])
def test_products_are_those_of_all_rows(channels: int) -> None:
    """Few rows, which wait for the end, and many; channels as they lie in images and in tokens, of which rows are a view."""
    for samples in (3, 50):
        images = torch.randn(samples, channels, 40, dtype=torch.float64)
        tokens = images.transpose(1, 2).contiguous().transpose(1, 2)
        rows = images.transpose(1, 2).flatten(0, 1)
        for given in (images, tokens):
            for size in (1, 7, samples):
                found = measured(list(given.split(size)))
                torch.testing.assert_close(found["a", 1, "gram"], rows.T @ rows)
                torch.testing.assert_close(found["a", 1, "sum"], rows.sum(0))
                assert found["a", 1, "count"] == len(rows)
