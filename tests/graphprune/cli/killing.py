"""Runs ``graphprune`` in children that are killed at random moments; a script, ``killing.py FOLDER SEED KILLS ARGUMENT...``.

Prints how many children were killed. The first child writes into FOLDER/whole and is left alone; the others write into
FOLDER/killed, each going on from the one before, and are killed at random steps of the run and somewhere within them. They are
forks of one process that has imported all, so that a start is quick.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import sklearn.datasets  # noqa: F401

import graphprune.cli.running  # noqa: F401
from graphprune.cli import main


def start(folder: Path, arguments: list[str]) -> int:
    """Run the command line in a child; its number."""
    child = os.fork()
    if child:
        return child
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os._exit(main(arguments))


def finish(folder: Path, arguments: list[str]) -> None:
    """Let a child end by itself."""
    _, status = os.waitpid(start(folder, arguments), 0)
    assert status == 0, (folder / "log.txt").read_text()


def steps(run: Path) -> int:
    """How many steps a run has on record."""
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


if __name__ == "__main__":
    folder, rng, kills, arguments = Path(sys.argv[1]), random.Random(int(sys.argv[2])), int(sys.argv[3]), sys.argv[4:]
    whole, broken = folder / "whole", folder / "killed"
    finish(folder, [*arguments, "--out", str(whole)])
    killed = 0
    for moment in sorted(rng.sample(range(steps(whole)), kills)):
        child = start(folder, [*arguments, "--out", str(broken)])
        while steps(broken) < moment and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))  # into the step that comes then
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    finish(folder, [*arguments, "--out", str(broken)])
    sys.stdout.write(f"{killed}\n")
