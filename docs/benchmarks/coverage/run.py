"""Whole model zoos: is every model captured, analysed, cut to half of every group, and proved?

    python run.py                            # torchvision, one model of each family of timm, and transformers
    python run.py torchvision                # a suite: torchvision, timm, timm-all, transformers or model-type
    python run.py timm:convnext_nano bert    # models
    python run.py --again resnet50           # anew; without it only what has no row yet is done
    python run.py --failed                   # anew, those that are not proved
    python run.py timm --against-peer        # time and memory against torch-pruning 1.6.1 instead
    python run.py --pick                     # find the smallest model of each family of timm

Needs timm and transformers for their suites, and torch-pruning 1.6.1 for the last comparison. Nothing is downloaded.

Every model is built with random weights in a child process of its own, with one thread, and gets a row:
  - it is captured and its channels are grouped; what did not trace and why, the operators that have no rule, and the
    share of parameters and MACs that is in reach (what goes when one unit of each group is left) are noted;
  - it is pruned with ``target="channels=50%", ranking="local", criterion="l2"``: CPU seconds of all of it without the
    proof, and the growth of the process's resident memory while it lasts;
  - the proof: ``graphprune.verify`` compares every node with the masked original; largest relative error under 1e-4.
Models of more than 350 million parameters are analysed without values, on the meta device; what half of every group
leaves then comes from the cost model, and the pruning and its proof are of a copy of reduced depth (suites/large.py).

A child that passes the time or memory limit is ended; its row keeps what was known by then. Rows go to ``results.jsonl``
(``peer.jsonl``), which is replaced atomically after every model: the script can be stopped at any time and goes on
where it was. ``README.md`` is made from the rows. Exit code 1 if a model that was asked for is not proved.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import store
import table
import watch
from store import Row
from suites import SUITES, chosen

HERE = Path(__file__).resolve().parent
RESULTS, PEER = HERE / "results.jsonl", HERE / "peer.jsonl"
_GOOD = ("proved", "compared")


def one(key: str, script: str, limits: watch.Limits, stop: threading.Event | None = None) -> Row:
    """The row of one model, made by a script in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "row.json", Path(folder) / "log.txt"
        ended = watch.run([sys.executable, str(HERE / script), key, str(path)], limits, log, stop)
        row: Row = json.loads(path.read_text()) if path.exists() else {"key": key, "status": "crashed"}
    if ended.stopped and row.get("stage") == "peer":
        row |= {"status": "compared", "peer": ended.stopped}
    elif ended.stopped:
        row |= {"status": "stopped", "reason": ended.stopped}
    elif ended.code:
        row |= {"status": "crashed", "reason": f"exit code {ended.code}: {ended.tail}"}
    return row | {"wall_seconds": round(ended.seconds, 1), "made_with": made_with()}


def made_with() -> str:
    """The versions and the machine behind a row."""
    packages = ("torch", "torchvision", "timm", "transformers", "torch-pruning")
    return ", ".join(
        [*(f"{name} {installed(name)}" for name in packages), f"Python {platform.python_version()}", platform.machine()]
    )


def installed(name: str) -> str:
    """The version of a package, or that there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def rows_of(keys: Sequence[str], script: str, limits: watch.Limits, jobs: int) -> Generator[Row, None, None]:
    """Rows as they are finished."""
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, key, script, limits, stop) for key in keys]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # an interruption ends the children too
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def fill(path: Path, todo: Sequence[str], script: str, options: argparse.Namespace, publish: Callable[[], None]) -> None:
    """Put the rows of these models into a file of rows as they are finished, and publish after each."""
    start, limits = time.monotonic(), watch.Limits(options.limit_seconds, options.limit_gib)
    with closing(rows_of(todo, script, limits, options.jobs)) as found:
        for done, row in enumerate(found, 1):
            store.put(path, row)
            print(progress(row, done, len(todo), start), flush=True)
            publish()


def progress(row: Row, done: int, total: int, start: float) -> str:
    """One line: how far, how long still, and what became of the model."""
    left = (time.monotonic() - start) / done * (total - done)
    error = f"{row['error']:.1e}" if row.get("error") is not None else ""
    parts = [f"{row['wall_seconds']:.0f} s", row["status"], error or row.get("reason", "")[:150]]
    return f"[{done}/{total}, {left / 60:.0f} min left] {row['key']}: " + ", ".join(filter(None, parts))


def wanted(keys: Sequence[str], known: dict[str, Row], options: argparse.Namespace) -> list[str]:
    """The models that have to be done."""
    if options.again:
        return list(keys)
    return [key for key in keys if key not in known or (options.failed and known[key]["status"] not in _GOOD)]


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """The options of every script that has a child process for each model. about: help."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="suites (torchvision, timm, timm-all, transformers, model-type) or models")
    parser.add_argument("--limit-seconds", type=float, default=600.0, help="limit of CPU time of one model")
    parser.add_argument("--limit-gib", type=float, default=14.0, help="limit of resident memory of one model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--publish", action="store_true", help="write the pages from the rows, and stop")
    return parser


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = parser_of(__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--resume", action="store_true", help="leave models that have a row (the default)")
    which.add_argument("--again", action="store_true", help="do all models anew")
    which.add_argument("--failed", action="store_true", help="do models that are not proved anew")
    parser.add_argument("--against-peer", action="store_true", help="compare with torch-pruning 1.6.1")
    parser.add_argument("--pick", action="store_true", help="find the smallest model of each family of timm, and stop")
    return parser.parse_args()


def pick() -> None:
    """Write the list of timm's smallest models anew."""
    from suites import timm

    with store.atomic_write(timm.SMALLEST) as temporary:
        temporary.write_text(json.dumps(timm.pick(), indent=1) + "\n")


def main() -> int:
    """Do what is asked for, publishing after every model."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.pick:
        pick()
        return 0
    if options.publish:
        table.publish(HERE, store.read(RESULTS), store.read(PEER))
        return 0
    path, script = (PEER, "against.py") if options.against_peer else (RESULTS, "child.py")
    try:
        keys = chosen(options.names)
    except KeyError as error:
        print(f"There is no suite or model {error}. Suites: {', '.join(SUITES)}.", file=sys.stderr)
        return 2
    todo = wanted(keys, store.read(path), options)
    if options.against_peer:  # it takes hours: the smallest first, so that a part of it is of many models
        known = store.read(RESULTS)
        todo.sort(key=lambda key: known.get(key, {}).get("parameters", math.inf))
    print(f"{len(keys)} models, {len(keys) - len(todo)} of them done already.", flush=True)
    fill(path, todo, script, options, lambda: table.publish(HERE, store.read(RESULTS), store.read(PEER)))
    rows = store.read(path)
    return int(any(rows[key]["status"] not in _GOOD for key in keys))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted; the rows that were finished are kept.")
