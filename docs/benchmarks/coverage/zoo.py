"""The command of a benchmark that has one child process for each model: what has no row yet is done, and published."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import run
import store
from store import Row
from suites import chosen


def main(about: str | None, script: str, results: Path, publish: Callable[[Mapping[str, Row]], None], bad: str) -> int | str:
    """Do what the command line asks for, publishing after every model; returns the exit code, or why it stopped.

    about: help. script: the child. results: the file of rows. bad: a status for which the exit code is 1.
    """
    parser = run.parser_of(about)
    parser.add_argument("--again", action="store_true", help="do all models anew")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.publish:
        publish(store.read(results))
        return 0
    keys = chosen(options.names)
    known = store.read(results)
    todo = [key for key in keys if options.again or key not in known]
    print(f"{len(keys)} models, {len(keys) - len(todo)} of them done already.", flush=True)
    try:
        run.fill(results, todo, script, options, lambda: publish(store.read(results)))
    except KeyboardInterrupt:
        return "Interrupted; the rows that were finished are kept."
    rows = store.read(results)
    return int(any(rows[key]["status"] == bad for key in keys))
