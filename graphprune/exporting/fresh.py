"""Run what was written in a process of its own, which knows neither graphprune nor the model's code."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from graphprune.errors import VerificationError
from graphprune.exporting.checking import TURN, TURNS, Ran
from graphprune.ir.program import Inputs

_RUNNER = Path(__file__).with_name("fresh_runner.py")


def run_fresh(kind: str, written: Path, cases: Sequence[Inputs], path: Path) -> Ran:
    """Load what was written in a new process and run it. kind: ``aot`` or ``folder``. path: what to call it in messages.

    Raises VerificationError with the last line of what the process said where it fails.
    """
    with TemporaryDirectory() as name:
        given, made = Path(name) / "given.pt", Path(name) / "made.pt"
        torch.save(
            {
                "cases": [(case.args, dict(case.kwargs)) for case in cases],
                "threads": torch.get_num_threads(),
                "turns": TURNS,
                "seconds": TURN,
            },
            given,
        )
        command = [sys.executable, "-P", str(_RUNNER), kind, str(written), str(given), str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise VerificationError(f"{path} is not written: in a process of its own it does not run ({_said(done)}).")
        result: dict[str, Any] = torch.load(made, weights_only=True)
    return Ran(result["outputs"], result["ms"])


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a process that failed, or how it ended."""
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
