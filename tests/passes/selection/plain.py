"""The plain algorithm of LAASP, as the oracle of the loss-aware pass: every candidate is rewritten, and run on all data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from graphprune.calibration import default_loss
from graphprune.channels.groups import Kept
from graphprune.costs.cost import CostModel
from graphprune.passes.rewrite.rewrite import rewrite
from tests.checking import analyse
from tests.passes.selection.asking import IMAGE

Rows = Any  # an array, one filter in each row


def _distances(rows: Rows) -> Rows:
    return np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1)).sum(1)


def _angles(rows: Rows) -> Rows:
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (1 - directions @ directions.T).sum(1)


CRITERIA: Mapping[str, Callable[[Rows], Rows]] = {
    "l1": lambda rows: np.abs(rows).sum(1),
    "l2": lambda rows: np.sqrt((rows**2).sum(1)),
    "euclidean": _distances,
    "cosine": _angles,
}


def mean_loss(model: Any, data: Any) -> float:
    with torch.no_grad():
        return float(sum(default_loss(model(x), y) * len(x) for x, y in data)) / sum(len(x) for x, _ in data)


def plainly(model: Any, data: Any, share: float, steps: Mapping[str, int], floors: Mapping[str, int], per_mac: bool = False) -> Any:
    """Every candidate as a model of its own; the cuts as (layer, criterion, loss), and the model that is left."""
    done: list[tuple[str, str, float]] = []
    whole = analyse(model, IMAGE)
    total = float(CostModel(whole.program, whole.groups).macs(whole.groups.widths))
    while True:
        found = analyse(model, IMAGE)
        groups = found.groups
        cost = CostModel(found.program, groups).macs
        if cost(groups.widths) <= share * total:
            return done, model
        best: tuple[float, str, str, float, Any] | None = None
        for path in [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]:
            weight = model.get_submodule(path).weight.detach().flatten(1).numpy()
            along = np.array(found.units(f"{path}.weight", 0))
            owners = np.where(along < 0, -1, groups.group_of[along])
            for number, group in enumerate(np.unique(owners[owners >= 0]).tolist()):
                name = path if number == 0 else f"{path}#{number + 1}"
                places = np.flatnonzero(owners == group)
                count = min(steps[name], places.size - floors[name])
                if count < 1:
                    continue
                for criterion, score in CRITERIA.items():
                    values = score(weight[places])
                    stays = np.ones(groups.unit_count, dtype=bool)
                    stays[along[places[np.argsort(values, kind="stable")[:count]]]] = False
                    slim = rewrite(found.program.module, groups, kept := Kept(groups, stays)).eval()
                    loss = mean_loss(slim, data)
                    saved = float(cost(groups.widths) - cost(kept.widths()))
                    key = (loss - mean_loss(model, data)) / saved if per_mac else loss
                    if best is None or key < best[0]:
                        best = (key, name, criterion, loss, slim)
        assert best is not None
        done.append(best[1:4])
        model = best[4]
