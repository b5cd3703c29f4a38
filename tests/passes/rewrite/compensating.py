"""Pruning chosen channels of a small model, for the tests of what comes after the rewrite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.calibration import Calibration
from graphprune.channels.groups import Kept
from graphprune.ir.program import Program
from graphprune.passes.rewrite.rewrite import RewritePass
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.pass_manager import PassManager
from tests.checking import analyse


def without(
    model: nn.Module, inputs: Any, removed: Mapping[str, Sequence[int]], policy: Mapping[str, str] | None = None
) -> Program:
    """A program, rewritten without some output channels (axis 0) of some parameters."""
    found = analyse(model, inputs, policy=policy)
    kept = np.ones(found.groups.unit_count, dtype=bool)
    for name, indices in removed.items():
        units = np.array(found.units(name, 0))[list(indices)]
        assert (units >= 0).all(), f"{name} is frozen"
        kept[units] = False
    plan = found.plan(Kept(found.groups, kept))
    return PassManager([RewritePass()]).run(found.program.with_(plan=plan, policy=found.policy))


def after(program: Program, batches: Sequence[Tensor], *passes: Pass) -> Program:
    """The program once passes have run with calibration batches."""
    return PassManager(passes, check_preserved=True).run(program.with_(calibration=Calibration(list(batches))))


def error(program: Program, x: Tensor) -> float:
    """How far the slim model's output is from the original's, relative to the latter's size."""
    assert program.original is not None
    with torch.no_grad():
        wanted, found = program.original(x), program.module(x)
    return float((wanted - found).norm() / wanted.norm())
