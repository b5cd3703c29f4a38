"""What a graph does in train mode alone: no operator runs for it in eval mode."""

from __future__ import annotations

import torch
from torch import fx


@fx.has_side_effect
def add_in_train_mode(buffer: torch.Tensor, amount: float, training: bool) -> None:
    """Add a number to a buffer in place, if in train mode: how batch norms count their batches.

    buffer: changed in place. training: the mode of the graph module.

    >>> count = torch.zeros((), dtype=torch.long)
    >>> add_in_train_mode(count, 1, True)
    >>> add_in_train_mode(count, 1, False)
    >>> count
    tensor(1)
    """
    if training:
        buffer.add_(amount)
