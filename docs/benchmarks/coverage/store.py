"""Rows of results: one JSON object a line, sorted by model, in a file that is always whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clone  # noqa: F401  (makes graphprune importable)

from graphprune.files import atomic_write

Row = dict[str, Any]


def read(path: Path) -> dict[str, Row]:
    """Rows by the key of their model; none where the file does not exist yet."""
    if not path.exists():
        return {}
    rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["key"]: row for row in rows}


def put(path: Path, row: Row) -> None:
    """Add or replace the row of one model. The file is read anew, so that rows of another run of the script stay."""
    rows = read(path) | {row["key"]: row}
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(rows[key]) + "\n" for key in sorted(rows)))
