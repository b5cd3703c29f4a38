"""Two processes train as one: the same weights on both, those of one process alone, and each validation sample judged once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.graphprune.training import data_parallel

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, data_parallel.__file__, str(folder)], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [rank["processes"] for rank in found] == [2, 2]
    return found


def test_both_processes_end_with_the_same_model(ranks: list[dict[str, Any]]) -> None:
    """Also with batch norm, whose statistics each process gathers from its own samples, and with averaged weights."""
    for key in ("plain", "normed"):
        torch.testing.assert_close(ranks[0][key], ranks[1][key], rtol=0, atol=0)


def test_two_processes_take_the_steps_of_one(ranks: list[dict[str, Any]]) -> None:
    model, accuracy = data_parallel.run(norm=False)
    torch.testing.assert_close(ranks[0]["plain"], dict(model.state_dict()), rtol=1e-10, atol=1e-13)
    assert ranks[0]["accuracy"][0] == accuracy


def test_an_odd_number_of_samples_is_judged_exactly(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["accuracy"] == rank["own"]


def test_both_processes_stop_where_the_loss_diverges_and_where_batches_cannot_be_shared(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["diverged"] == ranks[1]["diverged"] != ""
    assert "cannot be computed in 2 equal parts: 2 processes" in ranks[0]["refused"]


@pytest.mark.parametrize("kind", ["graph", "module"])
def test_sharded_training_takes_the_same_steps_and_leaves_a_whole_model_and_a_whole_state(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    model, state, accuracy = data_parallel.run_sharded(graph=kind == "graph")
    for rank in ranks:
        weights, left, judged = rank["sharded"][kind]
        torch.testing.assert_close(weights, dict(model.state_dict()), rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(left["optimiser"]["state"], state["optimiser"]["state"], rtol=1e-9, atol=1e-15)
        assert left["optimiser"]["param_groups"] == state["optimiser"]["param_groups"]
        assert judged == accuracy


def test_each_process_holds_a_part_of_the_parameters(ranks: list[dict[str, Any]]) -> None:
    assert sum(rank["held"] for rank in ranks) == 1 and max(rank["held"] for rank in ranks) < 0.6


def test_sharded_training_refuses_what_needs_whole_parameters(ranks: list[dict[str, Any]]) -> None:
    assert "Penalties and masks act on whole parameters" in ranks[0]["unsharded"]
    assert "does not go with ema=0.5" in ranks[0]["averaged"]
