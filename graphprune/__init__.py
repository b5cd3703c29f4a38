"""graphprune: a compiler for structured pruning of PyTorch models.

>>> import torch, graphprune
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
>>> result = graphprune.prune(model, torch.zeros(1, 8), target="params=50%")
>>> result.report.verification.passed
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune import methods
    from graphprune.api import apply_plan, channel_groups, prune, run_pipeline, verify
    from graphprune.calibration import Calibration
    from graphprune.callbacks import GradualPruning
    from graphprune.compiling import Backend, FxPass, Masked, compile_backend, masked
    from graphprune.errors import GraphpruneError
    from graphprune.ir.program import Program
    from graphprune.plans.plan import Plan
    from graphprune.result import PruneResult, Report
    from graphprune.saving import load, save
    from graphprune.streaming import apply_plan_to_checkpoint, prune_checkpoint
    from graphprune.surveys.curves import Sensitivity, sensitivity
    from graphprune.surveys.pareto import Front, Sweep, sweep
    from graphprune.surveys.profiling import profile
    from graphprune.tracing import capture
    from graphprune.verification import Verification

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "Calibration",
    "Front",
    "FxPass",
    "GradualPruning",
    "GraphpruneError",
    "Masked",
    "Plan",
    "Program",
    "PruneResult",
    "Report",
    "Sensitivity",
    "Sweep",
    "Verification",
    "apply_plan",
    "apply_plan_to_checkpoint",
    "capture",
    "channel_groups",
    "compile_backend",
    "load",
    "masked",
    "methods",
    "profile",
    "prune",
    "prune_checkpoint",
    "run_pipeline",
    "save",
    "sensitivity",
    "sweep",
    "verify",
]

_HOMES = {
    "Backend": "compiling",
    "Calibration": "calibration",
    "Front": "surveys.pareto",
    "FxPass": "compiling",
    "GradualPruning": "callbacks",
    "GraphpruneError": "errors",
    "Masked": "compiling",
    "Plan": "plans.plan",
    "Program": "ir.program",
    "PruneResult": "result",
    "Report": "result",
    "Sensitivity": "surveys.curves",
    "Sweep": "surveys.pareto",
    "Verification": "verification",
    "apply_plan_to_checkpoint": "streaming",
    "capture": "tracing",
    "compile_backend": "compiling",
    "load": "saving",
    "masked": "compiling",
    "profile": "surveys.profiling",
    "prune_checkpoint": "streaming",
    "save": "saving",
    "sensitivity": "surveys.curves",
    "sweep": "surveys.pareto",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line prints its help without loading torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "methods":
        return import_module(f"{__name__}.methods")
    found = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'api')}"), name)
    globals()[name] = found
    return found
