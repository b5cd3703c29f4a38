"""What the commands leave when nothing goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest

from tests.failure.commands import COMMANDS
from tests.failure.processes import run

Whole = Callable[[str], Mapping[str, bytes]]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The files of a command that is left alone, by its name."""

    @cache
    def made(name: str) -> Mapping[str, bytes]:
        folder = tmp_path_factory.mktemp(name)
        ran = run(COMMANDS[name].line(), folder)
        assert ran.code == 0, ran.out
        found = COMMANDS[name].result(folder)
        assert set(found) == set(COMMANDS[name].results)
        return found

    return made
