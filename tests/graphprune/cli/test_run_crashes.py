"""``graphprune run`` survives what ends processes: kill -9 anywhere, a full disk, a loss that is NaN, data that cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Cli = Callable[..., Any]

MODEL = "graphprune.cli.digits:small_cnn"
SHORT = ("--data", "digits", "--training", "digits", "--epochs", "2", "--set", "trained=false", "--set", "data.samples=64")
ITERATIVE = ("run", "iterative", MODEL, *SHORT, "--set", "rounds=2", "--plot", "none")
ADAPTIVE = (
    *("run", "adaptive", MODEL, *SHORT, "--set", "tolerance=0.03", "--set", "first_step=0.5", "--set", "max_rounds=3"),
    *("--plot", "none"),
)


def _same(first: Path, second: Path) -> None:
    """Two folders hold the same result."""
    weights, others = (load_file(folder / "slim.safetensors") for folder in (first, second))
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    for name in ("plan.json", "result.json", "rounds.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize(
    ("arguments", "seed", "kills"),
    [(ITERATIVE, 0, 3), (ADAPTIVE, 1, 3), ((*ITERATIVE, "--keep-class"), 2, 2)],
    ids=["iterative", "adaptive", "class"],
)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(
    arguments: tuple[str, ...], seed: int, kills: int, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("killing.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(seed), str(kills), *arguments],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{kills}\n"  # none of them was over before it was killed
    _same(tmp_path / "whole", tmp_path / "killed")
    statuses = [row["status"] for row in json.loads((tmp_path / "whole" / "result.json").read_text())["rounds"]]
    assert statuses == (
        ["dense", "accepted", "rolled back", "accepted"] if arguments is ADAPTIVE else ["dense", "accepted", "final"]
    )
    assert {path.name for path in (tmp_path / "killed").rglob("*.tmp")} == set()


@pytest.mark.parametrize("limit", [20_000, 150_000], ids=["the first file", "the state of the training"])
def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(
    limit: int, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for the full disk: writes fail with an error of the system in the midst of a file."""
    resource = pytest.importorskip("resource")
    cli(*ITERATIVE, "-o", "whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        ran = cli(*ITERATIVE, "-o", "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran.code == 2
    assert "graphprune: error: Cannot write full/snapshots/" in ran.err and "Make room, and run the same command again." in ran.err
    assert not list((folder / "full").rglob("*.tmp"))
    assert cli(*ITERATIVE, "-o", "full").code == 0
    _same(folder / "whole", folder / "full")


def test_a_loss_that_is_nan_ends_a_method_that_cannot_go_back(cli: Cli) -> None:
    ran = cli(*ITERATIVE, "-o", "run", "--set", "training.optimiser=sgd", "--set", "training.lr=1e6")
    assert ran.code == 1 and ran.err.count("\n") == 1
    assert "The loss is nan at epoch" in ran.err and "Lower the learning rate" in ran.err
    assert cli("run", "run/recipe.toml").err == ran.err  # it is on record


def test_a_loss_that_is_nan_is_a_round_that_is_taken_back_where_the_method_can(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune.errors import DivergedError
    from graphprune.training.trainer import Trainer

    original, calls = Trainer.train, iter(range(99))

    def diverging(self: Trainer, *args: Any, **extras: Any) -> Any:
        if next(calls) == 2:  # the first retraining
            raise DivergedError("The loss is nan.")
        return original(self, *args, **extras)

    monkeypatch.setattr(Trainer, "train", diverging)
    ran = cli(*ADAPTIVE, "-o", "run", "--json")
    assert ran.code == 0, ran.err
    first, second = ran.data["rounds"][1:3]
    assert (first["status"], first["note"], first["accuracy"]) == ("rolled back", "The loss is nan.", None)
    assert second["values"]["step"] == first["values"]["step"] / 2


FAILING = """
import pathlib
import torch

class Data:
    targets = [n % 10 for n in range(300)]

    def __len__(self):
        return 300

    def __getitem__(self, n):
        if n % 97 == 5 and pathlib.Path("broken").exists():
            raise OSError(f"sample {n} is damaged")
        return torch.full((1, 8, 8), n / 300), n % 10
"""


def test_data_that_cannot_be_read_are_named_and_the_run_goes_on_once_they_can(cli: Cli, folder: Path) -> None:
    (folder / "mydata.py").write_text(FAILING)
    command = (*ITERATIVE, "--data", "mydata:Data", "--set", "data.workers=0", "-o")
    (folder / "broken").touch()
    ran = cli(*command, "run")
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert "The training data fail at epoch 0, batch" in ran.err and "is damaged" in ran.err
    (folder / "broken").unlink()
    assert cli(*command, "run").code == 0
    assert cli(*command, "whole").code == 0
    _same(folder / "whole", folder / "run")
