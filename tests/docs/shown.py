"""The ``sh`` blocks of a page with the output that it shows for them, and whether a command printed that."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

NO_RUN = "<!-- no-run -->"
_BLOCK = re.compile(r"^```sh\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d[\d,.]*(?:e-?\d+)?")
_ERROR = re.compile(r"\d\.\de-\d+")
_BARS = re.compile(r"[▁-█][ ▁-█]*")
_TIMED = {"run", "profile", "compare", "export"}


@dataclass(frozen=True)
class Shown:
    """A block. commands: arguments of its lines that start with ``graphprune``. output: what a text block right below it shows."""

    line: int
    runs: bool
    commands: tuple[tuple[str, ...], ...]
    output: str

    @property
    def exact(self) -> bool:
        """Whether its numbers are the same everywhere: nothing was trained, and nothing timed."""
        return not any(_TIMED & {words[0]} or "graphprune-demo" in " ".join(words) for words in self.commands)

    def missing(self, printed: str) -> str | None:
        """The first line of the shown output that was not printed, in its order; None where all were.

        Widths of columns and rules count for nothing, nor does ``...``. Rounding errors are free, and other numbers unless they
        are exact.
        """
        lines = iter([_plain(line, self.exact) for line in printed.splitlines()])
        for line in self.output.splitlines():
            wanted = _plain(line, self.exact)
            if wanted not in ("", "...") and wanted not in lines:  # goes on behind the line that it finds
                return line
        return None


def shown(text: str) -> Iterator[Shown]:
    """The blocks of a page that have command lines, continued lines joined."""
    for match in _BLOCK.finditer(text):
        lines = match[1].replace("\\\n", " ").splitlines()
        found = tuple(tuple(shlex.split(line, comments=True)[1:]) for line in lines if line.startswith("graphprune "))
        runs = not text[: match.start()].rstrip().endswith(NO_RUN)
        if found:
            yield Shown(text[: match.start()].count("\n") + 1, runs, found, match[2] or "")


def _plain(line: str, exact: bool) -> str:
    text = _ERROR.sub("#", line.replace("─", " "))
    if not exact:
        text = _NUMBER.sub("#", _BARS.sub("#", text))
    return " ".join(text.split())
