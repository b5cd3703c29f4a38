"""Clocks that are set back or forward: no result, no order and no time left depends on them."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import pytest

import graphprune
from graphprune.cli.output import Output
from graphprune.cli.watching import counted
from tests.failure.commands import COMMANDS
from tests.failure.conftest import Whole
from tests.failure.processes import Stopping, run

PACKAGE = Path(graphprune.__file__).parent
WALL = re.compile(r"\btime\.time\(|\bfrom time import .*\btime\b|\bdatetime\.(?:now|utcnow)\(|\bst_mtime\b|\bgetmtime\(")


def wild() -> None:
    """The wall clock jumps by years, back and forth, at every look."""
    jumps = itertools.cycle([2e9, 0.0, 1e9, 5e8])
    time.time = lambda: next(jumps)
    time.time_ns = lambda: int(next(jumps) * 1e9)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_result_does_not_depend_on_the_wall_clock(name: str, tmp_path: Path, whole: Whole) -> None:
    command = COMMANDS[name]
    assert run(command.line(), tmp_path, wild, Stopping("os:replace", 1, killed=True)).code < 0
    ran = run(command.line(), tmp_path, wild)
    assert ran.code == 0, ran.out
    assert command.result(tmp_path) == whole(name)


def test_nobody_looks_at_the_wall_clock_but_the_date_of_a_report() -> None:
    sources = [*PACKAGE.rglob("*.py"), *(PACKAGE / "passes").rglob("*.py"), *(PACKAGE / "kernels").rglob("*.py")]
    found = {path.relative_to(PACKAGE).as_posix() for path in sources if WALL.search(path.read_text(encoding="utf-8"))}
    assert found == {"cli/report.py"}


def test_the_time_left_of_a_measurement_that_goes_on_is_never_negative() -> None:
    said: list[str] = []
    with Output(quiet=True) as output, output.task("Measuring", total=1.0) as task:
        progress = counted(task, "Measuring")
        for done, total in ((20, 24), (22, 24), (24, 24), (26, 24)):  # a design may ask for more than was expected
            progress(done, total)
            said.append(output._progress.tasks[0].description)
    left = [int(number) for text in said for number in re.findall(r"about (-?\d+) s left", text)]
    assert len(left) == 3 and min(left) >= 0
