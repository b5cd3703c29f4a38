"""Ctrl-C and SIGTERM, in every phase of a command: one line, exit code 130, a terminal as before, and a state to go on from."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.failure.commands import COMMANDS
from tests.failure.conftest import Whole
from tests.failure.processes import REACHED, Stopping, left, run, start

PHASES = [(name, phase, signal.SIGINT) for name, command in COMMANDS.items() for phase in command.phases]
PHASES += [(name, list(command.phases)[1], signal.SIGTERM) for name, command in COMMANDS.items()]
ROOT = Path(__file__).resolve().parents[2]
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\x07]")


@pytest.mark.parametrize(("name", "phase", "number"), PHASES, ids=lambda value: getattr(value, "name", value))
def test_an_interruption_says_so_and_the_command_goes_on(
    name: str, phase: str, number: signal.Signals, tmp_path: Path, whole: Whole
) -> None:
    command = COMMANDS[name]
    running = start(command.line(), tmp_path, Stopping(*command.phases[phase]), terminal=True)
    running.wait_for(REACHED)
    running.signal(number)
    ran = running.end()
    assert ran.code == 130, ran.out
    lines = [line for line in SEQUENCE.sub("\n", ran.out).splitlines() if "interrupted" in line]
    assert len(lines) == 1 and lines[0].startswith("graphprune: interrupted."), ran.out
    assert not [word for word in ("Traceback", "Exception ignored", "error") if word in ran.out]
    assert ran.out.rfind("\x1b[?25l") <= ran.out.rfind("\x1b[?25h"), "the cursor shows again"
    assert not {path for path in left(tmp_path) if Path(path).name.startswith(".")}, "temporary files and locks are gone"
    kept = command.resumes and bool(command.result(tmp_path) or left(tmp_path))
    assert ("same command" in lines[0]) == kept, lines[0]
    again = run(command.line(), tmp_path)
    assert again.code == 0, again.out
    assert command.result(tmp_path) == whole(name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_progress_was_on_the_screen(number: signal.Signals, tmp_path: Path) -> None:
    """Else the cursor of the test above would never have been hidden."""
    running = start(COMMANDS["run"].line(), tmp_path, Stopping(*COMMANDS["run"].phases["training"]), terminal=True)
    running.wait_for(REACHED)
    running.signal(number)
    assert "\x1b[?25l" in running.end().out


@pytest.mark.parametrize("module", ["typer", "rich", "graphprune.cli.options", "numpy", "torch"])
def test_an_interruption_of_an_import_says_so(module: str) -> None:
    """The first second of a command, while it imports what it needs."""
    code = f"""
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with the interrupt ignored
sys.meta_path.insert(0, Interrupting())
sys.argv = ["graphprune", "passes"]
runpy.run_module("graphprune", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "graphprune: interrupted.\n")


def test_a_second_interruption_while_the_process_ends_says_nothing_more() -> None:
    code = """
import atexit, os, signal, sys, time

import graphprune.cli
from graphprune.__main__ import main

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)

signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(interrupt)
graphprune.cli.main = lambda: 130
sys.exit(main())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ran.returncode, ran.stderr) == (130, "")
