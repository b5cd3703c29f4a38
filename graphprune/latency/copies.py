"""Times over several copies of the same models.

Where the tensors of a model lie in memory makes one copy of it a per cent or so slower than another, however often each is timed:
the sets of the caches that they share, and the pages, are others. A user's process draws one such copy. So a time that is to hold
for the model is that of several copies, and its error the copies' spread. :class:`Effort` says how sure it is to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.latency.timing import Floats, Timing, uncertainty

_GAP: Final = 1 << 16  # bytes between two tensors at most


@dataclass(frozen=True)
class Effort:
    """How much is timed.

    precision: copies are timed until the standard errors of all ratios between the models are at most this share. turns: of each
    model in one copy. least, most: copies. seconds: no copy is begun that would end later, unless it is the second: an error takes
    two to tell.
    """

    precision: float
    turns: int = 3
    least: int = 7
    most: int = 40
    seconds: float = 30.0


#: For tables, in which many models are timed and what they have in common is fitted.
ROUGH: Final = Effort(precision=0.02, least=3, most=6, seconds=20)
#: For figures that are shown and decided by.
SURE: Final = Effort(precision=0.004)
#: For figures that are published.
PUBLISHED: Final = Effort(precision=0.002, most=200, seconds=180)


@dataclass(frozen=True)
class CopyTimes:
    """One copy of each model. seconds: of a call, of shape (turns, models). calls: that each model made in a turn."""

    seconds: Floats
    calls: tuple[int, ...]


def sampled(copy: Callable[[], CopyTimes], effort: Effort, now: Callable[[], float] = monotonic) -> list[Timing]:
    """The time of each model. copy: places all of them anew in memory and times them by turns. now: seconds."""
    begin = now()
    copies: list[CopyTimes] = []
    while True:
        copies.append(copy())
        found, count = _timings(copies), len(copies)
        sure = count >= effort.least and uncertainty(found) <= effort.precision
        late = count > 1 and (now() - begin) * (count + 1) / count > effort.seconds
        if sure or late or count >= effort.most:
            return found


def _timings(copies: Sequence[CopyTimes]) -> list[Timing]:
    """What slows all models of a turn alike, such as a clock that changes, is taken out."""
    ms = without_drift(np.concatenate([copy.seconds for copy in copies]) * 1000)
    medians = np.median(np.split(ms, len(copies)), axis=1).T
    quantiles = np.quantile(ms, (0.25, 0.75, 0.95), axis=0).T.tolist()
    calls = len(ms) // len(copies) * np.sum([copy.calls for copy in copies], axis=0)
    return [
        Timing(
            median_ms=float(np.exp(np.log(of_copies).mean())),
            low_ms=low,
            high_ms=high,
            p95_ms=p95,
            runs=int(runs),
            turns=len(ms),
            copies_ms=tuple(of_copies.tolist()) if len(copies) > 1 else (),
        )
        for of_copies, (low, high, p95), runs in zip(medians, quantiles, calls, strict=True)
    ]


def without_drift(times: Floats) -> Floats:
    """Times of shape (turns, models) without what all models of a turn have in common, against the usual turn."""
    if times.shape[1] < 2:
        return times
    logs = np.log(np.maximum(times, 1e-9))
    common = logs.mean(axis=1, keepdims=True)
    result: Floats = np.exp(logs - common + np.median(common))
    return result


def move(module: Any, random: np.random.Generator) -> None:
    """Put a module's tensors elsewhere in memory, one after another; what is no module stays where it is.

    Parameters stay the same objects. Gaps of random sizes lie between the tensors, or else these would change places with each
    other.
    """
    gaps: list[Tensor] = []

    def elsewhere(tensor: Tensor) -> Tensor:
        gaps.append(torch.empty(int(random.integers(1, _GAP)), dtype=torch.uint8, device=tensor.device))
        return tensor.clone()

    if isinstance(module, nn.Module):
        module._apply(elsewhere)  # as ``Module.to`` does, with what layers do on a move, such as to flatten their weights
