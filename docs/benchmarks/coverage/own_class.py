"""Whole model zoos that keep their classes: what is pruned, and does the model's own code do what the proved graph does?

    python own_class.py                        # torchvision, one model of each family of timm, and transformers
    python own_class.py torchvision            # a suite: torchvision, timm, timm-all, transformers or model-type
    python own_class.py timm:convnext_nano     # models
    python own_class.py --again resnet18       # anew; without it only what has no row yet is done

Every model is built with random weights in a child process of its own, and cut to half of every group, as a graph and with
``keep_class=True``. *same*: the model of its own class computes in eval mode what its graph computes, and runs in train mode if its
original does. Rows go to ``own_class.jsonl`` after every model, and ``own_class.md`` is made from them. Exit code 1 if a model that
was asked for is not the same.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import store
import zoo
from store import Row

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "own_class.jsonl"

_HEAD = """# Slim models of their own class

Made by `own_class.py` beside this page, which says how. Models: {summary}. {made_with}.

{summary_of_left}

left: share of the parameters, of the graph / of the model that keeps its class. stays: groups that stay wide for the code, with the
commonest reason. attributes: numbers in the model's modules that were changed. s: CPU seconds of pruning, without / with the class.

| model | result | left | stays | attributes | train | s |
| --- | --- | ---: | --- | ---: | --- | ---: |
"""


def page(rows: Mapping[str, Row]) -> str:
    """The table, as Markdown."""
    counts = Counter(row["status"] for row in rows.values())
    summary = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    made_with = "; ".join(dict.fromkeys(row["made_with"] for row in rows.values()))
    return (
        _HEAD.format(summary=summary, made_with=made_with, summary_of_left=_left(rows))
        + "\n".join(f"| {key} | {_result(row)} | {_cells(row)} |" for key, row in sorted(rows.items()))
        + "\n"
    )


def _left(rows: Mapping[str, Row]) -> str:
    done = [row for row in rows.values() if "own_left" in row]
    if not done:
        return ""
    means = [statistics.geometric_mean(row[key] for row in done) for key in ("graph_left", "own_left")]
    equal = sum(row["own_left"] <= row["graph_left"] + 0.005 for row in done)
    return (
        f"Parameters left, geometric means: {means[0]:.3f} as graphs, {means[1]:.3f} with their classes. {equal} of {len(done)} "
        "lose nothing by it (within 0.005)."
    )


def _result(row: Row) -> str:
    return f"{row['status']}: {row['reason']}" if row.get("reason") else str(row["status"])


def _cells(row: Row) -> str:
    if "own_left" not in row:
        return " |  |  |  | "
    stays = f"{row['stays']}: {row['why']}" if row["stays"] else ""
    seconds = f"{row['graph_seconds']:.2f} / {row['own_seconds']:.2f}"
    return f"{row['graph_left']:.3f} / {row['own_left']:.3f} | {stays} | {row['attributes']} | {row['train']} | {seconds}"


def publish(rows: Mapping[str, Row]) -> None:
    """Write the page."""
    with store.atomic_write(HERE / "own_class.md") as temporary:
        temporary.write_text(page(rows))


if __name__ == "__main__":
    sys.exit(zoo.main(__doc__, "own_class_child.py", RESULTS, publish, "differs"))
