"""Memory for intermediate results that is used again and again."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


class Scratch:
    """Room for one intermediate result at a time: fresh memory costs as much as what is done in it.

    most: elements that are kept room for; a larger result gets memory of its own. Nothing is taken before it is asked for.

    >>> room = Scratch(6)
    >>> room.of((2, 3), torch.zeros(1)).shape
    torch.Size([2, 3])
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._room = torch.empty(0)

    def of(self, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor with anything in it, on the device of ``like`` and of its dtype (or ``dtype``); the one before is lost."""
        dtype, count = dtype or like.dtype, prod(shape)
        if count > self._most:
            return torch.empty(tuple(shape), dtype=dtype, device=like.device)
        if not len(self._room) or (self._room.dtype, self._room.device) != (dtype, like.device):
            self._room = torch.empty(self._most, dtype=dtype, device=like.device)
        return self._room[:count].view(tuple(shape))
