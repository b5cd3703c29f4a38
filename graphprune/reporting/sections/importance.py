"""How important the units of every group are, and where the cut went."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from graphprune.calibration import Calibration
from graphprune.errors import GraphpruneError, UsageError
from graphprune.passes.calibration.supply import calibrated
from graphprune.passes.scoring.expression import parse_criterion
from graphprune.passes.scoring.score import ScorePass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.plans.plan import Plan
from graphprune.recipe import DataSection, Draft, RunSection
from graphprune.reporting.facts import Chart, Missing, Section, Table
from graphprune.reporting.material import Material
from graphprune.reporting.original import Original
from graphprune.scores import span
from graphprune.training.data import load_training_data

_BINS: Final = 40
_KNOWN: Final = ("criterion", "reduction", "normalise", "share", "seed")
_TITLE: Final = "Importance"


def importance(material: Material) -> Section | None:
    """Histograms of the scores of kept and removed units, in the original."""
    if len(material.runs) > 1:
        return None
    original = material.original
    if original is None:
        return _without(material.no_original, "")
    if material.run is not None and material.run.options.get("trained") is False:
        return _without("The run trained its dense model itself and keeps no copy, so that nothing can be scored.", "")
    if not original.weights:
        return _without(
            "The weights that were pruned are not at hand, so that nothing can be scored.",
            "Name the original with --against SOURCE and its weights with --weights FILE.",
        )
    chosen = _criterion(material.plan, material.criterion)
    try:
        values = _scores(original, chosen, material)
    except GraphpruneError as error:
        return _without(f"The units could not be scored by {chosen['criterion']}: {error}", "")
    return _drawn(original, values, chosen, material)


def _without(what: str, remedy: str) -> Section:
    return Section("importance", _TITLE, missing=[Missing(what, remedy)])


def _criterion(plan: Plan | None, wanted: str | None) -> dict[str, str]:
    """Options of the scoring: those that the user wants, or else those on record in the plan."""
    if wanted is not None:
        return {"criterion": wanted}
    known = next((scores for scores in (plan.scores if plan else {}).values() if "criterion" in scores), {"criterion": "l2"})
    return {name: known[name] for name in _KNOWN if name in known}


def _scores(original: Original, chosen: dict[str, str], material: Material) -> Any:
    data = material.calibration
    if data is None and any(term.needs for term in parse_criterion(chosen["criterion"])):
        data = _training_samples(material)
    program = calibrated(original.program, data, whole=(original.source.model, original.inputs))
    options: dict[str, Any] = {**chosen, "seed": int(chosen.get("seed", 0))}
    done = PassManager([ScorePass(**options)]).run(program)
    return done.scores[chosen["criterion"]].values


def _training_samples(material: Material) -> Calibration | None:
    """The samples that a run scored by, which its recipe names; None without a run.

    Raises UsageError for data that torchvision or a callable reads, unless the user trusts the recipe: some data sets are pickles.
    """
    run = material.run
    if run is None or "source" not in run.recipe.get("data", {}):
        return None
    draft = Draft({**run.recipe, "run": {"out": str(run.folder), **run.recipe.get("run", {})}})
    about, seed = draft.section("data", DataSection), draft.section("run", RunSection).seed
    if not (about.source == "digits" or Path(about.source).exists() or material.request.trust_pickle):
        raise UsageError(
            f"The criterion needs the run's data, {about.source}, and reading them can run code. Give --trust-pickle if you trust "
            "the recipe, or other data with --calibrate."
        )
    data = load_training_data(about.source, prepare=about.prepare, validation=about.validation, seed=seed, workers=about.workers)
    return data.calibration(about.samples, seed=seed)


def _drawn(original: Original, values: Any, chosen: dict[str, str], material: Material) -> Section:
    groups = original.groups.prunable
    every = np.concatenate([values[group.units] for group in groups]) if groups else np.zeros(0)
    known = every[np.isfinite(every)]
    if not known.size:
        return _without("No unit has a score.", "Choose another criterion with --criterion NAME.")
    edges = np.histogram_bin_edges(known, _BINS)
    drawn, rows, removed, stayed = [], [], [], []
    for group in groups:
        scores = values[group.units]
        stays = np.array(original.stays.get(group.index, [True] * group.size), dtype=bool)
        removed.append(scores[~stays])
        stayed.append(scores[stays])
        kept, gone = (np.histogram(part[np.isfinite(part)], edges)[0].tolist() for part in (scores[stays], scores[~stays]))
        drawn.append({"name": group.name, "kept": kept, "removed": gone})
        rows.append(_row(group.name, scores[stays], scores[~stays]))
    cut = _cut(np.concatenate(removed), np.concatenate(stayed))
    data = {"edges": edges.tolist(), "groups": drawn, "cut": cut["at"] if cut else None, "criterion": chosen["criterion"]}
    columns = ("group", "#units", "#removed", "#least", "#median", "#most", "#highest removed", "#lowest kept")
    how = ", ".join(
        f"{name} {value}"
        for name, value in chosen.items()
        if name not in ("criterion", "seed") and value not in ("default", "none")
    )
    which = f"in {material.request.weights}" if material.request.weights else f"that {material.named} comes with"
    lead = f"Scores by {chosen['criterion']}{f' ({how})' if how else ''}, of the weights {which}. {cut['text'] if cut else ''}"
    label = "How many units have which score, kept and removed."
    return Section(
        "importance", _TITLE, lead, charts=[Chart("importance", label, data, 320)], tables=[Table("Scores by group", columns, rows)]
    )


def _row(name: str, kept: Any, gone: Any) -> list[str]:
    scores = np.concatenate([kept, gone])
    bounds = [f"{float(pick(part)):.3g}" if part.size else "-" for pick, part in ((np.nanmax, gone), (np.nanmin, kept))]
    return [name, str(scores.size), str(gone.size), *span(scores), *bounds]


def _cut(gone: Any, kept: Any) -> dict[str, Any] | None:
    """The highest score that was removed, and how many units below it stayed: with one threshold for all there are none."""
    gone, kept = gone[np.isfinite(gone)], kept[np.isfinite(kept)]
    if not gone.size or not kept.size:
        return None
    at = float(gone.max())
    below = int((kept < at).sum())
    tail = f"{below:,} kept units score lower: groups were cut at thresholds of their own, or kept a least width."
    return {
        "at": at,
        "text": f"The highest score that was removed is {at:.3g}. {tail if below else 'Every kept unit scores higher.'}",
    }
