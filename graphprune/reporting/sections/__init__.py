"""The sections of a report, one file each: from the material to plain facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from graphprune.reporting.facts import Section
from graphprune.reporting.material import Material
from graphprune.reporting.sections.comparison import comparison
from graphprune.reporting.sections.coupling import coupling
from graphprune.reporting.sections.importance import importance
from graphprune.reporting.sections.latency import latency
from graphprune.reporting.sections.repeat import repeat
from graphprune.reporting.sections.rounds import rounds
from graphprune.reporting.sections.summary import summary
from graphprune.reporting.sections.widths import widths

#: In the order of the page. Each returns None where it has no place in a report of this kind.
SECTIONS: Final[Sequence[Callable[[Material], Section | None]]] = (
    summary, comparison, rounds, widths, coupling, importance, latency, repeat,
)  # fmt: skip


def sections_of(material: Material) -> list[Section]:
    """All sections that the material has a place for."""
    found = (section(material) for section in SECTIONS)
    return [section for section in found if section is not None]
