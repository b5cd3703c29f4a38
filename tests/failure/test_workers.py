"""A process that reads data dies: the command says so in a line, and goes on once the data can be read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.failure.commands import COMMANDS, Command, Samples
from tests.failure.processes import left, run

HERE = "tests.failure.test_workers"
DEADLY = Path("deadly")  # while it is there, the tenth sample ends the process that reads it


class Dying(Samples):
    """Samples, one of which ends the process that reads it."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 10 and DEADLY.exists():
            os._exit(1)
        return super().__getitem__(index)


def loader() -> DataLoader[Any]:
    """Calibration data from a process of their own."""
    return DataLoader(torch.utils.data.Subset(Dying(), range(48)), batch_size=16, num_workers=1)


def reading(name: str) -> Command:
    """A command on these data. profile reads none."""
    command = COMMANDS[name]
    changes = {"tests.failure.commands:batches": f"{HERE}:loader", "tests.failure.commands:Samples": f"{HERE}:Dying"}
    arguments = tuple(changes.get(part, part.replace("data.workers=0", "data.workers=1")) for part in command.arguments)
    return replace(command, arguments=arguments)


@pytest.mark.parametrize("name", ["prune", "run", "sweep"])
def test_a_worker_that_dies_is_named_and_the_command_goes_on(name: str, tmp_path: Path) -> None:
    command, broken, whole = reading(name), tmp_path / "broken", tmp_path / "whole"
    broken.mkdir()
    whole.mkdir()
    (broken / DEADLY).touch()
    ran = run(command.line(), broken)
    assert ran.code == 2, ran.out
    lines = [line for line in ran.out.splitlines() if line.startswith("graphprune: error")]
    assert len(lines) == 1 and "A process that reads data died (DataLoader worker (pid" in lines[0], ran.out
    assert "defect" not in ran.out and "Repair or remove the sample" not in ran.out
    assert not command.result(broken)
    assert not {path for path in left(broken) if Path(path).name.startswith(".")}
    (broken / DEADLY).unlink()
    assert run(command.line(), broken).code == run(command.line(), whole).code == 0
    assert command.result(broken) == command.result(whole) != {}
