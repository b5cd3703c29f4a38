"""Whole model zoos under torch.compile: does the slim model compile wherever the original does, and no oftener?

    python compile.py                        # torchvision, one model of each family of timm, and transformers
    python compile.py torchvision            # a suite: torchvision, timm, timm-all or transformers
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

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import run
import store
import watch
from store import Row
from suites import chosen

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


def main() -> int:
    """Do what is asked for, publishing after every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="suites (torchvision, timm, timm-all, transformers) or models")
    parser.add_argument("--again", action="store_true", help="do all models anew")
    parser.add_argument("--limit-seconds", type=float, default=600.0, help="limit of CPU time of one model")
    parser.add_argument("--limit-gib", type=float, default=14.0, help="limit of resident memory of one model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--publish", action="store_true", help="write the page from the rows, and stop")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.publish:
        publish(store.read(RESULTS))
        return 0
    keys = chosen(options.names)
    known = store.read(RESULTS)
    todo = [key for key in keys if options.again or key not in known]
    print(f"{len(keys)} models, {len(keys) - len(todo)} of them done already.", flush=True)
    start, limits = time.monotonic(), watch.Limits(options.limit_seconds, options.limit_gib)
    with closing(run.rows_of(todo, "compile_child.py", limits, options.jobs)) as found:
        for done, row in enumerate(found, 1):
            store.put(RESULTS, row)
            print(run.progress(row, done, len(todo), start), flush=True)
            publish(store.read(RESULTS))
    rows = store.read(RESULTS)
    return int(any(rows[key]["status"] == "worse" for key in keys))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted; the rows that were finished are kept.")
