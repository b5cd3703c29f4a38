"""The command of a benchmark that has one child process for each model: what has no row yet is done, and published."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import run
import store
import watch
from store import Row
from suites import chosen


def main(about: str | None, script: str, results: Path, publish: Callable[[Mapping[str, Row]], None], bad: str) -> int | str:
    """Do what the command line asks for, publishing after every model; returns the exit code, or why it stopped.

    about: help. script: the child. results: the file of rows. bad: a status for which the exit code is 1.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="suites (torchvision, timm, timm-all, transformers) or models")
    parser.add_argument("--again", action="store_true", help="do all models anew")
    parser.add_argument("--limit-seconds", type=float, default=600.0, help="limit of CPU time of one model")
    parser.add_argument("--limit-gib", type=float, default=14.0, help="limit of resident memory of one model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--publish", action="store_true", help="write the page from the rows, and stop")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.publish:
        publish(store.read(results))
        return 0
    keys = chosen(options.names)
    known = store.read(results)
    todo = [key for key in keys if options.again or key not in known]
    print(f"{len(keys)} models, {len(keys) - len(todo)} of them done already.", flush=True)
    start, limits = time.monotonic(), watch.Limits(options.limit_seconds, options.limit_gib)
    try:
        with closing(run.rows_of(todo, script, limits, options.jobs)) as found:
            for done, row in enumerate(found, 1):
                store.put(results, row)
                print(run.progress(row, done, len(todo), start), flush=True)
                publish(store.read(results))
    except KeyboardInterrupt:
        return "Interrupted; the rows that were finished are kept."
    rows = store.read(results)
    return int(any(rows[key]["status"] == bad for key in keys))
