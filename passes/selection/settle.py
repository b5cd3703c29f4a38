"""Targets on latency are met as measured: what is chosen by predictions is timed, and that puts the predictions right.

The latency of layers is not additive, and a fit is not exact. So each slim model that was timed corrects the model by which the
next one is chosen (:mod:`graphprune.latency.correction`). Choosing takes what looks cheap, and so what is predicted too low: how
far choices of a corrected model were off lowers the budget of the next. Where that does not settle it, what lies between a choice
that is too slow and one that is fast enough is tried. (SP-LAMP, section on stages, calibrates a table's sum to the whole model once
for each stage.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from graphprune.channels.groups import Ints
from graphprune.costs.measures import Measure
from graphprune.errors import TargetError
from graphprune.latency.correction import Corrected, Seen, corrected
from graphprune.latency.source import Measured
from graphprune.passes.selection.bounds import Limit

_MODELS: Final = 8  # slim models that are timed at most
_REPEATS: Final = 4  # times that one is measured at most, until it is clear whether it is close
_CLOSE: Final = 0.01  # of the target: a measured latency this near is the target's
_SURE: Final = 2.0  # standard errors
_BY_MODEL: Final = 4  # tries from which on every other one lies between two others
_BUDGETS: Final = 8  # that a pass is asked about for one new choice
_LESS: Final = 1e-6  # share by which a budget is lowered so that it no longer allows what it did


@dataclass(frozen=True)
class Choice:
    """Widths that a pass chose. notes: for the record. measured: their latency, where it was."""

    widths: Ints
    notes: dict[str, str] = field(default_factory=dict)
    measured: Measured | None = None


@dataclass(frozen=True)
class Options:
    """What there is to choose from.

    best: the best choice within milliseconds by a model of the latency; raises TargetError where none is so fast. between: the
    allowed widths at a share of the way between two others, None where they break another target. worth: the importance that widths
    keep. measure: times a slim model and the whole one. full, least: the widest and the narrowest widths. advice: what a user can
    do where the least are too slow.
    """

    best: Callable[[Measure, float], Choice]
    between: Callable[[Ints, Ints, float], Ints | None]
    worth: Callable[[Ints], float]
    measure: Callable[[Ints], Measured]
    full: Ints
    least: Ints
    advice: str = "Loosen the target."


def settled(limit: Limit, options: Options) -> Choice:
    """Of the choices that were timed and are at most 1 % above the target, the one that keeps the most importance.

    limit: the target, the model that predicts, and the predicted milliseconds that the target amounts to. It stops when that one is
    within 1 %, or when nothing new is allowed nearer, which the choice's notes tell. Where two standard errors of a
    measurement are more than 1 %, they take the place of this: nothing nearer could be told from the target. A slim model that is
    no faster than a wider one is never returned. Raises TargetError where all that were tried are slower, the narrowest among
    them: a prediction is not enough to refuse a target.
    """
    return _Settling(limit, options).run()


@dataclass(frozen=True)
class _Try:
    choice: Choice
    measured: Measured
    reached: float  # the measured latency as a share of the target's
    surprise: float | None  # by how much it exceeds what the model said that chose it, as a logarithm

    @property
    def off(self) -> float:
        return abs(self.reached - 1)

    @property
    def reach(self) -> float:
        """How far from the target, as a share of it, is as good as there."""
        return max(_CLOSE, _SURE * self.measured.error)

    @property
    def settles(self) -> bool:
        return self.off <= self.reach

    @property
    def fits(self) -> bool:
        return self.reached <= 1 + self.reach


class _Settling:
    """The state of one search."""

    def __init__(self, limit: Limit, options: Options) -> None:
        self._limit = limit
        self._options = options
        self._tries: list[_Try] = []
        self._refusal: TargetError | None = None  # of the prediction, before anything was timed

    def run(self) -> Choice:
        while len(self._tries) < _MODELS and not (self._top is not None and self._top.settles):
            model = self._model()
            chosen = self._next(model)
            if chosen is None:
                break
            self._tries.append(self._timed(chosen, float(model(chosen.widths))))
        return self._best()

    # ------------------------------------------------------------------------------------------------ what is known

    def _model(self) -> Corrected:
        """The model after all that was measured, in which the target is still the milliseconds that the limit says."""
        seen = []
        for one in self._tries:
            measured, scale = one.measured, self._limit.most * one.reached / one.measured.slim
            parts = np.full(len(self._limit.measure.terms), np.nan) if measured.parts is None else measured.parts
            seen.append(Seen(one.choice.widths, measured.slim * scale, measured.error, parts * scale))
        return corrected(self._limit.measure, seen, self._options.full, self._limit.most)

    def _timed(self, chosen: Choice, predicted: float) -> _Try:
        """The choice measured, again while its error leaves open whether it is close to the target; once more in any case where it
        seems to be, since one measurement does not see what changes from one to the next, and the search ends with this one."""
        measured = self._options.measure(chosen.widths)
        for again in range(1, _REPEATS):
            off = abs(self._reached(measured) - 1)
            sure = abs(off - _CLOSE) > _SURE * measured.error
            if sure and (off > _CLOSE or again > 1 or not measured.error):
                break
            measured = measured.pooled(self._options.measure(chosen.widths))
        reached = self._reached(measured)
        surprise = float(np.log(reached * self._limit.most / predicted)) if self._tries else None
        return _Try(replace(chosen, measured=measured), measured, reached, surprise)

    def _reached(self, measured: Measured) -> float:
        return measured.slim / self._limit.target.limit(measured.whole)

    def _known(self, widths: Ints) -> _Try | None:
        return next((one for one in self._tries if np.array_equal(one.choice.widths, widths)), None)

    @property
    def _bracket(self) -> tuple[_Try | None, _Try | None]:
        """The slowest that is fast enough and the fastest that is not."""
        fast = [one for one in self._tries if one.fits]
        slow = [one for one in self._tries if not one.fits]
        return max(fast, key=lambda t: t.reached, default=None), min(slow, key=lambda t: t.reached, default=None)

    # ------------------------------------------------------------------------------------------------ what to try next

    def _next(self, model: Measure) -> Choice | None:
        """A choice that was not timed yet; None where there is none."""
        ways = [self._by_model, self._between, self._wider, self._narrowest]
        if any(one.settles for one in self._tries):  # but keeps less than a faster one does
            ways = [self._wider]
        elif len(self._tries) >= _BY_MODEL and len(self._tries) % 2 == 0:
            ways = [self._between, self._by_model, self._wider]
        if len(self._tries) >= _BY_MODEL:
            ways.insert(0, self._narrowest)
        for way in ways:
            chosen = way(model)
            if chosen is not None:
                return chosen
        return None

    def _by_model(self, model: Measure) -> Choice | None:
        """The model's choice for the target; where that was timed, those of budgets around it, by bisection."""
        surprises = [one.surprise for one in self._tries if one.surprise is not None] or [0.0]
        usual = np.mean(surprises) if any(one.fits for one in self._tries) else max(surprises)
        budget = self._limit.most / float(np.exp(usual))
        low, high = 0.0, float("inf")  # budgets that give what is fast enough, or nothing; and what is too slow
        for _ in range(_BUDGETS):
            chosen = self._within(model, budget)
            known = None if chosen is None else self._known(chosen.widths)
            if known is None and (chosen is not None or not self._tries):
                return chosen
            if known is not None and not known.fits:
                high = min(budget, float(model(known.choice.widths)) * (1 - _LESS))
            else:
                low = budget
            if known is None:
                high = min(high, *(float(model(one.choice.widths)) for one in self._tries))
            elif high == float("inf"):
                high = low / min(known.reached, 1 - _CLOSE) ** 2
            budget = (low * high) ** 0.5 if low else high
        return None

    def _within(self, model: Measure, budget: float) -> Choice | None:
        """The model's choice for a budget; None where it says that nothing is so fast."""
        try:
            return self._options.best(model, budget)
        except TargetError as error:
            self._refusal = self._refusal or error
            return None

    def _between(self, model: Measure) -> Choice | None:
        """Widths between the two tries around the target, where a straight line between them would have it, or halfway."""
        fast, slow = self._bracket
        if fast is None or slow is None:
            return None
        line = (1 - fast.reached) / (slow.reached - fast.reached)
        for share in (line, 0.5, 0.25, 0.75):
            widths = self._options.between(fast.choice.widths, slow.choice.widths, share)
            if widths is not None and self._known(widths) is None:
                return Choice(widths)
        return None

    def _wider(self, model: Measure) -> Choice | None:
        """The best choice so far, widened on the way to a slower one, or to the whole, as far as a straight line has it."""
        top = self._top
        if top is None:
            return None
        widths = top.choice.widths
        slower = [(one.choice.widths, one.reached) for one in self._tries if not one.fits and (one.choice.widths >= widths).all()]
        slower.append((self._options.full, top.measured.whole / self._limit.target.limit(top.measured.whole)))
        upper, reached = min(slower, key=lambda one: one[1])
        line = (1 - top.reached) / max(reached - top.reached, _LESS)
        for share in (line, line / 2, (1 + line) / 2) if 0 < line < 1 else ():
            found = self._options.between(widths, upper, share)
            if found is not None and self._known(found) is None:
                return Choice(found)
        return None

    def _narrowest(self, model: Measure) -> Choice | None:
        """The narrowest widths, where nothing was fast enough: the model may be wrong about them as about any other."""
        if any(one.fits for one in self._tries):
            return None
        widths = self._options.between(self._options.least, self._options.least, 0.0)
        return None if widths is None or self._known(widths) is not None else Choice(widths)

    # ------------------------------------------------------------------------------------------------ what to return

    @property
    def _top(self) -> _Try | None:
        """Of those that are fast enough, the one that keeps the most importance."""
        fitting = [one for one in self._tries if one.fits and not self._outdone(one)]
        return max(fitting, key=lambda one: (self._options.worth(one.choice.widths), -one.reached), default=None)

    def _best(self) -> Choice:
        found = self._top
        if found is None:
            raise self._too_slow()
        return replace(found.choice, notes={**found.choice.notes, "latency": self._told(found)})

    def _outdone(self, one: _Try) -> bool:
        """Whether a wider model was no slower."""
        widths = one.choice.widths
        wider = (other for other in self._tries if other is not one and (other.choice.widths >= widths).all())
        return any(other.reached <= one.reached for other in wider)

    def _told(self, found: _Try) -> str:
        count = len(self._tries)
        text = f"{found.measured.ratio.percent} measured; {count} slim model{'s' * (count > 1)} timed"
        fast, slow = self._bracket
        if found.settles:
            return text
        if fast is not None and fast.reached > found.reached:
            return f"{text}; one at {fast.measured.share:.1%} keeps no more"
        above = f", the next slower one at {slow.measured.share:.1%}" if slow is not None else ""
        return f"{text}{above}: none was found nearer to the target"

    def _too_slow(self) -> TargetError:
        if not self._tries:
            assert self._refusal is not None, "another target is in the way"
            return self._refusal
        measured = min(self._tries, key=lambda one: one.reached).measured
        return TargetError(
            f"Target {self._limit.target} cannot be met: the fastest slim model that these options give takes "
            f"{measured.slim:.4g} ms, {measured.share:.1%} of the original's {measured.whole:.4g} ms. {self._options.advice}"
        )
