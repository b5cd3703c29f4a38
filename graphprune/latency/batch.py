"""The batch that a latency is measured at: as given, or the smallest one that keeps the device busy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils._pytree import tree_leaves

from graphprune.errors import UsageError
from graphprune.ir.program import Inputs

_GAIN: Final = 1.05  # a doubling that raises the throughput by less has found the device busy
_LONGEST: Final = 10_000.0  # milliseconds of one call
_LARGEST: Final = 4096


def batch_of(inputs: Inputs) -> int:
    """The leading size that all tensors of the inputs share. Raises UsageError where there is none to change."""
    size = _shared(inputs)
    if size is None:
        raise UsageError(
            f"A batch is the leading size that all inputs share, and {inputs.describe()} has none. Take the sizes as they are: "
            "without --batch, or for an export --static (dynamic=False)."
        )
    return size


def _shared(inputs: Inputs) -> int | None:
    top = [*inputs.args, *inputs.kwargs.values()]
    tensors = [item for item in top if isinstance(item, torch.Tensor)]
    nested = sum(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(top)) - len(tensors)
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    return None if nested or len(sizes) != 1 or 0 in sizes else int(sizes.pop())


def has_batch(inputs: Inputs) -> bool:
    """Whether all tensors of the inputs share a leading size."""
    return _shared(inputs) is not None


def with_batch(inputs: Inputs, batch: int) -> Inputs:
    """Inputs with another leading size: rows are repeated or left out. Raises UsageError as :func:`batch_of` does."""
    present = batch_of(inputs)
    rows = torch.arange(batch) % present

    def resized(item: Any) -> Any:
        return item[rows.to(item.device)] if isinstance(item, torch.Tensor) else item

    return inputs.map(resized)


@dataclass(frozen=True)
class Load:
    """What one batch takes."""

    batch: int
    ms: float

    @property
    def throughput(self) -> float:
        """Samples in a millisecond."""
        return self.batch / self.ms


def saturating(measure: Callable[[int], float]) -> list[Load]:
    """Double the batch until the throughput rises by less than 5 %, or time or memory is out.

    measure: milliseconds of one call at a batch. Returns what was measured; the one to take is before the last doubling that
    did not pay, that is :func:`best`.
    """
    loads = [Load(1, measure(1))]
    while loads[-1].batch * 2 <= _LARGEST and loads[-1].ms < _LONGEST:
        try:
            loads.append(Load(loads[-1].batch * 2, measure(loads[-1].batch * 2)))
        except (MemoryError, RuntimeError):  # how devices say that memory is out; the first batch did run
            break
        if loads[-1].throughput < _GAIN * loads[-2].throughput:
            break
    return loads


def best(loads: list[Load]) -> int:
    """The largest batch whose doubling paid."""
    paid = len(loads) == 1 or loads[-1].throughput >= _GAIN * loads[-2].throughput
    return loads[-1 if paid else -2].batch
