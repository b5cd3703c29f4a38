"""Two processes prune a model that FSDP2 has divided between them: as one process does, and the slim model is divided again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import graphprune
from tests.graphprune.placement import sharded
from tests.graphprune.streaming.nets import INPUTS, ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes wrote."""
    found = tmp_path_factory.mktemp("sharded")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-P", sharded.__file__, str(rank), str(found)],
            env=environment,
            cwd=found,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in started:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-3000:]
    return found


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _check(ranks: list[dict[str, Any]], case: str, expected: graphprune.PruneResult, x: torch.Tensor) -> None:
    verification = expected.report.verification
    assert verification is not None
    whole = sum(parameter.numel() for parameter in expected.model.parameters())
    for rank in ranks:
        assert rank[case]["kept"] == expected.plan.kept
        torch.testing.assert_close(rank[case]["output"], expected.model(x).detach(), rtol=0, atol=0)
        assert rank[case]["gradients"] == len(list(expected.model.parameters()))
        passed, error, compared = rank[case]["proved"]
        assert passed and error <= 1e-9 and compared == verification.compared
    held = [rank[case]["held"] for rank in ranks]
    assert sum(held) == whole and max(held) < 0.7 * whole


@pytest.mark.parametrize("criterion", sharded.CRITERIA)
def test_the_plan_and_the_slim_model_are_those_of_one_process(ranks: list[dict[str, Any]], criterion: str) -> None:
    """Each process with its batches, and a part of each slim parameter; a second pruning agrees as well."""
    how: dict[str, Any] = {"target": sharded.TARGET, "criterion": criterion, "data": sharded.batches()}
    expected = graphprune.prune(sharded.make(), INPUTS, **how)
    _check(ranks, criterion, expected, INPUTS)
    assert ranks[0][criterion]["again"] == ranks[1][criterion]["again"]
    again = graphprune.prune(expected.model, INPUTS, target=sharded.TARGET)
    if criterion == "l2":
        assert ranks[0][criterion]["again"] == again.plan.kept


def test_processes_look_at_layouts_in_step_whatever_their_batches_are(ranks: list[dict[str, Any]]) -> None:
    """Only one has a batch of two samples, by which it sees how windows lie; alone it would wait for the other for ever."""
    model, x, data = sharded.crowd()
    _check(ranks, "crowd", graphprune.prune(model, x, target=sharded.TARGET, criterion="variance", data=data), x)


def test_any_process_saves_the_whole_slim_model(folder: Path, ranks: list[dict[str, Any]]) -> None:
    _, x, _ = sharded.crowd()
    for rank in (0, 1):
        found = graphprune.load(folder / f"slim{rank}.safetensors")
        torch.testing.assert_close(found(x), ranks[rank]["crowd"]["output"], rtol=0, atol=0)


def test_values_are_those_that_were_divided(ranks: list[dict[str, Any]]) -> None:
    assert [rank["original"] for rank in ranks] == [True, True]


def test_what_cannot_be_done_is_refused_in_every_process(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        gradients, parallel = rank["refused"]
        assert "weights that each process loads by itself" in gradients
        assert "divided in another way than fully_shard" in parallel
