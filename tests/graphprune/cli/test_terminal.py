"""At a terminal and away from one: examples in the help, completion by the shell, colours and their absence."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import graphprune
from graphprune.cli import app
from graphprune.cli.examples import EXAMPLES
from tests.graphprune.cli.conftest import SOURCE

Cli = Callable[..., Any]
ROOT = Path(graphprune.__file__).parent.parent
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d)(?:;\d+)*m")
COMMANDS: Any = typer.main.get_command(app)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    left = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    given = {**left, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-m", "graphprune", *arguments], env=given, capture_output=True, text=True, timeout=120)


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command prints on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    left = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    given = {**left, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment}
    ran = subprocess.Popen([sys.executable, "-m", "graphprune", *arguments], env=given, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        text += more
    os.close(ours)
    assert ran.wait(timeout=60) == 0, text
    return text.decode()


def test_every_command_has_examples() -> None:
    assert set(EXAMPLES) == set(COMMANDS.commands)


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_the_examples_in_the_help_are_lines_that_the_command_takes(cli: Cli, command: str) -> None:
    said = re.sub(r"\s+", " ", cli(command, "--help").out)
    for line in EXAMPLES[command]:
        COMMANDS.commands[command].make_context(command, shlex.split(line))  # raises where an option or argument is wrong
        assert f"$ graphprune {command} {line}".rstrip() in said
    with pytest.raises(Exception, match=r"(?i)no such option"):
        COMMANDS.commands[command].make_context(command, ["--nonsense"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_options(shell: str) -> None:
    def completed(line: str) -> list[str]:
        answer = process(
            _GRAPHPRUNE_COMPLETE=f"complete_{shell}",
            COMP_WORDS=line,
            COMP_CWORD=str(len(line.split(" ")) - 1),
            _TYPER_COMPLETE_ARGS=line,
            _TYPER_COMPLETE_FISH_ACTION="get-args",
        )
        assert answer.returncode == 0 and answer.stderr == ""
        return re.findall(r"(?:--)?[a-z]+(?:-[a-z]+)*", answer.stdout)

    assert "inspect" in completed("graphprune ins") and "prune" not in completed("graphprune ins")
    assert "--graph" in completed("graphprune inspect --gr")


def test_completion_is_installed_by_an_option(tmp_path: Path) -> None:
    ran = process("--show-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_GRAPHPRUNE_COMPLETE" in ran.stdout
    assert "--install-completion" in process("--help").stdout


@pytest.mark.parametrize("arguments", [("--help",), ("inspect", SOURCE, "--input", "1x1x8x8")])
def test_no_escape_sequences_without_a_terminal(arguments: tuple[str, ...]) -> None:
    ran = process(*arguments)
    assert ran.returncode == 0 and "\x1b" not in ran.stdout + ran.stderr


def test_no_color_is_respected_on_a_terminal() -> None:
    assert COLOUR.search(on_a_terminal("diff", "--help"))
    assert not COLOUR.search(on_a_terminal("diff", "--help", NO_COLOR="1"))


def test_letters_that_the_locale_lacks_are_replaced() -> None:
    ran = process("inspect", SOURCE, "--input", "1x1x8x8", PYTHONIOENCODING="ascii")
    assert ran.returncode == 0 and ran.stderr == "" and "block.conv1" in ran.stdout and ran.stdout.isascii()
