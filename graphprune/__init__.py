"""graphprune: a compiler for structured pruning of PyTorch models.

>>> import torch, graphprune
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
>>> result = graphprune.prune(model, torch.zeros(1, 8), target="params=50%")
>>> result.report.verification.passed
True
"""

from __future__ import annotations

from graphprune.api import PruneResult, Report, apply_plan, load, prune, run_pipeline, save, verify
from graphprune.capture import capture
from graphprune.errors import GraphpruneError
from graphprune.plan import Plan
from graphprune.program import Program
from graphprune.verification import Verification

__version__ = "0.1.0"

__all__ = [
    "GraphpruneError",
    "Plan",
    "Program",
    "PruneResult",
    "Report",
    "Verification",
    "apply_plan",
    "capture",
    "load",
    "prune",
    "run_pipeline",
    "save",
    "verify",
]
