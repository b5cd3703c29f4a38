"""Which of many cuts has the least loss: all of them on the first two batches, and on the others those that can still win."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from graphprune.calibration import Batch, Calibration
from graphprune.channels.groups import Floats
from graphprune.errors import UsageError
from graphprune.passes.selection.trials.silence import Silenced
from graphprune.passes.selection.trials.sweep import Sweep
from graphprune.statistic import gathered

_FAVOURITES: Final = 3

#: What is minimised: of summed losses, the program's own, and the multiply-accumulates that cuts save. It grows with the loss.
Objective: TypeAlias = Callable[[Floats, float, Floats], Floats]

OBJECTIVES: Mapping[str, Objective] = {
    "loss": lambda loss, base, saved: loss,
    "loss-per-mac": lambda loss, base, saved: (loss - base) / saved,
}


@dataclass(frozen=True)
class Cut:
    """Units that go together. silenced: tensors without them. saved: multiply-accumulates that go with them."""

    silenced: Silenced
    saved: float


@dataclass(frozen=True)
class Winner:
    """The best cut by its place in the list, its mean loss, and that of the program as it is."""

    index: int
    loss: float
    before: float


class _Totals(NamedTuple):
    """Sums of the cuts' losses, of the program's own, and of samples."""

    sums: Floats
    base: float
    samples: float


class Race:
    """One comparison of cuts on all batches.

    Where losses are known to be at least 0, a cut is dropped as soon as its loss on the batches so far is more than the whole of
    another one's: the winner is the same. Processes of ``torch.distributed`` may hold a part of the data each.
    """

    def __init__(self, sweep: Sweep, cuts: Sequence[Cut], data: Calibration, objective: str) -> None:
        self._sweep = sweep
        self._trials = [cut.silenced for cut in cuts]
        self._saved = np.array([cut.saved for cut in cuts])
        self._data = data
        self._objective = OBJECTIVES[objective]
        self._sums = np.zeros(len(cuts))
        self._base, self._samples = 0.0, 0

    def run(self, batches: Sequence[Batch]) -> tuple[Winner, int]:
        """The winner, the first among equals; and the number of cuts that were dropped on the way.

        Raises UsageError where the program's own loss, or that of all cuts, is not finite.
        """
        everyone = list(range(len(self._trials)))
        alive = everyone
        self._see(batches[:1], everyone, own=True)
        first = self._totals()
        self._see(batches[1:2], everyone, own=True)
        if self._sweep.bounded:
            favourites = self._favourites(first, self._totals(), sum(batch.size for batch in batches))
            alive = self._narrowed(batches[2:], favourites)
        else:
            self._see(batches[2:], everyone, own=True)
        sums, base, samples = self._totals()
        best = int(np.argmin(self._keys(sums, base)))
        self._check(base, sums[best])
        return Winner(best, float(sums[best] / samples), base / samples), len(everyone) - len(alive)

    def _favourites(self, first: _Totals, both: _Totals, size: int) -> list[int]:
        """The cuts that seem best, if the samples after the first batch are like those of the second."""
        weight = (sum(gathered(size)) - first.samples) / max(1, both.samples - first.samples)
        with np.errstate(invalid="ignore"):
            sums = first.sums + (both.sums - first.sums) * weight
        keys = self._keys(sums, first.base + (both.base - first.base) * weight)
        found: list[int] = np.argsort(keys, kind="stable")[:_FAVOURITES].tolist()
        return found

    def _narrowed(self, batches: Sequence[Batch], favourites: Sequence[int]) -> list[int]:
        """Run the favourites to the end, then the cuts that can still win; those that cannot get an infinite loss."""
        self._see(batches, favourites, own=True)
        sums, base, _ = self._totals()
        bound = self._keys(sums, base)[favourites].min()
        alive = [index for index in range(len(sums)) if index not in favourites]
        for batch in batches:
            keys = self._keys(self._sums, base)
            alive = [index for index in alive if keys[index] <= bound]
            self._see([batch], alive, own=False)
        dropped = np.ones(len(sums), dtype=bool)
        dropped[[*favourites, *alive]] = False
        self._sums[dropped] = np.inf
        return [*favourites, *alive]

    def _see(self, batches: Sequence[Batch], chosen: Sequence[int], *, own: bool) -> None:
        """Add the losses of some cuts, and the program's own, on some batches."""
        for batch in batches if chosen else ():
            losses, base = self._sweep.run(batch, [self._trials[index] for index in chosen], whole=own)
            self._sums[list(chosen)] += np.array(losses) * batch.size
            if own:
                self._base += base * batch.size
                self._samples += batch.size

    def _totals(self) -> _Totals:
        """Sums over all processes."""
        totals = np.sum(gathered(np.append(self._sums, [self._base, self._samples])), axis=0)
        return _Totals(totals[:-2], float(totals[-2]), float(totals[-1]))

    def _keys(self, sums: Floats, base: float) -> Floats:
        return np.nan_to_num(self._objective(sums, base, self._saved), nan=np.inf, posinf=np.inf)

    def _check(self, base: float, best: float) -> None:
        for value in (base, best):
            if not np.isfinite(value):
                raise UsageError(f"The loss on {self._data.name} is {value}. Check the data, their scaling, and the weights.")
