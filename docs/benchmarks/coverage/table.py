"""Pages made from the rows: a table for each suite, and what is behind every model that is not whole."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import store
from store import Row

HERE = Path(__file__).resolve().parent
_REFERENCE = HERE / "reference.json"
_SMALLEST = HERE / "suites" / "timm_smallest.json"

_LEGEND = """\
- traced: *whole*, or how many modules did not trace and stay as they are (leaves), or how many were taken apart from
  an untraceable whole (scopes). operators: ATen calls that the analysis saw. groups: sets of coupled channels that can shrink.
- in reach: share of parameters and of MACs that goes when one unit of each group is left.
- error: largest relative error of any node against the masked original, which the pruned model must equal. A *d* after it: the
  model has more than 350 million parameters and was analysed on the meta device; cut, proved and measured is a copy of
  reduced depth.
- left: share of the parameters that the forward pass uses, with half of every group kept. reference: what a feasibility
  study of the same analysis found, kept as a yardstick. peer: torch-pruning 1.6.1 at ratio 0.5 with local ranking,
  of all parameters; both measured apart, "fails" where it raised an error or ran out of 100 s or memory.
- s: CPU seconds of capture, analysis, scoring, selection and rewrite, one thread. proof: those of the proof. MiB: growth of
  the resident memory during the first, over a process that holds the model. weights: MiB of the model's own parameters.
"""
_HEADINGS = (
    *("model", "traced", "operators", "groups", "parameters in reach", "MACs in reach", "error"),
    *("left", "reference", "peer", "s", "proof, s", "MiB", "weights, MiB"),
)


def publish(folder: Path, rows: Mapping[str, Row], compared: Mapping[str, Row]) -> None:
    """Write README.md, timm_all.md for more than timm's smallest models, model_types.md, and peer.md, each where it has rows."""
    smallest = {f"timm:{name}" for name in json.loads(_SMALLEST.read_text()).values()}
    others = {key: row for key, row in rows.items() if key.startswith("timm:") and key not in smallest}
    types = {key: row for key, row in rows.items() if key.startswith("model-type:")}
    chosen = {key: row for key, row in rows.items() if key not in others and key not in types}
    title = "Coverage: whole model zoos, cut in half and proved"
    _write(folder / "README.md", coverage_page(title, chosen, ("torchvision", "timm", "transformers")))
    if others:
        _write(folder / "timm_all.md", coverage_page("Coverage: the other models of timm", others, ("timm",)))
    if types:
        _write(folder / "model_types.md", coverage_page("Coverage: types of models of transformers", types, ("model-type",)))
    if compared:
        _write(folder / "peer.md", peer_page(compared))


def _write(path: Path, text: str) -> None:
    with store.atomic_write(path) as temporary:
        temporary.write_text(text)


def coverage_page(title: str, rows: Mapping[str, Row], suites: Sequence[str]) -> str:
    """A page with a table for each suite that has rows."""
    reference: dict[str, Row] = json.loads(_REFERENCE.read_text())
    lines = [f"# {title}", "", f"Made by `run.py` beside this page, which says how. {_made_with(rows)}", "", _LEGEND]
    for suite in suites:
        here = {key: row for key, row in rows.items() if key.startswith(f"{suite}:")}
        if here:
            lines += [f"## {suite}", "", summary(here, reference), ""]
            lines += _table(_HEADINGS, [_cells(row, reference) for row in here.values()])
            lines += [*_reasons(here), ""]
    return "\n".join(lines)


def _made_with(rows: Mapping[str, Row]) -> str:
    return "; ".join(sorted({row["made_with"] for row in rows.values() if "made_with" in row})) + "."


def summary(rows: Mapping[str, Row], reference: Mapping[str, Row]) -> str:
    """How many models, how many proved, and the figures that stand for all of them."""
    proved = [row for row in rows.values() if row["status"] == "proved"]
    worst = max((row["error"] for row in proved), default=0.0)
    whole = sum(not row.get("opaque") and not row.get("scopes") for row in proved)
    judged = [row for row in proved if "reference" in reference.get(row["key"], {})]
    met = sum(round(row["left"], 3) <= reference[row["key"]]["reference"] + 0.005 for row in judged)
    return (
        f"**{len(proved)} of {len(rows)} models proved** ({whole} of them traced whole); worst error {worst:.1e}. "
        f"Geometric means over these: {geomean([row['left'] for row in proved]):.3f} of the parameters left, "
        f"{geomean([row['prune_seconds'] for row in proved]):.2f} s."
        + (f" Of {len(judged)} with a reference, {met} leave no more than it (within 0.005)." if judged else "")
    )


def geomean(values: Sequence[float]) -> float:
    """The geometric mean; 0 for no values, and values under 1e-9 count as that."""
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values)) if values else 0.0


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "| --- | --- |" + " ---: |" * (len(headings) - 2)
    return [f"| {' | '.join(headings)} |", rule, *(f"| {' | '.join(cells)} |" for cells in rows)]


def _cells(row: Row, reference: Mapping[str, Row]) -> list[str]:
    known = reference.get(row["key"], {})
    plain: list[tuple[str, Callable[[float], str]]] = [
        ("operators", "{:.0f}".format),
        ("groups", "{:.0f}".format),
        ("prunable_parameters", "{:.1%}".format),
        ("prunable_macs", "{:.1%}".format),
    ]
    measured = [("prune_seconds", "{:.2f}"), ("proof_seconds", "{:.2f}"), ("peak_mib", "{:.0f}"), ("weights_mib", "{:.0f}")]
    return [
        row["key"].partition(":")[2],
        traced(row),
        *(show(row[name]) if name in row else "" for name, show in plain),
        _error(row),
        f"{row['left']:.3f}" if "left" in row else "",
        f"{known['reference']:.3f}" if "reference" in known else "",
        f"{known['peer']:.3f}" if "peer" in known else "fails" if "peer_fails" in known else "",
        *(form.format(row[name]) if name in row else "" for name, form in measured),
    ]


def traced(row: Row) -> str:
    """How a model was captured, in a few words."""
    if row["status"] == "refused" and row.get("stage") == "capture":
        return "**refused**"
    if row.get("scopes"):
        return f"{len(row['scopes'])} scopes"
    if "opaque" not in row:
        return f"**{row['status']}**"
    return f"{len(row['opaque'])} leaves" if row["opaque"] else "whole"


def _error(row: Row) -> str:
    if row["status"] != "proved":
        return f"**{row['status']}** in {row.get('stage', '?')}"
    return f"{row['error']:.1e}" + (" *d*" if row.get("analysed_without_values") else "")


def _reasons(rows: Mapping[str, Row]) -> list[str]:
    """Why models are not proved, what stayed a leaf and why, and operators without a rule."""
    bad = [row for row in rows.values() if row["status"] != "proved"]
    found = ["", "Not proved:", ""] if bad else []
    found += [f"- {_name(row)}: {row['status']} in {row.get('stage', '?')}: {_inline(_reason(row))}" for row in bad]
    leaves = [f"- {_name(row)}: {_leaves(row['opaque'])}" for row in rows.values() if row.get("opaque")]
    found += ["", "Leaves:", "", *leaves] if leaves else []
    missing = Counter(operator for row in rows.values() for operator in row.get("missing", ()))
    listed = ", ".join(f"{operator} ({count})" for operator, count in missing.most_common())
    return found + (["", f"Operators without a rule, with the number of models: {listed}."] if missing else [])


def _reason(row: Row) -> str:
    """What ended the row; an error that was not raised on purpose with its place in the code."""
    return row.get("reason", "") + (f" ({row['where']})" if row["status"] == "failed" and row.get("where") else "")


def _name(row: Row) -> str:
    return str(row["key"]).partition(":")[2]


def _inline(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _leaves(opaque: Mapping[str, str]) -> str:
    reasons = Counter(opaque.values())
    first = {reason: next(name for name, why in opaque.items() if why == reason) for reason in reasons}
    return "; ".join(f"{first[reason]}{f' and {n - 1} more' if n > 1 else ''}: {_inline(reason)}" for reason, n in reasons.items())


# -- the peer ------------------------------------------------------------------------------------------------------------

_PEER_HEADINGS = (
    *("model", "peer", "ours, s", "with proof, s", "peer, s", "times faster", "with proof"),
    *("ours, MiB", "peer, MiB", "weights, MiB", "left", "peer left"),
)


def peer_page(rows: Mapping[str, Row]) -> str:
    """The comparison with torch-pruning."""
    both = [row for row in rows.values() if row["status"] == "compared" and row["peer"] == "works"]
    speed = {row["key"]: row["seconds"]["peer"] / row["seconds"]["ours"] for row in both}
    proof = [row["seconds"]["peer"] / row["seconds"]["ours_proved"] for row in both]
    slower = sorted(key for key, times in speed.items() if times < 1)
    small = sum(row["mib"]["ours"] <= 1.5 * row["weights_mib"] + 300 for row in both)
    slowest = min(speed, key=lambda key: speed[key], default="")
    lines = [
        "# Time and memory against torch-pruning 1.6.1",
        "",
        f"Made by `run.py --against-peer` beside this page; `against.py` says how. {_made_with(rows)} "
        "Models without a row are not compared yet; the command goes on with the smallest of them.",
        "",
        f"Geometric mean over the {len(both)} models that both handle, of {len(rows)}: "
        f"**{geomean(list(speed.values())):.1f} times faster** without the proof, {geomean(proof):.1f} times with it. "
        f"Least: {speed.get(slowest, 0):.1f} times, {slowest}. "
        f"Slower on {len(slower)}{': ' + ', '.join(slower) if slower else ''}. "
        f"Peak memory under 1.5 times the weights and 300 MiB on {small} of {len(both)}.",
        "",
        *_table(_PEER_HEADINGS, [_peer_cells(row) for row in rows.values()]),
        "",
    ]
    return "\n".join(lines)


def _peer_cells(row: Row) -> list[str]:
    seconds, mib = row.get("seconds", {}), row.get("mib", {})

    def times(name: str) -> str:
        return f"{seconds['peer'] / seconds[name]:.1f}" if "peer" in seconds and name in seconds else ""

    return [
        row["key"],
        _inline(row.get("peer", row["status"]))[:60],
        *(f"{seconds[name]:.3f}" if name in seconds else "" for name in ("ours", "ours_proved", "peer")),
        *(times(name) for name in ("ours", "ours_proved")),
        *(f"{mib[name]:.0f}" if name in mib else "" for name in ("ours", "peer")),
        f"{row['weights_mib']:.0f}" if "weights_mib" in row else "",
        *(f"{row[name]:.3f}" if name in row else "" for name in ("left_with_unused", "peer_left")),
    ]
