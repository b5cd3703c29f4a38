"""Targets on measured latency: are they met, what do they keep, and what do they gain over targets on MACs and over the peer?

    python run.py                          # all models, eager; the same command goes on where it was stopped
    python run.py resnet18 --compile       # a model, compiled whole
    python run.py --device cuda --minutes 4  # on a GPU; begins nothing after these minutes, and goes on where it was stopped
    python run.py --peer                   # speed-up for MACs removed against torch-pruning 1.6.1 (which must be installed)
    python run.py --again                  # drop all rows and tables first (to go on after a stop: without it)
    python run.py --publish                # write the page from what is there, and stop

One thread (or a GPU), batches of :data:`BATCH`, widths in multiples of :data:`ROUND_TO`, criterion l2, fresh weights (``resnet56``
the trained ones for CIFAR-10, of ``--weights``).
For each model:
  - its latency table, as ``graphprune profile`` makes it (kept in ``tables/``; an interrupted run goes on from it);
  - for each of :data:`SHARES` of the latency three slim models of that measured latency: the knapsack's on the latency; a uniform
    one (local ranking); and the knapsack's on MACs, whose target is moved until the latency is reached. What each keeps of the
    score is compared. Selection times slim models itself; the figures here are of other measurements after the rewrite, by turns
    with the original: three of them, each with both compiled anew, over copies of both for up to 30 s (7 s on a GPU). Where these
    three differ by more than their copies do, that is in the error.
With ``--peer``: torch-pruning's model at half the MACs (local ranking), ours at the same MACs (knapsack), and ours at the peer's
latency; all of them timed by turns with the original.

Rows go to ``results.jsonl``, replaced atomically after each; models that have their rows are left, but for rows of an older way of
timing, without an error. ``README.md`` is made from them.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parent / "resnet56_cifar10")]  # a clone that is not installed

import torch  # noqa: E402
from peer import macs, peer_model  # noqa: E402
from torch import nn  # noqa: E402

import graphprune  # noqa: E402
from graphprune.files import atomic_write  # noqa: E402
from graphprune.latency.clock import DeviceClock, Subject  # noqa: E402
from graphprune.latency.copies import PUBLISHED  # noqa: E402
from graphprune.latency.environment import environment_of  # noqa: E402
from graphprune.latency.model import held_out_accuracy  # noqa: E402
from graphprune.latency.source import Measured  # noqa: E402
from graphprune.latency.table import LatencyTable  # noqa: E402
from graphprune.passes.latency.source import timed  # noqa: E402
from graphprune.passes.scoring.score import latest  # noqa: E402
from graphprune.plans.plan import kept_units  # noqa: E402
from graphprune.surveys.pareto import kept_score  # noqa: E402

MODELS = ("resnet18", "mobilenet_v2", "resnet56", "resnet50")
BATCH = {"cpu": {"resnet56": 16, "": 1}, "cuda": {"resnet56": 512, "": 64}}  # "": of the others
SHARES = (0.75, 0.5, 0.35)
EFFORT = {"cpu": replace(PUBLISHED, seconds=30), "cuda": replace(PUBLISHED, seconds=7)}  # a GPU has nothing else to do
_AGAIN = 3  # measurements after the rewrite
_BY_MACS = 8  # slim models for a target on MACs that are timed at most
_TIMING = "three times"  # how rows were timed; those that were timed otherwise are made anew
ROUND_TO = 8  # channels: the processor works on eight numbers at a time
RESULTS, TABLES = HERE / "results.jsonl", HERE / "tables"
Row = dict[str, Any]


def build(name: str, weights: Path | None, device: str) -> tuple[nn.Module, torch.Tensor]:
    """A model in eval mode and its input."""
    torch.manual_seed(0)
    batch = BATCH[device].get(name, BATCH[device][""])
    if name == "resnet56":
        import cifar_resnet

        model: nn.Module = cifar_resnet.resnet56()
        if weights is not None:
            state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
            model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        return model.eval().to(device), torch.randn(batch, 3, 32, 32, device=device)
    import torchvision

    return getattr(torchvision.models, name)(weights=None).eval().to(device), torch.randn(batch, 3, 224, 224, device=device)


def table_of(name: str, model: nn.Module, inputs: torch.Tensor, compiled: bool, device: str) -> tuple[LatencyTable, float]:
    """The latency table, from its file where it is finished, and the seconds that measuring took (0 for none)."""
    TABLES.mkdir(exist_ok=True)
    start = time.monotonic()

    def progress(done: int, total: int) -> None:
        print(f"  profile: {done} of {total} slim models", flush=True)

    path = TABLES / table_file(name, compiled, device)
    table = graphprune.profile(
        model, inputs, device=device, compile=compiled, samples=8 if compiled else 24, path=path, progress=progress, source=name
    )
    return table, time.monotonic() - start


def table_file(name: str, compiled: bool, device: str) -> str:
    """The name of a table's file."""
    return f"{name}{'' if device == 'cpu' else '_' + device}{'_compiled' if compiled else ''}.json"


class Bench:
    """One model, and slim models of it by several ways."""

    def __init__(self, name: str, weights: Path | None, compiled: bool, device: str) -> None:
        self.model, self.inputs = build(name, weights, device)
        self.table, self.profile_seconds = table_of(name, self.model, self.inputs, compiled, device)
        self.environment = environment_of(self.model, device, compile=compiled)
        program = timed(graphprune.capture(self.model, self.inputs), self.table)
        assert program.latency is not None and program.latency.measure is not None
        self.measure = program.latency.measure

    def by_latency(self, share: float, **how: Any) -> graphprune.PruneResult:
        """A slim model of a share of the latency."""
        return graphprune.prune(
            self.model, self.inputs, target={"latency": share}, latency=self.table, round_to=ROUND_TO, verify=False, **how
        )

    def by_macs(self, share: float) -> graphprune.PruneResult:
        """The knapsack's model for a target on MACs that is moved until the measured latency is the share."""
        low, high, best = 0.0, 1.0, None
        for _ in range(_BY_MACS):
            target = {"macs": (low + high) / 2}
            result = graphprune.prune(self.model, self.inputs, target=target, select="knapsack", round_to=ROUND_TO, verify=False)
            measured = self.measure(kept_units(result.plan, result.report.groups).widths())
            reached = measured.share
            if best is None or abs(reached - share) < abs(best[0] - share):
                best = reached, result
            if abs(reached / share - 1) < max(0.01, measured.error):
                break
            low, high = (low, target["macs"]) if reached > share else (target["macs"], high)
        assert best is not None
        return best[1]

    def again(self, *slim: nn.Module) -> list[Measured]:
        """Times of slim models by turns with the original, in several measurements."""
        subjects = [Subject(module, (self.inputs,)) for module in (graph(self.model, self.inputs), *slim)]  # type: ignore[arg-type]
        clock = DeviceClock(self.environment, EFFORT[self.environment.device])
        found: list[list[Measured]] = []
        for _ in range(_AGAIN):
            whole, *slims = clock.whole(subjects)
            found.append([Measured(one.median_ms, whole.median_ms, one.over(whole).error) for one in slims])
        return [reduce(Measured.pooled, of_one) for of_one in zip(*found, strict=True)]

    def score(self, result: graphprune.PruneResult) -> float:
        """The share of the l2 score that a slim model keeps."""
        from graphprune.pipeline.pass_manager import PassManager
        from graphprune.pipeline.text import parse_pipeline

        if not hasattr(self, "_scored"):
            program = graphprune.capture(self.model, self.inputs)
            self._scored = PassManager(parse_pipeline("channels,score{criterion=l2}")).run(program)
        groups = result.report.groups
        return kept_score(groups, latest(self._scored.scores), kept_units(result.plan, groups).units)


def graph(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """The captured graph, so that both sides run the same kind of module."""
    return graphprune.capture(model, inputs).module


def costs(result: graphprune.PruneResult) -> Row:
    """What is left of other costs."""
    before, after = result.report.before, result.report.after
    return {"macs": after.macs / before.macs, "params": after.parameters / before.parameters}


#: Ways to a slim model of a share of the latency.
WAYS: dict[str, Callable[[Bench, float], graphprune.PruneResult]] = {
    "latency": lambda bench, share: bench.by_latency(share, select="knapsack"),
    "uniform": lambda bench, share: bench.by_latency(share, ranking="local"),
    "MACs": lambda bench, share: bench.by_macs(share),
}


def targets(name: str, way: str, options: argparse.Namespace) -> None:
    """The rows of a model's targets in one way."""
    mode, device = "compiled" if options.compile else "eager", options.device
    place = "" if device == "cpu" else f"{device}/"
    keys = {f"{name}/{place}{mode}/{share}/{way}": share for share in SHARES}
    if keys.keys() <= done():
        return
    bench = Bench(name, options.weights, options.compile, device)
    accuracy = held_out_accuracy(bench.table)
    for key, share in keys.items():
        if key in done() or time.monotonic() > options.until:
            continue
        row: Row = {"key": key, "model": name, "mode": mode, "device": device, "batch": len(bench.inputs)}
        row |= {"asked": share, "way": way, "timing": _TIMING}
        row |= {"profile_seconds": bench.profile_seconds, "samples": len(bench.table.samples)}
        row |= {"held_out": None if accuracy is None else accuracy.mean, "made_with": made_with(device)}
        try:
            result = WAYS[way](bench, share)
            (slim,) = bench.again(result.graph)
            row |= {
                "selected": result.plan.achieved.get("latency"),
                "selected_error": result.plan.errors.get("latency"),
                "reached": slim.share,
                "reached_error": slim.share * slim.error,
                "whole_ms": slim.whole,
                "score": bench.score(result),
                **costs(result),
            }
        except graphprune.GraphpruneError as error:
            row |= {"refused": str(error).partition(" In the way")[0]}  # what follows names files of this machine
        put(row)


def peer(name: str, weights: Path | None) -> None:
    """The row of a model against torch-pruning."""
    key = f"{name}/peer"
    if key in done():
        return
    bench = Bench(name, weights, False, "cpu")
    row: Row = {"key": key, "model": name, "timing": _TIMING, "made_with": made_with()}
    try:
        theirs = peer_model(bench.model, bench.inputs)
        left = macs(theirs, bench.inputs) / macs(bench.model, bench.inputs)
        same_macs = graphprune.prune(
            bench.model, bench.inputs, target={"macs": left}, select="knapsack", round_to=ROUND_TO, verify=False
        )
        (slim,) = bench.again(theirs)
        same_time = bench.by_latency(slim.share, select="knapsack")
        slims = bench.again(theirs, same_macs.graph, same_time.graph)
        row |= {"whole_ms": slims[0].whole, "peer_macs": left}
        for what, slim in zip(("peer", "same_macs", "same_latency"), slims, strict=True):
            row |= {f"{what}_latency": slim.share, f"{what}_latency_error": slim.share * slim.error}
        row |= {"same_macs_macs": costs(same_macs)["macs"], "same_latency_macs": costs(same_time)["macs"]}
        row |= {"same_macs_score": bench.score(same_macs), "same_latency_score": bench.score(same_time)}
    except Exception as error:
        row |= {"refused": f"{type(error).__name__}: {error}"[:300]}
    put(row)


def made_with(device: str = "cpu") -> str:
    """The versions and the machine behind a row."""
    name = environment_of(nn.Linear(1, 1), device).name + (", one thread" if device == "cpu" else "")
    return f"torch {torch.__version__}, Python {platform.python_version()}, {name}"


def read() -> dict[str, Row]:
    """Rows by key."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def done() -> set[str]:
    """Keys of the rows that need not be made again."""
    return {key for key, row in read().items() if row.get("timing") == _TIMING}


def forget(models: Sequence[str], device: str) -> None:
    """Drop what was measured of some models on a device."""
    kept = [json.dumps(row) + "\n" for row in read().values() if row["model"] not in models or row.get("device", "cpu") != device]
    with atomic_write(RESULTS) as temporary:
        temporary.write_text("".join(kept))
    for name in models:
        for compiled in (False, True):
            (TABLES / table_file(name, compiled, device)).unlink(missing_ok=True)


def put(row: Row) -> None:
    """Add a row, or replace it, and publish."""
    rows = read() | {row["key"]: row}
    with atomic_write(RESULTS) as temporary:
        temporary.write_text("".join(json.dumps(rows[key]) + "\n" for key in sorted(rows)))
    print("  " + json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    publish(rows)


def publish(rows: dict[str, Row]) -> None:
    """Write the page."""
    from page import page

    with atomic_write(HERE / "README.md") as temporary:
        temporary.write_text(page(list(rows.values()), MODELS, SHARES))


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--compile", action="store_true", help="time whole models under torch.compile")
    parser.add_argument("--device", choices=list(BATCH), default="cpu")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after these")
    parser.add_argument("--peer", action="store_true", help="compare with torch-pruning 1.6.1 instead")
    parser.add_argument("--weights", type=Path, help="trained weights of resnet56")
    parser.add_argument("--publish", action="store_true", help="write the page from the rows, and stop")
    parser.add_argument("--again", action="store_true", help="drop the rows and tables of these models first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.publish:
        publish(read())
        return
    if options.again:
        forget(options.models, options.device)
    if options.peer and options.device != "cpu":
        parser.error("--peer is measured on the CPU.")
    if options.peer:
        for name in options.models:
            peer(name, options.weights)
        return
    options.until = time.monotonic() + 60 * options.minutes
    for way in ["latency"] if options.compile else WAYS:
        for name in options.models:
            if time.monotonic() < options.until:
                print(f"{name}, {way}", flush=True)
                targets(name, way, options)


if __name__ == "__main__":
    main()
