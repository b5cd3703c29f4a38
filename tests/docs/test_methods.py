"""The pages of the methods name every option of theirs, with its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from graphprune.methods.method import METHODS, Options

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted((DOCS / "methods").glob("*.md"))


def rows(text: str) -> dict[str, str]:
    """Option and default, as written, of the table of options; a row may hold several of both."""
    found: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \| ", text[text.index("## Options") :], re.MULTILINE):
        shown = names.split(", ")
        found |= dict(zip(shown, defaults.split(", ") if len(shown) > 1 else [defaults], strict=True))
    return {name.strip("`"): default for name, default in found.items()}


def written(default: Any) -> str:
    """A default as the tables write it."""
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return ", ".join(map(written, default))
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_option_is_on_the_page_with_its_default(page: Path) -> None:
    fields = METHODS[page.stem].options.model_fields
    shared = {name for name, field in Options.model_fields.items() if repr(fields[name]) == repr(field)}
    own = {name: written(field.default) for name, field in fields.items() if name not in shared}
    assert rows(page.read_text(encoding="utf-8")) == own


def test_a_missing_option_would_be_seen() -> None:
    """The negative twin: rows are read one by one, and those of several options are taken apart."""
    table = "## Options\n\n| option | default | what |\n| --- | --- | --- |\n| `a`, `b` | `1`, none | x |\n| `c` | `2` | y |\n"
    assert rows(table) == {"a": "`1`", "b": "none", "c": "`2`"}
    assert len(PAGES) == 4
