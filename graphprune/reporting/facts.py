"""What a section of a report consists of: plain data, before anything is drawn or escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tile:
    """One figure before and after. share: what remains, from 0 to 1, for the bar under it; None for a figure without one."""

    label: str
    after: str
    before: str = ""
    change: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of text. columns: headings; a leading ``#`` marks a column of numbers, as in the tables of the command line.

    folded: behind a line that opens it, as the figures of a drawing are.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = True


@dataclass(frozen=True)
class Chart:
    """A drawing that the page's script makes. kind: which one. label: what it shows, in words, for who does not see it.

    data: JSON. height: pixels, at least.
    """

    kind: str
    label: str
    data: Any
    height: int = 320


@dataclass(frozen=True)
class Text:
    """Text to read or copy as it is, such as a command. save: the name of a file to save it as, if any."""

    caption: str
    text: str
    save: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Missing:
    """What a section lacks, and how to get it. Both are whole sentences."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Section:
    """A section of the page: drawings, then the same figures as tables. key: its anchor."""

    key: str
    title: str
    lead: str = ""
    tiles: Sequence[Tile] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    texts: Sequence[Text] = ()
    missing: Sequence[Missing] = ()
