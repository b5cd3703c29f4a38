"""Which widths to measure.

What comes next follows from the table so far, so that a run that was killed goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from graphprune.channels.groups import Ints
from graphprune.latency.fit import Floats
from graphprune.latency.layer_times import fit_families
from graphprune.latency.table import LatencyTable, Sample

_SEED: Final = 0
_DESIGN: Final = 0.6  # share of the samples that are spread evenly; the rest divides what they leave unexplained
_HELD_OUT: Final = 0.15  # share of the samples that only test predictions
_ROUND: Final = 3  # models of a round, which are timed by turns
_WIDE: Final = 0.1  # what an interval of a group's whole width counts for beside its unexplained steps, which add up to 1
_FLAT: Final = 0.005  # times that differ by less than this share of the whole model's are one stair, however steady the clock


@dataclass(frozen=True)
class Wanted:
    """A width vector to measure. held_out: to test predictions with."""

    widths: tuple[int, ...]
    held_out: bool = False


Design = Callable[[LatencyTable], list[Wanted]]


def pending(table: LatencyTable) -> list[Wanted]:
    """What is to be measured next by the table's settings, in one round; empty when all is done.

    Rounds are replayed from the start: a round that was cut short goes on in its middle.
    """
    design = DESIGNS[table.settings.mode]
    done = 0
    while wanted := design(table.first(done)):
        if done + len(wanted) > len(table.samples):
            return wanted[len(table.samples) - done :]
        done += len(wanted)
    return []


def steps_of(table: LatencyTable) -> Ints:
    """The smallest interval of each group that is divided."""
    step = table.settings.step
    steps: Ints = np.full_like(table.full, step) if step else np.maximum(1, table.full // 32)
    return steps


def expected_samples(table: LatencyTable) -> int:
    """How many samples there will be at most."""
    if table.settings.mode == "layers":
        return max(table.settings.samples, len(table.samples))
    inner = np.ceil(table.full / steps_of(table)).astype(int)
    return int(inner.sum()) + 2 + _held_out(table)


def _held_out(table: LatencyTable) -> int:
    return max(2, round(_HELD_OUT * table.settings.samples)) if table.full.size else 0


def _begin(table: LatencyTable) -> list[Wanted]:
    """The whole model and the least one, which everything else lies between, and the samples to test with."""
    full = table.full
    tests = spread(full, _held_out(table), _SEED + 1)
    return [Wanted(tuple(full.tolist())), Wanted((1,) * full.size), *(Wanted(tuple(row), True) for row in tests.tolist())]


def spread(full: Ints, count: int, seed: int) -> Ints:
    """Width vectors from 1 to the full widths, spread evenly over each group (a Latin hypercube); (count, groups)."""
    if not full.size or not count:
        return np.ones((0, full.size), dtype=np.int64)
    from scipy.stats import qmc  # not before it is needed: it takes long to import

    places = qmc.LatinHypercube(full.size, rng=np.random.default_rng(seed)).random(count)
    widths: Ints = np.minimum(full, 1 + np.floor(places * full).astype(np.int64))
    return widths


def layers_design(table: LatencyTable) -> list[Wanted]:
    """All groups vary at once. First spread evenly, so that each layer's lengths are covered jointly; then in each round every
    group divides the intervals in which its layers' times are explained worst, all groups in the same models."""
    done, total = len(table.samples), table.settings.samples
    if not done:
        even = spread(table.full, max(1, round(_DESIGN * total)) if table.full.size else 0, _SEED)
        return [*_begin(table), *(Wanted(tuple(row)) for row in even.tolist())][:total]
    if done >= total or not table.full.size:
        return []
    count = min(_ROUND, total - done)
    used = table.fitted()
    steps = unexplained(used)
    columns = [
        divided(used.widths[:, group], steps[:, group], full, least, count)
        for group, (full, least) in enumerate(zip(table.full.tolist(), steps_of(table).tolist(), strict=True))
    ]
    # Each group deals its widths in an order of its own: joint coverage again.
    random = np.random.default_rng(_SEED + done)
    return [Wanted(tuple(row)) for row in np.stack([random.permutation(column) for column in columns], axis=-1).tolist()]


def unexplained(table: LatencyTable) -> Floats:
    """What the fits leave of the layers' times, for each sample and group, in milliseconds: (samples, groups)."""
    layers = fit_families(table)
    measured = np.array([[sample.nodes.get(name, 0.0) for name in layers.names] for sample in table.samples])
    rest = measured - layers(table.widths.astype(np.float64))
    result = np.zeros((len(table.samples), table.full.size))
    for column, groups in zip(rest.T, layers.owners, strict=True):
        result[:, list(groups)] += column[:, None]
    return result


def divided(widths: Ints, rest: Floats, full: int, least: int, count: int) -> Ints:
    """Where one group divides next: middles of the intervals with the largest steps in what is unexplained, ``count`` of them.

    An interval of ``least`` or less is left as it is; where no other is left, the widest widths are measured again.
    """
    known, first = np.unique(widths, return_index=True)
    values = rest[first].tolist()
    intervals = list(zip(known[:-1].tolist(), known[1:].tolist(), values[:-1], values[1:], strict=True))
    total = sum(abs(right - left) for _, _, left, right in intervals) or 1.0
    ranked = sorted(intervals, key=lambda i: -abs(i[3] - i[2]) / total - _WIDE * (i[1] - i[0]) / full)
    middles = [(low + high) // 2 for low, high, _, _ in ranked if high - low > least][:count]
    return np.array(middles + [full] * (count - len(middles)), dtype=np.int64)


def model_design(table: LatencyTable) -> list[Wanted]:
    """One group at a time, the others at full width, as in the SP-LAMP paper; but only intervals whose ends differ are divided."""
    full = table.full
    if not table.samples:
        alone = [Wanted(_alone(full, group, 1)) for group in range(full.size) if full[group] > 1 and full.size > 1]
        return [*_begin(table), *alone]
    found: list[Wanted] = []
    narrower = table.widths < full
    for group, least in enumerate(steps_of(table).tolist()):
        rows = np.flatnonzero(~np.delete(narrower, group, axis=1).any(axis=1))
        samples = {table.samples[row].widths[group]: table.samples[row] for row in rows[::-1]}
        at = sorted(samples)
        found += [
            Wanted(_alone(full, group, (low + high) // 2))
            for low, high in pairwise(at)
            if high - low > least and differ(samples[low], samples[high], _FLAT * float(table.whole_ms[0]))
        ]
    return found


def _alone(full: Ints, group: int, width: int) -> tuple[int, ...]:
    widths = full.tolist()
    widths[group] = width
    return tuple(widths)


def differ(one: Sample, other: Sample, least: float) -> bool:
    """Whether two whole-model times differ by more than their spreads, and by more than ``least`` milliseconds."""
    low, high = sorted((one.whole, other.whole), key=lambda timing: timing.median_ms)
    noise = max(high.median_ms - high.low_ms, low.high_ms - low.median_ms, least)
    return high.median_ms - low.median_ms > noise


DESIGNS: Final[dict[str, Design]] = {"layers": layers_design, "model": model_design}
