"""Gradual pruning by masks, driven by how much of a training is done; no framework is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphprune.compiling import Masked
from graphprune.errors import UsageError, unknown
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.keeping import given_widths
from graphprune.passes.selection.select import selection_pass
from graphprune.passes.selection.target import asked_for, parse_target
from graphprune.plans.plan import Plan
from graphprune.schedule import SCHEDULES, share_done


class GradualPruning:
    """Masks of :func:`graphprune.masked` that close step by step while the model trains; at the end, ``masks.rewrite()``.

    masks: those of the model that trains. target, keep: what must remain of it and of some of its layers in the end, as
    ``macs=50%`` or ``params=2M``, and ``{"layer4.*": "30%"}``; not a latency. criterion, select, ranking: as in
    :func:`graphprune.prune`, of criteria that need no data. cuts: how often the masks change, between the shares ``begin`` and
    ``end`` of the training. schedule: how far each goes, as in :func:`graphprune.schedule.share_done`: ``cubic`` or ``linear``.

    A unit that was taken out can come back at a later cut, if its weights say so by then. Nothing has to be saved for a training
    that goes on from a checkpoint: the masks, and how many cuts were made, are part of the state of ``masks``. Load it after this
    was made, or the cut that it holds is made once more.

    Raises UsageError for options that no cut could follow, and TargetError where the masks cannot reach the target.

    >>> import torch, graphprune
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> masks = graphprune.masked(model, torch.zeros(1, 8))
    >>> pruning = GradualPruning(masks, "params=50%", cuts=4)
    >>> [pruning.step(number / 100) for number in range(100)].count(True)
    4
    >>> masks.rewrite().model.get_submodule("0").out_features < 17
    True
    """

    def __init__(
        self,
        masks: Masked,
        target: str | Mapping[str, float | str] | None = None,
        *,
        keep: Mapping[str, float | str] | None = None,
        criterion: str = "l2",
        select: str = "select",
        ranking: str = "global",
        cuts: int = 10,
        begin: float = 0.0,
        end: float = 0.5,
        schedule: str = "cubic",
    ) -> None:
        if not isinstance(masks, Masked):
            raise UsageError(
                f"Masks are what closes, and a {type(masks).__name__} has none. Give graphprune.masked(model, inputs)."
            )
        if schedule not in SCHEDULES:
            raise UsageError(unknown("schedule", schedule, SCHEDULES, "Schedules"))
        if cuts < 1 or not 0 <= begin < end <= 1:
            raise UsageError(
                f"cuts={cuts} between begin={begin} and end={end} make no schedule. "
                "Give at least one cut, and shares of the training with 0 <= begin < end <= 1."
            )
        self.masks = masks
        self._targets = [parse_target(kind, value) for kind, value in asked_for(target, keep).items()]
        if any(one.kind == "latency" for one in self._targets):
            raise UsageError("Masks save no time, so no latency can be measured while they close. Set a target on macs or params.")
        self._given = given_widths(keep, masks.groups, masks.filters) if keep else ()
        self._score = ScorePass(criterion)
        self._how = (select, ranking)
        self._cuts, self._begin, self._end, self._schedule = cuts, begin, end, schedule
        self._before, self._known = int(masks.cuts), 0  # cuts of another schedule; those of this one, as last looked up
        self._plan(cuts)  # what cannot be done is refused before anything is trained

    def step(self, done: float) -> bool:
        """Change the masks if a cut is due; returns whether they changed. done: the share of the training that is done, 0 to 1.

        Raises UsageError for any other number, such as that of an epoch.
        """
        if not 0 <= done <= 1:
            raise UsageError(
                f"step takes the share of the training that is done, 0 to 1, and was given {done}. Give epoch / epochs."
            )
        way = (done - self._begin) / (self._end - self._begin)
        due = max(0, min(self._cuts, int(way * self._cuts + 1e-9)))
        if due == self._known:
            return False
        self._known = int(self.masks.cuts) - self._before  # a checkpoint may have been loaded
        if due <= self._known:
            return False
        self.masks.set(self._plan(due))
        self.masks.cuts.fill_(self._before + due)
        self._known = due
        return True

    def _plan(self, cut: int) -> Plan:
        select, ranking = self._how
        share, measures, full = share_done(cut, self._cuts, self._schedule), self.masks.costs.measures(), self.masks.groups.widths
        wholes = {target: float(measures[target.kind](full)) for target in self._targets}
        options: dict[str, Any] = {
            target.kind: 1 - share * (1 - min(1.0, target.limit(whole) / whole)) for target, whole in wholes.items()
        }
        options["keep"] = {one.pattern: one.channels(share, one.group.size) for one in self._given}
        plan = self.masks.run([self._score, selection_pass(select, ranking, options)]).plan
        assert plan is not None
        return plan
