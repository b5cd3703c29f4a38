"""Numbers, shares and lists as people read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphprune.costs.cost import Costs
    from graphprune.verification import Verification

_DECIMAL = ("", " K", " M", " G", " T", " P")
_BYTES = (" B", " KiB", " MiB", " GiB", " TiB")


def count(value: float) -> str:
    """A number as people read it: 1,234 or 25.6 M."""
    return f"{value:,.0f}" if value < 100_000 else _scaled(value, 1000, _DECIMAL)


def several(number: int, noun: str) -> str:
    """So many of something.

    >>> several(1, "thread"), several(4, "thread")
    ('1 thread', '4 threads')
    """
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def size(value: float) -> str:
    """Bytes as people read them."""
    return _scaled(value, 1024, _BYTES)


def share(part: float, whole: float) -> str:
    """A share as a percentage; a dash where there is no whole."""
    return f"{part / whole:.1%}" if whole else "-"


def cost_rows(before: Costs, after: Costs) -> list[tuple[str, str, str, str]]:
    """Each kind of cost, by name: before, after, and the share of it that remains."""
    rows: list[tuple[str, int, int, Callable[[float], str]]] = [
        ("parameters", before.parameters, after.parameters, count),
        ("MACs (multiply-accumulates)", before.macs, after.macs, count),
        ("FLOPs (2 per MAC)", before.flops, after.flops, count),
        ("weights in memory", before.weight_bytes, after.weight_bytes, size),
        ("peak activations", before.activation_bytes, after.activation_bytes, size),
    ]
    return [(name, show(old), show(new), share(new, old)) for name, old, new, show in rows]


def columns(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Rows of a name and figures, in columns.

    >>> print(columns([("", "original", "slim", "remains"), ("parameters", "1,234", "617", "50.0%")]))
                original  slim  remains
    parameters     1,234   617    50.0%
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line) for line in lines)


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    index = 0
    while value >= step and index < len(units) - 1:
        value, index = value / step, index + 1
    return f"{value:.0f}{units[0]}" if index == 0 else f"{value:.{2 if value < 10 else 1}f}{units[index]}"


def verification_line(verification: Verification | None) -> str:
    """The proof in one line."""
    if verification is None:
        return "Not verified (--no-verify)."
    if not verification.passed:
        return f"Not equal to the masked original: {verification.failure}"
    return (
        f"Verified against the masked original: largest relative error {verification.error:.1e} "
        f"(tolerance {verification.tolerance:.0e}) over {several(verification.compared, 'tensor')}."
    )


def listed(names: Iterable[str], shown: int = 3) -> str:
    """The first few names and how many more there are."""
    every = list(names)
    more = f" and {len(every) - shown:,} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more
