"""Scores of all groups, as tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from graphprune.cli import tables
from graphprune.cli.loading import Job
from graphprune.cli.output import Output
from graphprune.cli.pictures import picture
from graphprune.cli.watching import PassProgress, shown
from graphprune.criteria import Floats
from graphprune.errors import UsageError
from graphprune.passes.analysis.channels import ChannelGroups, ChannelsPass, matches
from graphprune.passes.calibration.supply import calibrated
from graphprune.passes.scoring.score import ScorePass
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_manager import PassManager
from graphprune.scores import span
from graphprune.tracing import capture

_BARS: Final = " ▁▂▃▄▅▆▇█"
_BINS: Final = 16


@dataclass(frozen=True)
class Importance:
    """What one criterion says. groups: the scores of each prunable group's units by the group's name, NaN where it says nothing."""

    criterion: str
    groups: Mapping[str, Floats]


def score_all(
    job: Job,
    criteria: Sequence[str],
    how: Mapping[str, Any],
    constraints: Mapping[str, Any],
    pattern: str | None,
    output: Output,
) -> list[Importance]:
    """Score a model by each criterion. how: options of the pass that scores. constraints: of the pass that finds groups.

    Raises UsageError where no prunable group has the name.
    """
    with output.task("Scoring") as task:
        program = capture(job.source.model, job.inputs, scopes=job.scopes, source=job.source.text)
        passes = [ChannelsPass(**constraints), *(ScorePass(criterion=text, **how) for text in criteria)]
        program = calibrated(program, shown(job.calibration, task), seed=how["seed"], whole=(job.source.model, job.inputs))
        done = PassManager(passes, [PassProgress(task)]).run(program)
        groups = AnalysisManager().get(done, ChannelGroups)
    chosen = [group for group in groups.prunable if pattern is None or matches(group.name, pattern)]
    if not chosen:
        what = "The model has no prunable group" if pattern is None else f"No prunable group matches {pattern!r}"
        raise UsageError(f"{what}; `graphprune inspect` lists the groups and what freezes them.")
    return [Importance(text, {group.name: done.scores[text].values[group.units] for group in chosen}) for text in criteria]


def show(found: Sequence[Importance], output: Output) -> None:
    """Print a table of each criterion's distributions, and how far criteria agree."""
    agreement = rank_correlations(found)
    output.data({"criteria": {one.criterion: _data(one) for one in found}, "rank_correlation": agreement})
    for one in found:
        output.show(_table(one))
    if len(found) > 1:
        table = tables.plain_table("criteria", "#rank correlation", title="Agreement within groups (Spearman, mean over groups)")
        for pair, value in agreement.items():
            table.add_row(pair, "-" if value is None else f"{value:.2f}")
        output.show(table)


def rank_correlations(found: Sequence[Importance]) -> dict[str, float | None]:
    """Spearman's correlation of each pair of criteria within groups, as a mean over groups; None where none has one."""
    from scipy.stats import spearmanr

    result: dict[str, float | None] = {}
    for place, one in enumerate(found):
        for other in found[place + 1 :]:
            values = []
            for name, scores in one.groups.items():
                both = np.isfinite(scores) & np.isfinite(other.groups[name])
                first, second = scores[both], other.groups[name][both]
                if len(set(first.tolist())) > 1 and len(set(second.tolist())) > 1:
                    values.append(float(spearmanr(first, second).statistic))
            result[f"{one.criterion} and {other.criterion}"] = float(np.mean(values)) if values else None
    return result


def _table(one: Importance) -> Any:
    table = tables.plain_table("group", "#units", "#least", "#median", "#most", "distribution", title=f"Scores by {one.criterion}")
    table.columns[-1].no_wrap = True
    for name, scores in one.groups.items():
        table.add_row(tables.folded(name), str(scores.size), *span(scores), histogram(scores[np.isfinite(scores)]))
    return table


def histogram(scores: Floats) -> str:
    """How many scores lie in each of equal steps from the least to the most, as bars; any that has one shows a bar."""
    if not scores.size:
        return "no scores"
    counts, _ = np.histogram(scores, bins=_BINS)
    return "".join(_BARS[int(np.ceil(8 * count / counts.max()))] for count in counts)


def _data(one: Importance) -> dict[str, Any]:
    return {name: {"units": int(scores.size), "scores": scores.tolist()} for name, scores in one.groups.items()}


def plot_scores(found: Sequence[Importance], path: Path) -> None:
    """Draw the sorted scores of every group: one column of panels for each criterion, one line for each group."""
    names = list(found[0].groups)
    size = 1.5 + 3.2 * len(found), 0.8 + min(0.55 * len(names), 200)  # inches; a picture has a largest height
    with picture(path, len(names), len(found), size) as (_, axes):
        for column, one in enumerate(found):
            scores = [values[np.isfinite(values)] for values in one.groups.values()]
            known = np.concatenate(scores) if scores else np.zeros(0)
            low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
            for row, (name, values) in enumerate(zip(names, scores, strict=True)):
                panel = axes[row][column]
                panel.hist(values, bins=40, range=(low, high if high > low else low + 1), color="#3b6fb6")
                panel.set_yticks([])
                panel.spines[["top", "right", "left"]].set_visible(False)
                if column == 0:
                    panel.set_ylabel(f"{name} ({values.size})", rotation=0, ha="right", va="center", fontsize=8)
                panel.tick_params(labelbottom=row == len(names) - 1, labelsize=8)
            axes[0][column].set_title(one.criterion, fontsize=10)
            axes[-1][column].set_xlabel("score", fontsize=8)
