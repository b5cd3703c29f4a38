"""The command as a process: exit codes, help, interruption, defects, and progress on a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.models import OptionInfo

import graphprune
from graphprune.cli import app, main
from graphprune.cli.output import Output

Cli = Callable[..., Any]

ROOT = Path(graphprune.__file__).parent.parent
SOURCE = "graphprune.cli.digits:small_cnn"


def _process(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "graphprune", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_exit_code_is_that_of_the_process(folder: Path) -> None:
    process = _process("prune", SOURCE, "--input", "1x1x8x8", "--target", "macs=0.01%", "-o", "s.safetensors", folder=folder)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "") and "cannot be met" in err


def test_interruption_exits_130_and_leaves_nothing(folder: Path) -> None:
    (folder / "slow.py").write_text(
        # A background job of a shell starts with the interrupt ignored.
        "import signal, sys, time\ndef net():\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    print('ready', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
    )
    process = _process("prune", "slow:net", "--input", "1x8", "-o", "slim.safetensors", folder=folder)
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert [path.name for path in folder.iterdir()] == ["slow.py"]


def test_help_is_printed_without_importing_torch() -> None:
    """For the command's own code; the package itself is imported first and may already have done so."""
    code = (
        "import sys, types; package = types.ModuleType('graphprune'); package.__path__ = [sys.argv.pop()]; "
        "sys.modules['graphprune'] = package; from graphprune.cli import main; code = main(['--help']); "
        "sys.exit(code or 3 * ('torch' in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(ROOT / "graphprune")], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert all(name in ran.stdout for name in ("demo", "inspect", "prune", "apply", "verify", "passes"))


@pytest.mark.parametrize(
    "command", ["demo", "inspect", "sensitivity", "prune", "apply", "verify", "compare", "diff", "export", "passes"]
)
def test_every_command_has_help_for_every_option(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert ran.code == 0 and "--json" in ran.out and "--debug" in ran.out and ran.err == ""


def test_no_option_gets_its_name_from_its_metavar() -> None:
    """Versions of typer from 0.26 on take a metavar that is the parameter's name in capitals for the name of the option."""
    doubtful = [
        f"{command.callback.__module__}: {name}"
        for command in app.registered_commands
        if command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items()
        for info in getattr(hint, "__metadata__", ())
        if isinstance(info, OptionInfo) and not str(info.default).startswith("--") and (info.metavar or "").lower() == name
    ]
    assert doubtful == []


def test_no_command_prints_the_help(cli: Cli) -> None:
    """The exit code is typer's: 2, and 0 in older versions."""
    ran = cli()
    assert ran.code in (0, 2) and "inspect" in ran.out + ran.err and "error" not in ran.err


def test_version_is_printed(cli: Cli) -> None:
    ran = cli("--version")
    assert ran.code == 0 and re.fullmatch(r"graphprune \d+\.\d+\S*\n", ran.out)


@pytest.mark.parametrize("arguments", [("prnue",), ("prune",), ("prune", SOURCE), ("apply", SOURCE), ("--nonsense",)])
def test_bad_usage_exits_2_with_one_line_that_points_to_help(cli: Cli, arguments: tuple[str, ...]) -> None:
    ran = cli(*arguments)
    assert ran.code == 2 and ran.out == ""
    assert re.fullmatch(r"graphprune: error: .+--help`\.\n", ran.err)


def test_a_defect_is_one_line_and_its_traceback_is_in_a_file(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody planned this")

    monkeypatch.setattr(graphprune, "prune", broken)
    ran = cli("prune", SOURCE, "--input", "1x1x8x8", "-o", "slim.safetensors")
    assert ran.code == 1 and ran.err.count("\n") == 1
    found = re.search(r"defect of graphprune \(ZeroDivisionError\); the traceback is in (\S+), and --debug prints it\.", ran.err)
    assert found is not None
    report = Path(found[1])
    assert "nobody planned this" in report.read_text()
    report.unlink()


def test_debug_prints_the_traceback_of_an_error(cli: Cli) -> None:
    plain = cli("inspect", "nowhere.pt2")
    debugged = cli("inspect", "nowhere.pt2", "--debug")
    assert "Traceback" not in plain.err
    assert debugged.err.startswith("Traceback") and debugged.err.endswith(plain.err)
    assert debugged.code == plain.code == 2


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(**options: bool) -> str:
        with Output(**options) as output, output.task("Training", total=3) as task:
            task.advance()
        return capsys.readouterr().err

    assert shown() == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = shown()
    assert "Training" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back
    assert shown(quiet=True) == shown(as_json=True) == ""


def test_progress_ends_when_the_work_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyboardInterrupt), Output() as output, output.task("Outer"), output.task("Inner"):
        raise KeyboardInterrupt
    text = capsys.readouterr().err
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_main_returns_the_exit_code() -> None:
    assert main(["passes", "--quiet"]) == 0
