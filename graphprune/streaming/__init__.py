"""Models larger than the machine: planned without values, scored and cut as streams, tensor by tensor."""

from __future__ import annotations

from graphprune.streaming.checkpoint import Checkpoint, open_checkpoint
from graphprune.streaming.configs import Fit
from graphprune.streaming.folder import build_for, read_config, usual_inputs
from graphprune.streaming.header import Entry
from graphprune.streaming.proof import Proof
from graphprune.streaming.prune import CheckpointReport, apply_plan_to_checkpoint, prune_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointReport",
    "Entry",
    "Fit",
    "Proof",
    "apply_plan_to_checkpoint",
    "build_for",
    "open_checkpoint",
    "prune_checkpoint",
    "read_config",
    "usual_inputs",
]
