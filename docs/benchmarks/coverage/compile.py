"""Whole model zoos under torch.compile: does the slim model compile wherever the original does, and no oftener?

    python compile.py                        # torchvision, one model of each family of timm, and transformers
    python compile.py torchvision            # a suite: torchvision, timm, timm-all, transformers or model-type
    python compile.py timm:convnext_nano     # models
    python compile.py --again resnet18       # anew; without it only what has no row yet is done

Every model is built with random weights in a child process of its own, cut to half of every group, and compiled as its original is
(Dynamo, backend ``eager``), in eval and in train mode, at two batch sizes one after the other. A row says for both models whether
``fullgraph=True`` goes through, how many graphs Dynamo made of the two sizes, and at how many places it broke. *same*: the slim
model is whole where the original is, has no more graphs and breaks, and computes compiled what it computes eagerly (in train mode
from the same seed, running statistics included). Rows go to ``compile.jsonl`` after every model, and ``compile.md`` is made from
them. Exit code 1 if a model that was asked for is worse than its original.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import store
import zoo
from store import Row

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "compile.jsonl"

_HEAD = """# Slim models under torch.compile

Made by `compile.py` beside this page, which says how. Models: {summary}. {made_with}.

graphs: how many Dynamo makes for two batch sizes. Each cell: original / slim; *b* counts graph breaks.

| model | result | eval | train |
| --- | --- | ---: | ---: |
"""


def page(rows: Mapping[str, Row]) -> str:
    """The table, as Markdown."""
    counts = Counter(row["status"] for row in rows.values())
    summary = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    made_with = "; ".join(dict.fromkeys(row["made_with"] for row in rows.values()))
    lines = [f"| {key} | {_result(row)} | {_cell(row, 'eval')} | {_cell(row, 'train')} |" for key, row in sorted(rows.items())]
    return _HEAD.format(summary=summary, made_with=made_with) + "\n".join(lines) + "\n"


def _result(row: Row) -> str:
    return f"{row['status']}: {row['reason']}" if row.get("reason") else str(row["status"])


def _cell(row: Row, mode: str) -> str:
    both = [row.get(f"{which}_{mode}") for which in ("original", "slim")]
    return " / ".join("" if one is None else _counts(one) for one in both)


def _counts(found: Row) -> str:
    if "error" in found:
        return "fails"
    return f"{found['graphs']}" + (f" ({found['breaks']}b)" if found["breaks"] else "")


def publish(rows: Mapping[str, Row]) -> None:
    """Write the page."""
    with store.atomic_write(HERE / "compile.md") as temporary:
        temporary.write_text(page(rows))


if __name__ == "__main__":
    sys.exit(zoo.main(__doc__, "compile_child.py", RESULTS, publish, "worse"))
