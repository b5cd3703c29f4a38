"""Stages: a model at some moment of a run, as a plan and stored weights."""

from __future__ import annotations

from dataclasses import dataclass

from graphprune.costs.cost import Costs
from graphprune.plans.plan import Plan
from graphprune.runs.store import Snapshot


@dataclass(frozen=True, eq=False)
class Stage:
    """A model on its way: what is left of the original, and with which weights.

    plan: what stays of the ORIGINAL model; None while all of it does. snapshot: where the weights and the training state are.
    costs: at the example inputs. epochs: trained so far on the way here, counting all. samples: that batch-norm statistics were
    estimated on after cuts, counting every one. latency: milliseconds, as those of the original
    times the measured shares of all cuts; None where a cut was not measured. diverged: why training stopped where
    the loss became infinite or NaN; the weights are then those from before. lost: what of the training's state did not go on over
    the last cut, in sentences.
    """

    plan: Plan | None
    snapshot: Snapshot
    costs: Costs
    epochs: int = 0
    samples: int = 0
    latency: float | None = None
    diverged: str = ""
    lost: str = ""
