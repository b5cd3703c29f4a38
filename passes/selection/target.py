"""Targets: what must remain, as a share of the original or as an absolute amount."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from graphprune.errors import UsageError

KINDS: Final = ("channels", "params", "macs")
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*(%|[kKMGT])?")
_SUFFIX: Final = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Target:
    """How much of something may remain.

    kind: ``channels`` (prunable units), ``params`` or ``macs``. text: as the user wrote it. share: of the original,
    or None for an absolute ``amount``.
    """

    kind: str
    text: str
    share: float | None
    amount: float | None = None

    def limit(self, original: float) -> float:
        """The largest amount allowed, given that of the original."""
        if self.share is not None:
            return self.share * original
        assert self.amount is not None
        return self.amount

    def __str__(self) -> str:
        return f"{self.kind}={self.text}"


def parse_target(kind: str, value: float | str) -> Target:
    """A target from ``50%``, ``0.5`` (a share) or ``60M`` (an amount). Raises UsageError for anything else."""
    text = str(value).strip()
    match = _NUMBER.fullmatch(text)
    if kind not in KINDS:
        raise UsageError(f"There is no target {kind!r}; choose from {', '.join(KINDS)}.")
    if match is None:
        raise UsageError(f"Target {kind}={text} is no number; write what must remain, as 50%, 0.5 or 60M.")
    number = float(match[1] + (match[2] or ""))
    suffix = match[3]
    if suffix in _SUFFIX:
        return Target(kind, text, None, number * _SUFFIX[suffix])
    share = number / 100 if suffix == "%" else number
    if suffix is None and share > 1:
        if share.is_integer() and kind != "channels":
            return Target(kind, text, None, share)
        raise UsageError(f"Target {kind}={text} is over 100 %; write what must remain, as 50% or 0.5.")
    if not 0 < share <= 1:
        raise UsageError(f"Target {kind}={text} must be over 0 % and at most 100 %: it says what remains.")
    return Target(kind, text, share)


def split_target(text: str) -> tuple[str, str]:
    """``macs=50%`` as its kind and value. Raises UsageError when there is no ``=``."""
    kind, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"Target {text!r} has no '='; write it as macs=50%, params=50% or channels=50%.")
    return kind.strip(), value.strip()
