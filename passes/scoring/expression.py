"""Criteria as text: ``l2``, ``attention(p=2,statistic=max)``, and weighted sums such as ``0.5*l2+0.5*taylor``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from graphprune.criteria import Criterion, Floats, ScoringContext, find_criterion
from graphprune.errors import UsageError
from graphprune.statistic import Statistic

_TERM: Final = re.compile(
    r"\s*(?:(?P<weight>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*\*)?\s*(?P<name>[A-Za-z_][\w-]*)\s*(?:\((?P<options>[^()]*)\))?\s*"
)


@dataclass(frozen=True)
class Term:
    """A criterion with its options, and its weight in the sum."""

    criterion: Criterion
    options: dict[str, Any]
    weight: float = 1.0

    @property
    def needs(self) -> Sequence[Statistic]:
        """What it reads of calibration data."""
        return self.criterion.needs(**self.options)

    @property
    def streams(self) -> bool:
        """Whether it reads the weights one tensor after another."""
        return self.criterion.streams(**self.options)

    def score(self, context: ScoringContext) -> Floats:
        """Importance of every unit, not yet weighted."""
        return self.criterion(context, **self.options)


def parse_criterion(text: str) -> tuple[Term, ...]:
    """The terms of a criterion. Raises UsageError for text that is none, unknown names and options, and weights of 0.

    >>> [(term.criterion.name, term.weight) for term in parse_criterion("0.25*l1+0.75*l2")]
    [('l1', 0.25), ('l2', 0.75)]
    """
    if not isinstance(text, str):
        raise UsageError(
            f"A criterion is named by text, and was given as a {type(text).__name__}. Register one of your own with "
            "graphprune.criteria.criterion, and give its name."
        )
    terms = []
    position = 0
    while True:
        found = _TERM.match(text, position)
        if found is None:
            raise _malformed(text, position)
        terms.append(_term(found))
        position = found.end()
        if position == len(text):
            return tuple(terms)
        if text[position] != "+":
            raise _malformed(text, position)
        position += 1


def _term(found: re.Match[str]) -> Term:
    criterion = find_criterion(found["name"])
    texts = {}
    for part in (found["options"] or "").split(","):
        if part.strip():
            name, equals, value = part.partition("=")
            if not equals:
                raise UsageError(f"{part.strip()!r} in {found[0].strip()!r} has no '='. Write options as name=value.")
            if name.strip() in texts:
                raise UsageError(f"{found[0].strip()!r} gives {name.strip()} twice. Leave one out.")
            texts[name.strip()] = value.strip()
    weight = float(found["weight"] or 1)
    if not weight:
        raise UsageError(f"{found[0].strip()!r} has the weight 0 and would not count. Leave it out.")
    return Term(criterion, criterion.read(texts), weight)


def _malformed(text: str, position: int) -> UsageError:
    rest = text[position:] or "its end"
    return UsageError(f"The criterion {text!r} cannot be read at {rest!r}. Write it as l2, attention(p=2), or 0.5*l2+0.5*taylor.")
