"""The summary: figures before and after, budgets and the proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from graphprune.cli import tables
from graphprune.cli.tables import count, share, size
from graphprune.costs.cost import Costs
from graphprune.errors import UsageError
from graphprune.passes.selection.target import parse_target
from graphprune.reporting.facts import Missing, Section, Table, Tile
from graphprune.reporting.material import Material
from graphprune.reporting.runs import Figures, Run

#: Costs by the kind of target on them: what they are called, and how they are written.
_SHOWN: Final[Mapping[str, tuple[str, Callable[[float], str]]]] = {
    "params": ("Parameters", count),
    "macs": ("MACs", count),
    "weight_bytes": ("Weights in memory", size),
    "memory": ("Peak activations", size),
}
_JUDGED: Final = {"test": "Accuracy, test", "validation": "Accuracy, validation"}


@dataclass(frozen=True)
class _Cost:
    label: str
    before: float
    after: float
    show: Callable[[float], str]


def summary(material: Material) -> Section | None:
    """Tiles of costs and accuracies, and a table of what was asked for and what came of it."""
    if len(material.runs) > 1:
        return None
    costs = _costs(material)
    tiles = [_tile(cost) for cost in costs] + _accuracies(material)
    missing = [] if costs else [Missing(what, "") for what in ("Costs are not known.", material.no_original) if what]
    if not any("ccuracy" in tile.label for tile in tiles):
        missing.append(Missing("The accuracy is not known.", _to_know_accuracy(material)))
    figures = [(tile.label, tile.before or "-", tile.after, tile.change or "-") for tile in tiles]
    found = [Table("Figures", ("", "#original", "#slim", "#remains or change"), figures)] if figures else []
    budgets = _budgets(material, costs)
    if budgets:
        found.append(Table("Budgets", ("target", "#asked for", "#reached", "#used"), budgets, folded=False))
    keep = _keep(material)
    if keep:
        found.append(Table("Kept", ("layers", "#what was to stay"), list(keep.items()), folded=False))
    return Section("summary", "Summary", _lead(material), tiles, tables=found, missing=missing)


def _to_know_accuracy(material: Material) -> str:
    if material.request.data is None:
        return "Give labelled images with --data FILE.npz, or report on a run."
    if material.original is None:
        return "It takes the original, too."
    return "Report on the slim model: a plan has no weights."


def _lead(material: Material) -> str:
    run, parts = material.run, []
    if run is not None:
        state = "finished" if run.finished else "not finished"
        parts.append(f"A run of the method {run.method}, {state}, with {len(run.rounds)} rounds on record.")
        proof = run.result.verification if run.result is not None else None
        if proof is not None and proof.get("passed"):
            error, compared = proof["error"], proof["compared"]
            parts.append(f"Verified against the masked original: largest relative error {error:.1e} over {compared} tensors.")
    original = material.original
    if original is not None:
        scopes = material.plan.scopes if material.plan is not None else []
        what = f"the parts {', '.join(scopes)}" if scopes else "the model"
        parts.append(f"Costs are those of {what} at the input {original.inputs.describe()}.")
    elif run is not None and run.result is not None:
        parts.append(f"Costs are those at the input {run.result.inputs}.")
    return " ".join(parts)


def _costs(material: Material) -> list[_Cost]:
    """Costs of a result, else by the analysis of the original, else of the last round."""
    original, run = material.original, material.run
    if run is not None and run.result is not None:
        values = [_figures(run.result.dense), _figures(run.result.slim)]
    elif original is not None and original.after is not None:
        values = [_figures(original.before), _figures(original.after)]
    elif run is not None and run.last is not None:
        values = [(row.params, row.macs) for row in (run.rounds[0], run.last)]
    else:
        return []
    return [_Cost(label, old, new, show) for (label, show), old, new in zip(_SHOWN.values(), *values, strict=False)]


def _figures(one: Figures | Costs) -> tuple[float, ...]:
    return one.parameters, one.macs, one.weight_bytes, one.activation_bytes


def _tile(cost: _Cost) -> Tile:
    part = cost.after / cost.before if cost.before else None
    return Tile(cost.label, cost.show(cost.after), cost.show(cost.before), share(cost.after, cost.before), part)


def _accuracies(material: Material) -> list[Tile]:
    run = material.run
    tiles = []
    if material.accuracy is not None:
        before, after, images = material.accuracy
        tiles.append(_rated(f"Top-1 accuracy, {images:,} images", before, after))
    if run is not None and run.result is not None:
        dense, slim = run.result.dense.accuracy, run.result.slim.accuracy
        pairs = [(label, getattr(dense, name), getattr(slim, name)) for name, label in _JUDGED.items()]
        tiles += [_rated(label, before, after) for label, before, after in pairs if after is not None]
    elif run is not None:
        tiles += _of_rounds(run)
    return tiles


def _of_rounds(run: Run) -> list[Tile]:
    rated = [row for row in run.rounds if row.accuracy is not None and row.status != "rolled back"]
    if not rated:
        return []
    assert rated[-1].accuracy is not None
    return [_rated("Accuracy, last round", run.dense_accuracy, rated[-1].accuracy)]


def _rated(label: str, before: float | None, after: float) -> Tile:
    if before is None:
        return Tile(label, f"{after:.2%}")
    return Tile(label, f"{after:.2%}", f"{before:.2%}", f"{100 * (after - before):+.2f} points")


def _budgets(material: Material, costs: Sequence[_Cost]) -> list[tuple[str, str, str, str]]:
    """Targets with what was reached. A run's are of its recipe: the plan of its last cut is measured by another model."""
    run, plan = material.run, material.plan
    known = dict(zip(_SHOWN, costs, strict=False))
    if run is not None:
        kind, _, amount = str(run.options.get("target") or "").partition("=")
        cost = known.get(kind)
        return [_budget(kind, amount, cost.after / cost.before, cost.before)] if cost is not None and cost.before else []
    if plan is None:
        return []
    return [
        _budget(kind, text, plan.achieved[kind], known[kind].before if kind in known else None)
        for kind, text in plan.target.items()
        if kind in plan.achieved
    ]


def _keep(material: Material) -> dict[str, str]:
    """What was to stay of some layers, in the end."""
    run, plan = material.run, material.plan
    if run is not None:
        return {str(pattern): str(amount) for pattern, amount in (run.options.get("keep") or {}).items()}
    return {} if plan is None else plan.keep


def _budget(kind: str, text: str, reached: float, original: float | None) -> tuple[str, str, str, str]:
    """reached: as a share of the original."""
    try:
        target = parse_target(kind, text)
    except UsageError:
        return kind, text, f"{reached:.1%}", "-"
    if target.share is not None:
        return kind, f"{target.share:.1%}", f"{reached:.1%}", share(reached, target.share)
    if original is None or target.amount is None:
        return kind, text, f"{reached:.1%}", "-"
    return kind, text, tables.count(reached * original), share(reached * original, target.amount)
