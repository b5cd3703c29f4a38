"""Targets: what must remain, as a share of the original or as an absolute amount."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from graphprune.errors import UsageError, unknown

_COUNTS: Final = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES: Final = {
    "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
}  # fmt: skip

#: What a target can be set on, with the suffixes that its amounts may have and what each is worth.
KINDS: Final[Mapping[str, Mapping[str, float]]] = {
    "channels": _COUNTS,
    "params": _COUNTS,
    "macs": _COUNTS,
    "flops": _COUNTS,
    "weight_bytes": _BYTES | _COUNTS,
    "memory": _BYTES | _COUNTS,
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*(%|[a-zA-Z]+)?")


@dataclass(frozen=True)
class Target:
    """How much of something may remain.

    kind: one of :data:`KINDS`: ``channels`` (prunable units), ``params``, ``macs``, ``flops`` (2 for each MAC), ``weight_bytes``
    (parameters and buffers), ``memory`` (peak bytes of activations at the example inputs) or ``latency`` (milliseconds, by a
    table of ``graphprune profile``). text: as the user wrote it.
    share: of the original, or None for an absolute ``amount``.
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
    """A target from ``50%``, ``0.5`` (a share), ``60M`` or ``20MiB`` (an amount). Raises UsageError for anything else."""
    text = str(value).strip()
    match = _NUMBER.fullmatch(text)
    _check_kind(kind)
    suffixes = KINDS[kind]
    if match is None or match[3] not in (None, "%", *suffixes):
        why = "is negative" if text.startswith("-") else "is no number"
        raise UsageError(f"Target {kind}={text} {why}; write what must remain, as 50%, 0.5 or 60{list(suffixes)[1]}.")
    number = float(match[1] + (match[2] or ""))
    suffix = match[3]
    if suffix in suffixes:
        return Target(kind, text, None, number * suffixes[suffix])
    share = number / 100 if suffix == "%" else number
    if suffix is None and share > 1:
        if share.is_integer() and kind not in ("channels", "latency"):
            return Target(kind, text, None, share)
        raise UsageError(f"Target {kind}={text} is over 100 %; write what must remain, as 50%, 0.5 or 60{list(suffixes)[1]}.")
    if not 0 < share <= 1:
        raise UsageError(f"Target {kind}={text} must be over 0 % and at most 100 %: it says what remains.")
    return Target(kind, text, share)


def split_target(text: str) -> tuple[str, str]:
    """``macs=50%`` as its kind and value. Raises UsageError when there is no ``=``."""
    kind, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"Target {text!r} has no '='; write it as macs=50%, params=2M or weight_bytes=20MB.")
    return kind.strip(), value.strip()


def read_targets(target: str | Mapping[str, float | str]) -> dict[str, float | str]:
    """Amounts by kind, as a user gives them: ``macs=50%``, or a mapping of several. Raises UsageError for unknown kinds.

    >>> read_targets("macs=50%"), read_targets({"macs": 0.5, "params": "2M"})
    ({'macs': '50%'}, {'macs': 0.5, 'params': '2M'})
    """
    if not isinstance(target, str | Mapping):
        raise UsageError(f"Target {target!r} does not say of what; write it as macs=50%, params=2M or weight_bytes=20MB.")
    found: dict[str, float | str] = dict([split_target(target)] if isinstance(target, str) else target)
    for kind in found:
        _check_kind(kind)
    return found


def asked_for(target: str | Mapping[str, float | str] | None, keep: object) -> dict[str, float | str]:
    """The targets that a user gives beside ``keep``: by default half of the MACs, and none where it says what stays.

    >>> asked_for(None, None), asked_for(None, {"layer1": "50%"})
    ({'macs': '50%'}, {})
    """
    return read_targets(target if target is not None else {} if keep else "macs=50%")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UsageError(unknown("target", kind, KINDS, "Targets"))
