"""The page of the latency benchmark, made from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

Row = dict[str, Any]

_HEAD = """# Targets on measured latency

Made by `run.py` beside this page, which says how. {versions}.

A latency table predicts; selection times what it chooses and puts the budget right. *measured* is the latency of the rewritten
model as a share of the original's, timed by turns with it in other measurements after the selection. What follows ± is
one standard error, over copies of both in memory and, where there are several, over measurements. score: the share of the l2
importance (scaled within groups) that the slim model keeps.
"""


def page(rows: Sequence[Row], models: Sequence[str], shares: Sequence[float]) -> str:
    """All of it, as Markdown."""
    versions = "; ".join(dict.fromkeys(row["made_with"] for row in rows))
    parts = [_HEAD.format(versions=versions)]
    for device, mode in product(("cpu", "cuda"), ("eager", "compiled")):
        chosen = [row for row in rows if row.get("mode") == mode and row.get("device", "cpu") == device]
        if chosen:
            place = "" if device == "cpu" else ", on a GPU"
            parts += [f"## Targets, {mode}{place}\n", _summary(chosen), _targets(chosen, models, shares), _profiles(chosen, models)]
    against = [row for row in rows if row["key"].endswith("/peer")]
    if against:
        parts += ["## Against torch-pruning 1.6.1, at half the MACs\n", _peer(against, models)]
    return "\n".join(parts).rstrip() + "\n"


def _summary(rows: Sequence[Row]) -> str:
    met = [row for row in rows if row["way"] == "latency" and "reached" in row]
    within = sum(abs(row["reached"] / row["asked"] - 1) <= 0.02 for row in met)
    worst = max((abs(row["reached"] / row["asked"] - 1) for row in met), default=0.0)
    asked = sum(row["way"] == "latency" for row in rows)
    text = f"{within} of {asked} targets on latency are within 2 % of the target; the worst is {worst:.1%} off."
    errors = [row["reached_error"] / row["reached"] for row in met if "reached_error" in row]
    if errors:
        text += f" These figures are sure to {max(errors):.1%} or better (one standard error)."
    if any(row["timing"] != "three times" for row in met):
        text += " Some were measured once: their error leaves out what changes from one measurement to the next."
    return text + "\n"


def _targets(rows: Sequence[Row], models: Sequence[str], shares: Sequence[float]) -> str:
    lines = [
        "| model | target | measured | MACs left | parameters left | score kept | score, uniform | score, by MACs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    by_key = {(row["model"], row["asked"], row["way"]): row for row in rows}
    for model in models:
        for share in shares:
            row = by_key.get((model, share, "latency"))
            if row is None:
                continue
            if "refused" in row:
                lines.append(f"| {model} | {share:.0%} | {row['refused']} | | | | | |")
                continue
            others = [_other(by_key.get((model, share, way)), "score") for way in ("uniform", "MACs")]
            figures = [_reached(row), f"{row['macs']:.1%}", f"{row['params']:.1%}", f"{row['score']:.1%}", *others]
            lines.append(f"| {model} | {share:.0%} | " + " | ".join(figures) + " |")
    return "\n".join([*lines, ""])


def _other(row: Row | None, name: str) -> str:
    if row is None:
        return ""
    return "refused" if "refused" in row else f"{row[name]:.1%} (at {_reached(row)})"


def _reached(row: Row) -> str:
    error = row.get("reached_error")
    return f"{row['reached']:.1%}" + ("" if error is None else f" ± {error:.1%}")


def _profiles(rows: Sequence[Row], models: Sequence[str]) -> str:
    lines = [
        "| model | batch | latency, ms | slim models in the table | seconds | held-out error, mean |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model in models:
        known = [row for row in rows if row["model"] == model and "whole_ms" in row]
        if known:
            seconds = max(row["profile_seconds"] for row in known)
            error = known[0]["held_out"]
            shown = "" if error is None else f"{error:.1%}"
            took = f"{seconds:.0f}" if seconds > 1 else ""
            lines.append(
                f"| {model} | {known[0].get('batch', '')} | {known[0]['whole_ms']:.2f} | {known[0]['samples']} | {took} | {shown} |"
            )
    return "\n".join([*lines, ""])


def _speed(row: Row, what: str) -> str:
    left, error = row[f"{what}_latency"], row.get(f"{what}_latency_error")
    return f"{1 / left:.2f}" + ("" if error is None else f" ± {error / left**2:.2f}")


def _peer(rows: Sequence[Row], models: Sequence[str]) -> str:
    lines = [
        "| model | peer: MACs left | speed-up | ours at these MACs: speed-up | ours at the peer's latency: MACs left | speed-up |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    by_model = {row["model"]: row for row in rows}
    for model in (model for model in models if model in by_model):
        row = by_model[model]
        if "refused" in row:
            lines.append(f"| {model} | {row['refused']} | | | | |")
            continue
        speed = {what: _speed(row, what) for what in ("peer", "same_macs", "same_latency")}
        figures = [
            f"{row['peer_macs']:.1%}",
            speed["peer"],
            speed["same_macs"],
            f"{row['same_latency_macs']:.1%}",
            speed["same_latency"],
        ]
        lines.append(f"| {model} | " + " | ".join(figures) + " |")
    return "\n".join([*lines, ""])
