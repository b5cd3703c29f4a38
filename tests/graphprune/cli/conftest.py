"""A folder to work in, the command line in-process, and a watch over the files that a command must not touch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from graphprune.cli import main
from graphprune.cli.digits import small_cnn

SOURCE = "graphprune.cli.digits:small_cnn"


@dataclass(frozen=True)
class Ran:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def cli(folder: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command line as a function."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def weights(folder: Path) -> Path:
    """A file of weights for the demo's model."""
    torch.manual_seed(3)
    path = folder / "weights.safetensors"
    save_file(small_cnn().state_dict(), path)
    return path


@pytest.fixture
def refused(cli: Cli, folder: Path) -> Callable[..., str]:
    """Runs a command that must fail, with an existing ``slim.safetensors``; returns the message.

    Checks the exit code, that the message is one or two sentences on standard error that start as all do, that nothing
    is on standard output, and that every file is as it was.
    """

    def run(*arguments: object, code: int = 2) -> str:
        (folder / "slim.safetensors").write_bytes(b"an earlier result")
        before = _content(folder)
        ran = cli(*arguments)
        assert ran.code == code, ran.err
        assert _content(folder) == before
        assert ran.out == ""
        assert ran.err.startswith("graphprune: error: ")
        assert ran.err.count("\n") == 1, ran.err
        return ran.err

    return run


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
