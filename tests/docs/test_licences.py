"""The list of licences is that of the dependencies, and each licence on it is one that was agreed to."""

from __future__ import annotations

import re
import runpy
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, Final

import pytest

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
SCRIPT: Final[dict[str, Any]] = runpy.run_path(str(DOCS / "licences.py"))
LISTED: Final = dict(
    re.findall(r"^\| ([a-z0-9][a-z0-9-]*) \| ([^|]+) \| [^|]+ \|$", (DOCS / "licences.md").read_text(), re.MULTILINE)
)
LISTED.pop("package")  # the heading


def test_the_list_has_every_dependency_and_no_other() -> None:
    assert LISTED.keys() == SCRIPT["dependencies"]().keys()
    assert {"torch", "pytest", "mkdocs"} <= LISTED.keys()


@pytest.mark.parametrize("name", SCRIPT["dependencies"]())
def test_every_licence_is_agreed_to_and_is_what_the_installed_package_states(name: str) -> None:
    assert set(LISTED[name].split(", ")) <= SCRIPT["LICENCES"].keys()
    try:
        stated = SCRIPT["licence"](name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    assert LISTED[name] == stated


def test_a_licence_that_is_not_on_the_list_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("Proprietary", "MIT AND Proprietary", ""):
        monkeypatch.setitem(SCRIPT["licence"].__globals__, "stated", lambda name, text=text: text)
        with pytest.raises(ValueError, match="not on the list"):
            SCRIPT["licence"]("anything")
