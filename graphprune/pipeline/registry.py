"""Passes by name: the built-in ones from a table, those of other packages through the entry point group ``graphprune.passes``.

Nothing is imported before it is asked for. An entry point's name is the pass's, its value ``package.module:Class``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from graphprune.errors import PassContractError, PipelineError, unknown
from graphprune.pipeline.pass_base import Pass, check_declaration

ENTRY_POINT_GROUP: Final = "graphprune.passes"

BUILT_IN: Final[Mapping[str, str]] = {
    "channels": "graphprune.passes.analysis.channels:ChannelsPass",
    "score": "graphprune.passes.scoring.score:ScorePass",
    "select": "graphprune.passes.selection.select:SelectPass",
    "knapsack": "graphprune.passes.selection.knapsack:KnapsackPass",
    "greedy": "graphprune.passes.selection.greedy:GreedyPass",
    "threshold": "graphprune.passes.selection.threshold:ThresholdPass",
    "loss-aware": "graphprune.passes.selection.loss_aware:LossAwarePass",
    "rewrite": "graphprune.passes.rewrite.rewrite:RewritePass",
    "verify": "graphprune.passes.verification.verify:VerifyPass",
    "fold-constants": "graphprune.passes.rewrite.fold_constants:FoldConstantsPass",
    "compensate": "graphprune.passes.rewrite.compensate:CompensatePass",
    "recalibrate": "graphprune.passes.rewrite.recalibrate:RecalibratePass",
}


def pass_names() -> tuple[str, ...]:
    """The names of all passes: the built-in ones in pipeline order, then the others by name."""
    return tuple(_entries())


def pass_class(name: str) -> type[Pass]:
    """The pass of this name.

    Raises PipelineError, with the nearest name and the list, when there is none or it cannot be imported, and
    PassContractError when what is found is no pass of that name.
    """
    entries = BUILT_IN if name in BUILT_IN else _entries()  # those of other packages take long to look up
    if name not in entries:
        raise PipelineError(unknown("pass", name, entries, "Passes"))
    target = entries[name]
    try:
        found = EntryPoint(name, target, ENTRY_POINT_GROUP).load()
    except (ImportError, AttributeError) as error:
        raise PipelineError(f"Pass {name!r} cannot be loaded from {target}: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise PassContractError(f"{target}, registered as the pass {name!r}, is not a subclass of Pass.")
    check_declaration(found)
    if found.name != name:
        raise PassContractError(f"Pass class {found.__name__} is named {found.name!r} but registered as {name!r}.")
    return found


def providers(field: str) -> tuple[str, ...]:
    """Names of the passes that provide a field of the program; those that cannot be loaded are left out."""
    found = []
    for name in pass_names():
        try:
            if field in pass_class(name).provides:
                found.append(name)
        except (PipelineError, PassContractError):
            continue
    return tuple(found)


def _entries() -> dict[str, str]:
    others = sorted((entry.name, entry.value) for entry in entry_points(group=ENTRY_POINT_GROUP))
    return {**BUILT_IN, **{name: value for name, value in others if name not in BUILT_IN}}
