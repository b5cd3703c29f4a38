"""Methods train on a device to their ends, go on after a kill as if there had been none, and may be compiled or in bfloat16."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import graphprune
from tests.gpu.devices import everywhere, on_gpu
from tests.graphprune.cli.conftest import cli as cli
from tests.graphprune.cli.conftest import folder as folder

Cli = Callable[..., Any]

MODEL = "graphprune.cli.digits:small_cnn"
SHORT = ("--data", "digits", "--training", "digits", "--epochs", "4", "--set", "trained=false", "--set", "data.samples=64")
QUIET = ("--plot", "none")
METHODS = {
    "iterative": ("--target", "params=50%", "--set", "rounds=2"),
    "adaptive": ("--set", "tolerance=0.05", "--set", "first_step=0.5", "--set", "max_rounds=3"),
    "class-aware": (),
    "sp-lamp": ("--target", "macs=60%", "--set", "stages=2"),
    "laasp": ("--target", "macs=60%", "--set", "start=0.5", "--set", "delta=0.2", "--set", "step=8.0"),
    "growing": (
        "--target",
        "macs=60%",
    ),
}
# With the same bits in every run: convolutions on a GPU add up in any order otherwise.
_REPEATABLE = (
    "import sys, torch; torch.use_deterministic_algorithms(True, warn_only=True); torch.backends.cudnn.benchmark = False; "
    "from graphprune.cli import main; sys.exit(main(sys.argv[1:]))"
)


def _result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@everywhere
@pytest.mark.parametrize("method", ["iterative"])
def test_a_short_run_keeps_its_promise(method: str, cli: Cli, device: str) -> None:
    ran = cli("run", method, MODEL, *SHORT, *METHODS[method], *QUIET, "--device", device, "-o", "run")
    assert ran.code == 0, ran.err
    result = _result(Path("run"))
    assert result["slim"]["parameters"] <= result["dense"]["parameters"] / 2
    slim = graphprune.load("run/slim.safetensors")
    assert slim(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@on_gpu
@pytest.mark.parametrize("method", [name for name in METHODS if name != "iterative"])
def test_every_method_comes_to_its_end(method: str, cli: Cli, device: str) -> None:
    ran = cli("run", method, MODEL, *SHORT, *METHODS[method], *QUIET, "--device", device, "-o", "run")
    assert ran.code == 0, ran.err
    result = _result(Path("run"))
    assert result["slim"]["parameters"] <= result["dense"]["parameters"]
    for share in (option.partition("=")[2] for option in METHODS[method] if option.startswith("macs=")):
        assert result["slim"]["macs"] <= float(share.rstrip("%")) / 100 * result["dense"]["macs"]


@on_gpu
@pytest.mark.parametrize(
    "how",
    [
        ("--set", "training.precision=bf16"),
        ("--set", "training.precision=fp16"),
        ("--set", "training.compile=inductor"),
        ("--set", "training.channels_last=true", "--set", "training.ema=0.9"),
    ],
    ids=lambda how: how[1],
)
def test_training_in_other_ways(how: tuple[str, ...], cli: Cli, device: str) -> None:
    ran = cli("run", "iterative", MODEL, *SHORT, *METHODS["iterative"], *QUIET, *how, "--device", device, "-o", "run")
    assert ran.code == 0, ran.err
    assert _result(Path("run"))["slim"]["accuracy"] > 0.5


@on_gpu
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path: Path, device: str) -> None:
    arguments = ("run", "iterative", MODEL, *SHORT, *METHODS["iterative"], *QUIET, "--device", device, "-o")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _start(*arguments, str(whole)).wait(100) == 0
    child = _start(*arguments, str(killed))
    journal = killed / "journal.jsonl"
    while child.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait(100)
    assert _start(*arguments, str(killed)).wait(100) == 0
    first, second = (load_file(folder / "slim.safetensors") for folder in (whole, killed))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert (whole / "plan.json").read_bytes() == (killed / "plan.json").read_bytes()


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", _REPEATABLE, *arguments, "--quiet"], env=environment)
