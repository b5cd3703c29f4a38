"""Folders of runs written by hand, and pages as their parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from graphprune.runs.history import Round, Status

MakeRun = Callable[..., Path]


@dataclass
class Parsed(HTMLParser):
    """A page as a browser reads it: text and tables by section, scripts, data blocks and addresses."""

    data: dict[str, Any] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    tags: list[tuple[str, Mapping[str, str | None]]] = field(default_factory=list)
    text: dict[str, str] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._section, self._caption, self._open = "", "", ""
        self._block: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._open = tag
        if tag == "section":
            self._section = str(found["id"])
        elif tag == "script":
            self._block = found.get("id") if found.get("type") == "application/json" else ""
        elif tag == "table":
            self._caption = ""
        elif tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""
        self._block = None if tag == "script" else self._block

    def handle_data(self, data: str) -> None:
        if self._block:
            self.data[self._block] = json.loads(data)
        elif self._block == "":
            self.scripts.append(data)
        elif self._open == "caption":
            self._caption += data
        elif self._open in ("td", "th"):
            self.tables[self._caption][-1][-1] += data
        else:
            self.text[self._section] = self.text.get(self._section, "") + data


def parsed(path: Path) -> Parsed:
    """A page that was written."""
    found = Parsed()
    found.feed(path.read_text(encoding="utf-8"))
    return found


def a_round(number: int, status: Status, accuracy: float, macs: int, widths: Mapping[str, int], note: str = "") -> Round:
    """A round with as many parameters as MACs."""
    return Round(number, status, accuracy, macs, macs, number, widths=dict(widths), note=note)


#: Three rounds of which the second one is taken back.
ROUNDS = (
    a_round(0, "dense", 0.9, 1000, {"a": 8, "b": 16}),
    a_round(1, "rolled back", 0.5, 300, {"a": 2, "b": 6}, "too far"),
    a_round(2, "final", 0.85, 600, {"a": 5, "b": 12}),
)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes the folder of a run that was started from Python."""

    def make(name: str = "run", rounds: Sequence[Round] = ROUNDS, method: str = "adaptive") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = [json.dumps(asdict(row)) + "\n" for row in rounds]
        (folder / "rounds.jsonl").write_text("".join(lines), encoding="utf-8")
        about = {"version": 1, "method": method, "options": json.dumps({"target": "macs=50%"}), "seed": "0"}
        (folder / "journal.jsonl").write_text(json.dumps(about) + "\n", encoding="utf-8")
        return folder

    return make
