"""A plan is read from whatever file holds one, and from nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import ArtifactError, PlanError
from graphprune.plans.reading import read_plan


def test_plans_are_read_from_whatever_holds_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    result = graphprune.prune(model, torch.zeros(2, 8), target="channels=50%")
    result.plan.save(tmp_path / "plan.json")
    for name in ("slim.safetensors", "slim.pt2"):
        graphprune.save(result, tmp_path / name)
        assert read_plan(tmp_path / name) == read_plan(tmp_path / "plan.json") == result.plan
        again = graphprune.apply_plan(model, torch.zeros(2, 8), tmp_path / name)
        assert again.plan == result.plan


def test_files_without_a_plan_are_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "plain.pt2")
    with pytest.raises(PlanError, match="holds no plan"):
        read_plan(tmp_path / "plain.pt2")
    (tmp_path / "noise.pt2").write_bytes(b"noise")
    with pytest.raises(PlanError, match="Cannot read the plan"):
        read_plan(tmp_path / "noise.pt2")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    with pytest.raises(ArtifactError):
        read_plan(tmp_path / "noise.safetensors")


def test_a_pipe_in_the_place_of_a_program_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slim.pt2")
    with pytest.raises(PlanError, match="it is no file"):
        read_plan(tmp_path / "slim.pt2")
