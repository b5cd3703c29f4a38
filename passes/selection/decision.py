"""What all selection passes share: their options, the widths that these allow, and the plan that keeps the most important units."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np

from graphprune.channels.groups import Floats, Group, Groups, Ints, Kept
from graphprune.costs.cost import CostModel
from graphprune.costs.measures import Measure
from graphprune.errors import TargetError, UsageError
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.analysis.filters import Filters
from graphprune.passes.scoring.score import latest, unit_order
from graphprune.passes.selection.bounds import Bounds, Limit, Stepped, make_bounds
from graphprune.passes.selection.keeping import kept_units
from graphprune.passes.selection.levers import Lattice
from graphprune.passes.selection.settle import Choice, Options, settled
from graphprune.passes.selection.solvers.problem import Choices
from graphprune.passes.selection.target import KINDS, Target, parse_target
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.registry import pass_class, providers
from graphprune.plans.plan import make_plan
from graphprune.scores import Scores


@dataclass(frozen=True)
class Budgeted(Pass):
    """A pass that chooses what to remove by the last scores, until targets are met.

    channels, params, macs, flops, weight_bytes, memory, latency: what must remain, as a share (``0.5``, ``50%``) or an amount
    (``60M``, ``20MB``, ``3.2ms``); several are met together. A latency is the slim model's as it is measured, if it can be
    (:mod:`graphprune.passes.selection.settle`). round_to: kept channels of each group are a multiple of this where the group is
    wide enough; ``auto`` takes the widths at which a target's measure steps, all of them where none says. min_channels: units
    that every group keeps at least. max_ratio: largest share of a group that may go. keep: what stays of some groups, by patterns
    (:func:`~graphprune.passes.selection.keeping.kept_units`), ``1`` being a channel and ``1.0`` all;
    targets are met by the others, which stay whole where there is none.
    """

    requires: ClassVar[tuple[Any, ...]] = (ChannelGroups, ModelCost, Filters)
    preserves: ClassVar[Any] = "all"
    needs: ClassVar[tuple[str, ...]] = ("scores",)
    provides: ClassVar[tuple[str, ...]] = ("plan",)
    streams: ClassVar[bool] = True

    channels: float | str | None = None
    params: float | str | None = None
    macs: float | str | None = None
    flops: float | str | None = None
    weight_bytes: float | str | None = None
    memory: float | str | None = None
    latency: float | str | None = None
    round_to: int | Literal["auto"] = 1
    min_channels: int = 1
    max_ratio: float = 1.0
    keep: Mapping[str, int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.is_open and not self.keep:
            raise UsageError(f"{self.name} needs a target, as in {self.name}{{macs=50%}}; choose from {', '.join(KINDS)}.")
        self.check_floors()

    def check_floors(self) -> None:
        """Raise UsageError for options that say nothing sensible about widths."""
        for option in ("round_to", "min_channels"):
            count = getattr(self, option)
            if (option, count) != ("round_to", "auto") and not (isinstance(count, Integral) and int(count) >= 1):
                raise UsageError(f"{option}={count!r} of {self.name} is no whole number of at least 1.")
        if not isinstance(self.keep, Mapping):
            raise UsageError(f'keep={self.keep!r} of {self.name} is no mapping; write it as {{"layer1.*": "70%"}}.')
        if not (isinstance(self.max_ratio, Real) and 0 < self.max_ratio <= 1):
            raise UsageError(f"max_ratio={self.max_ratio!r} of {self.name} is no number over 0 and at most 1.")

    @abstractmethod
    def choose(self, question: Question, analyses: AnalysisView) -> Choice:
        """The widths that meet the question's bounds. Raises TargetError where none do, saying how far the model can go."""

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Attach the plan. Raises TargetError when a target cannot be met, saying how far the model can go."""
        question = self.question(program, analyses)
        if not self.is_open:
            return question.decide(Choice(question.rounded(question.groups.widths)))
        limit = question.bounds.of("latency")
        if limit is None or program.latency is None or program.latency.measure is None:
            choice = self.choose(question, analyses)
            return question.decide(choice if limit is None else _predicted(choice, limit, question.groups.widths))

        def best(model: Measure, most: float) -> Choice:
            within = question.bounds.but("latency", Limit(limit.target, model, most))
            return self.choose(replace(question, bounds=within), analyses)

        measure, full, advice = program.latency.measure, question.groups.widths, question.advice(limit)
        options = Options(best, question.between, question.worth, measure, full, question.least, advice)
        return question.decide(settled(limit, options))

    @property
    def is_open(self) -> bool:
        """Whether there is more to choose than which units groups of given widths keep."""
        return bool(self.targets)

    @property
    def targets(self) -> list[Target]:
        """The targets that were given."""
        given = ((kind, getattr(self, kind)) for kind in KINDS)
        return [parse_target(kind, value) for kind, value in given if value is not None]

    def question(self, program: Program, analyses: AnalysisView) -> Question:
        """What is to be decided about a program."""
        groups, cost = analyses.get(ChannelGroups), analyses.get(ModelCost)
        bounds = make_bounds(self.targets, cost.measures(program.latency), groups.widths)
        sizes = groups.widths
        floors = np.maximum(self.min_channels, np.ceil(sizes * (1 - self.max_ratio) - 1e-9).astype(np.int64))
        kept = kept_units(self.keep, groups, analyses.get(Filters), program.levers) if self.keep else {}
        floors[[*kept]] = [*kept.values()]
        return Question(program, groups, cost, latest(program.scores), bounds, floors, self.round_to, kept, self.keep)


def budgeted_passes() -> list[str]:
    """Names of the passes that select by the last scores and by targets."""
    return [name for name in providers("plan") if issubclass(pass_class(name), Budgeted)]


@dataclass(frozen=True)
class Question:
    """A program with scores and bounds, of which some units are to go. floors: units that each group keeps. given: of groups that
    keep just so many, that number; keep: how the user said so."""

    program: Program
    groups: Groups
    cost: CostModel
    scores: Scores
    bounds: Bounds
    floors: Ints
    round_to: int | Literal["auto"] = 1
    given: Mapping[int, int] = field(default_factory=dict)
    keep: Mapping[str, int | float | str] = field(default_factory=dict)

    @cached_property
    def ordered(self) -> Sequence[Ints]:
        """Units of each group from least to most important."""
        return unit_order(self.scores.values, self.groups)

    @cached_property
    def widths(self) -> tuple[Ints, ...]:
        """The widths that each group may have, ascending; the last is the full one, but of a group whose width is given."""
        measures = [limit.measure for limit in self.bounds.limits]
        found = [_allowed(group, int(self.floors[group.index]), self.round_to, measures) for group in self.groups.prunable]
        levers = () if self.program.levers is None else self.program.levers.each
        for lever in (lever for lever in levers if self.given.keys() & set(lever.groups)):
            first = lever.widths(int(lever.allowed(found, self.groups.widths)[0]), self.groups.widths)
            for index, width in zip(lever.groups, first.tolist(), strict=True):
                found[index] = np.array([width])
        return tuple(each[:1] if index in self.given else each for index, each in enumerate(found))

    def with_silent_units(self) -> Question:
        """The question with floors that hold all units without a score: nothing is known of what they are worth."""
        silent = [int(np.isnan(self.scores.values[group.units]).sum()) for group in self.groups.prunable]
        return replace(self, floors=np.maximum(self.floors, np.array(silent, dtype=np.int64)))

    def choices(self) -> Choices:
        """The widths that groups may have, and what each keeps: the scores of its most important units but the first, summed."""
        values = []
        for units, widths in zip(self.ordered, self.widths, strict=True):
            scores: Floats = np.nan_to_num(self.scores.values[units[::-1]], nan=0.0, posinf=np.inf, neginf=-np.inf)
            values.append(np.cumsum(scores)[widths - 1] - scores[0])
        return Choices(self.widths, tuple(values))

    @property
    def least(self) -> Ints:
        """The narrowest allowed width of every group."""
        return np.array([allowed[0] for allowed in self.widths], dtype=np.int64)

    def rounded(self, widths: Ints) -> Ints:
        """Every width as the next wider one that is allowed, or the widest; groups on one lever all at the step of the widest."""
        starts, table = self._rounded
        found: Ints = table[starts + widths]
        return found if self.lattice is None else self.lattice.rounded(found)

    @cached_property
    def lattice(self) -> Lattice | None:
        """The widths that levers allow together; None where each group has its own."""
        levers = self.program.levers
        return None if levers is None else Lattice(levers, self.widths, self.groups.widths)

    @cached_property
    def _rounded(self) -> tuple[Ints, Ints]:
        """For all groups one after the other, the allowed width from each width on; and where each group begins."""
        sizes = self.groups.widths + 1
        starts = np.cumsum(sizes) - sizes
        allowed = np.concatenate([np.zeros(0, dtype=np.int64), *(w + s for w, s in zip(self.widths, starts.tolist(), strict=True))])
        last = np.cumsum([widths.size for widths in self.widths], dtype=np.int64) - 1
        places = np.minimum(np.searchsorted(allowed, np.arange(sizes.sum())), np.repeat(last, sizes))
        return starts, allowed[places] - np.repeat(starts, sizes)

    def between(self, one: Ints, other: Ints, share: float) -> Ints | None:
        """The allowed widths at a share of the way from some widths to others; None where these break another target."""
        found = self.rounded(one + np.round(share * (other - one)).astype(np.int64))
        return found if self.bounds.but("latency").met(found) else None

    def worth(self, widths: Ints) -> float:
        """The sum of the scores of the most important units, of each group as many as it is wide."""
        kept = self._kept(widths).units
        return float(np.nan_to_num(self.scores.values[kept], posinf=np.inf, neginf=-np.inf).sum())

    def check_reachable(self, least: Ints) -> None:
        """Raise TargetError unless these widths, the least that can be had, meet the bounds; say how far the model can go."""
        for limit in self.bounds.limits:
            if not self.groups.prunable or float(limit.measure(least)) > limit.most:
                raise self._out_of_reach(limit, least)

    def _out_of_reach(self, limit: Limit, least: Ints) -> TargetError:
        original, reachable = float(limit.measure(self.groups.widths)), float(limit.measure(least))
        share = reachable / original if original else 1.0
        return TargetError(
            f"Target {limit.target} cannot be met: with these options the model can go down to {share:.1%} "
            f"({amount(reachable)} {limit.measure.unit or limit.target.kind}). {self.advice(limit)}"
        )

    def advice(self, limit: Limit) -> str:
        """What is in the way of a target that cannot be met, and what to do."""
        # Kernel extents (axes from 2 on) are no channels and nothing that a user could free.
        frozen = sorted((g for g in self.groups.frozen if any(m.axis < 2 for m in g.members)), key=lambda g: -_slice_count(g))
        blockers = list(dict.fromkeys(f"{g.name} ({g.reason})" for g in frozen))
        if (untraced := self.program.untraced) and self.program.scopes:
            scopes = len(self.program.scopes)
            blockers.insert(0, f"{untraced}, and what the code around its {scopes} scopes makes or uses stays")
        names = "; ".join(blockers[:3]) or ("the floors of its groups" if self.groups.prunable else "it has no channels")
        remedy = "Loosen the target, exclude, keep, min_channels, max_ratio or round_to."
        if untraced:
            remedy = f"Make one submodule of the layers before what does not trace, which is a scope then; or l{remedy[1:]}"
        if self.lattice is not None:
            remedy = f"{remedy[:-1]}, or take any widths (--widths any), with which no config makes the slim model."
        if _looks_like_a_share(limit.target):
            remedy = f"Did you mean {limit.target}%?"
        return f"In the way: {names}. {remedy}"

    def decide(self, choice: Choice) -> Program:
        """The program with the plan that keeps the most important units of each group."""
        scores, program, widths = self.scores, self.program, choice.widths
        targets = [limit.target for limit in self.bounds.limits]
        if self.given and self.lattice is not None:
            self.lattice.check(widths)
        plan = make_plan(
            program.module,
            self.groups,
            self._kept(widths),
            policy=dict(program.policy),
            scopes=[scope.path for scope in program.scopes],
            scores={scores.criterion: {**scores.provenance, **choice.notes}},
            target={target.kind: target.text for target in targets},
            keep={pattern: str(amount).strip() for pattern, amount in self.keep.items()},
            achieved=self._achieved(choice),
            errors={} if choice.measured is None else {"latency": round(choice.measured.share * choice.measured.error, 6)},
        )
        return program.with_(plan=plan)

    def _kept(self, widths: Ints) -> Kept:
        keep = np.ones(self.groups.unit_count, dtype=bool)
        for units, width in zip(self.ordered, widths.tolist(), strict=True):
            keep[units[: units.size - width]] = False
        return Kept(self.groups, keep)

    def _achieved(self, choice: Choice) -> dict[str, float]:
        """Shares of the original that remain; of a latency the measured one, where it was measured."""
        shares = achieved(self.cost, choice.widths, self.groups.widths, [limit.measure for limit in self.bounds.limits])
        if choice.measured is not None:
            shares["latency"] = round(choice.measured.share, 6)
        return shares


def _predicted(choice: Choice, limit: Limit, full: Ints) -> Choice:
    """The choice with a note of what the table says of it."""
    slim, whole = float(limit.measure(choice.widths)), float(limit.measure(full))
    told = f"{slim / whole:.1%} predicted by the table ({slim:.4g} ms of {whole:.4g} ms); no slim model was timed"
    return replace(choice, notes={**choice.notes, "latency": told})


def achieved(cost: CostModel, widths: Ints, full: Ints, measures: Iterable[Measure] = ()) -> dict[str, float]:
    """Shares of the original's channels, parameters, MACs and other measures that remain at some widths."""
    after, before = cost.costs(widths), cost.costs(full)
    amounts: dict[str, tuple[float, float]] = {
        "channels": (int(widths.sum()), int(full.sum())),
        "params": (after.parameters, before.parameters),
        "macs": (after.macs, before.macs),
        **{measure.name: (float(measure(widths)), float(measure(full))) for measure in measures},
    }
    return {kind: round(left / original if original else 1.0, 6) for kind, (left, original) in amounts.items()}


def amount(value: float) -> str:
    """A cost in short, for messages."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _allowed(group: Group, floor: int, round_to: int | Literal["auto"], measures: Sequence[Measure]) -> Ints:
    """Widths that a group may have, ascending, up to its full one."""
    low = min(floor, group.size)
    if round_to == "auto":
        stepped = [np.asarray(measure.steps(group.index), dtype=np.int64) for measure in measures if isinstance(measure, Stepped)]
        steps = np.unique(np.concatenate(stepped)) if stepped else np.arange(low, group.size)
    else:
        step = round_to // gcd(round_to, group.channels_per_unit) if round_to > 1 else 1
        steps = np.arange(-(-low // step) * step, group.size, step)
    return np.append(steps[(steps >= low) & (steps < group.size)], group.size)


def _slice_count(group: Group) -> int:
    return group.size * sum(member.multiplicity for member in group.members)


def _looks_like_a_share(target: Target) -> bool:
    """Whether a plain number up to 100 was given, for an amount."""
    return target.amount is not None and target.amount <= 100 and target.text.isdecimal()
