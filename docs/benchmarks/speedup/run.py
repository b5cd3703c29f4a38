"""What MACs removed are worth in time: eager, compiled by Inductor, and under onnxruntime.

    python run.py                                  # all models, all ways to run them that are there
    python run.py torchvision:resnet18 --way eager # a model, one way
    python run.py --device cuda                    # on a GPU (not onnxruntime)
    python run.py --device cuda --dtype bfloat16 --layout channels_last --batch auto --minutes 3
    python run.py --peer                           # torch-pruning 1.6.1 at equal MACs beside ours (it must be installed)
    python run.py --publish                        # write the page and the plot from what is there, and stop

One thread, one image of 224 x 224 pixels (``--batch``; ``auto``: the smallest batch that keeps the device busy), fresh weights,
criterion l2, widths in multiples of 8.
For each model: slim models that keep 75, 50 and 25 % of the MACs, each proved. For each way the original and the slim ones, and the
peer's, are timed in one measurement by turns, over several copies of each in memory (a session of onnxruntime stays where it is): a
drift of the machine hits all of them. *worth* is the share of the time that
is gone over the share of the MACs that is gone: 1 where time follows MACs.

Rows go to ``results.jsonl``, replaced atomically after each way of a model; what has its rows is left (``--again`` to do it anew).
``--minutes`` begins no model and no way after these, so that the command goes on where it was stopped.
The page ``README.md`` and ``speedup.png`` are made from them.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "coverage"), str(HERE.parent / "latency")]  # behind this folder

import clone  # noqa: E402, F401  (makes graphprune importable)
import store  # noqa: E402
import torch  # noqa: E402
from page import publish  # noqa: E402
from peer import macs, peer_model  # noqa: E402
from suites import load  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import graphprune  # noqa: E402
from graphprune.exporting import export_model  # noqa: E402
from graphprune.ir.program import Inputs  # noqa: E402
from graphprune.latency.batch import best, saturating  # noqa: E402
from graphprune.latency.clock import DeviceClock, Subject  # noqa: E402
from graphprune.latency.copies import PUBLISHED, ROUGH  # noqa: E402
from graphprune.latency.environment import Environment, environment_of  # noqa: E402
from graphprune.latency.timing import Timing  # noqa: E402

MODELS = (
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:vgg11_bn",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:densenet121",
    "torchvision:regnet_y_400mf",
    "torchvision:vit_b_16",
    "timm:convnext_atto",
    "timm:deit_tiny_patch16_224",
)
SHARES = (0.75, 0.5, 0.25)
EFFORT = {"cpu": PUBLISHED, "cuda": replace(PUBLISHED, seconds=20)}  # a GPU has nothing else to do
USUAL = ("float32", "contiguous_format")
RESULTS = HERE / "results.jsonl"
Row = dict[str, Any]
#: From a graph and its input to what is timed.
Runner = Callable[[Any, Tensor], Any]


def as_it_is(module: Any, inputs: Tensor) -> Any:
    """The graph itself."""
    return module


def under_onnxruntime(module: Any, inputs: Tensor) -> Any:
    """A session of onnxruntime on one thread that takes the place of the module."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_model(module, Inputs((inputs,)), path, dynamic=False)
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


#: How models run: what is timed, and whether torch.compile compiles it.
WAYS: Mapping[str, tuple[Runner, bool]] = {
    "eager": (as_it_is, False),
    "inductor": (as_it_is, True),
    "onnxruntime": (under_onnxruntime, False),
}


class Bench:
    """A model, its slim ones, and the peer's."""

    def __init__(self, key: str, options: argparse.Namespace) -> None:
        case = load(key)
        torch.manual_seed(0)
        layout = getattr(torch, options.layout)
        where = {"device": options.device, "dtype": getattr(torch, options.dtype), "memory_format": layout}
        model = case.build().to(**where)
        example = case.inputs()[:1].to(options.device, where["dtype"])
        self.batch = busy_batch(model, example, layout, options) if options.batch == "auto" else int(options.batch)
        self.inputs: Tensor = batched(example, self.batch, layout)
        self.model = graphprune.capture(model, self.inputs).module  # so that all are modules of the same kind
        self.whole_macs = macs(model, self.inputs)
        self.slim = [self._slim(model, share) for share in SHARES]
        self.left = [macs(slim, self.inputs) / self.whole_macs for slim in self.slim]
        self.peers = [self._peer(model, left) for left in self.left] if options.peer else []

    def _slim(self, model: nn.Module, share: float) -> nn.Module:
        return graphprune.prune(model, self.inputs, target={"macs": share}, criterion="l2", round_to=8).graph

    def _peer(self, model: nn.Module, share: float) -> nn.Module:
        return graphprune.capture(peer_model(model, self.inputs, share), self.inputs).module

    def times(self, way: str, environment: Environment) -> list[Timing]:
        """Of the original, the slim models and the peer's, by turns."""
        runner, _ = WAYS[way]
        modules = [self.model, *self.slim, *self.peers]
        subjects = [Subject(runner(module, self.inputs), (self.inputs,)) for module in modules]
        return DeviceClock(environment, EFFORT[environment.device]).whole(subjects)


def rows_of(bench: Bench, key: str, way: str, options: argparse.Namespace) -> list[Row]:
    """The rows of a model run in one way, one for each share."""
    environment = environment_of(bench.model, options.device, compile=WAYS[way][1])
    whole, *times = bench.times(way, environment)
    common = {**setting(key, way, options), "images": bench.batch, "original_ms": whole.median_ms}
    rows = []
    for place, (share, left) in enumerate(zip(SHARES, bench.left, strict=True)):
        row = {"key": row_key(key, way, share, options), **common, "asked": share, "made_with": made_with(environment)}
        ratio = times[place].over(whole)
        row |= {"macs": left, "ms": times[place].median_ms, "worth": worth(ratio.value, left)}
        row |= {"time": ratio.value, "time_error": ratio.value * ratio.error}
        if bench.peers:
            theirs = macs(bench.peers[place], bench.inputs) / bench.whole_macs
            time = times[len(SHARES) + place]
            row |= {"peer_macs": theirs, "peer_ms": time.median_ms, "peer_worth": worth(time.over(whole).value, theirs)}
        rows.append(row)
    return rows


def worth(time: float, left: float) -> float | None:
    """The share of the time that is gone over the share of the MACs that is gone."""
    return (1 - time) / (1 - left) if left < 1 else None


def row_key(key: str, way: str, share: float, options: argparse.Namespace) -> str:
    """What a row is called: all that decides what it says."""
    kind = "" if (options.dtype, options.layout) == USUAL else f"{options.dtype}/{options.layout}/"
    return f"{key}/{options.device}/{options.batch}/{kind}{way}/{share}{'/peer' if options.peer else ''}"


def setting(key: str, way: str, options: argparse.Namespace) -> Row:
    """What was run, and how, as a row says it."""
    batch = options.batch if options.batch == "auto" else int(options.batch)
    found: Row = {"model": key, "way": way, "device": options.device, "batch": batch}
    return found if (options.dtype, options.layout) == USUAL else {**found, "dtype": options.dtype, "layout": options.layout}


def batched(example: Tensor, batch: int, layout: Any) -> Tensor:
    """So many of one image."""
    return example.expand(batch, *example.shape[1:]).contiguous(memory_format=layout)


def busy_batch(model: nn.Module, example: Tensor, layout: Any, options: argparse.Namespace) -> int:
    """The smallest batch that keeps the device busy with the original, run eagerly."""
    clock = DeviceClock(environment_of(model, options.device), ROUGH)

    def measure(batch: int) -> float:
        inputs = batched(example, batch, layout)
        return clock.whole([Subject(graphprune.capture(model, inputs).module, (inputs,))])[0].median_ms

    return best(saturating(measure))


def made_with(environment: Environment) -> str:
    """The versions and the machine behind a row."""
    threads = ", one thread" if environment.device == "cpu" else ""
    return f"torch {torch.__version__}, Python {platform.python_version()}, {environment.name}{threads}"


def measure(key: str, ways: Sequence[str], options: argparse.Namespace) -> None:
    """All rows of a model that are not there yet. What cannot be run in some way gets a row that says why."""
    known = {} if options.again else store.read(RESULTS)
    todo = [way for way in ways if any(row_key(key, way, share, options) not in known for share in SHARES)]
    if not todo:
        return
    bench = Bench(key, options)
    for way in todo:
        if time.monotonic() > options.until:
            return
        print(f"{key}, {way}", flush=True)
        try:
            rows = rows_of(bench, key, way, options)
        except Exception as error:
            refused = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            common = {**setting(key, way, options), "refused": refused}
            rows = [{"key": row_key(key, way, share, options), **common, "asked": share} for share in SHARES]
        for row in rows:
            store.put(RESULTS, row)
            print("  " + ", ".join(f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float)), flush=True)
        publish(HERE, list(store.read(RESULTS).values()), MODELS)


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help="keys such as torchvision:resnet18")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="how models run; repeatable")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default=USUAL[0])
    parser.add_argument("--layout", choices=["contiguous_format", "channels_last"], default=USUAL[1], help="of the memory")
    parser.add_argument("--batch", default="1", help="images in a call, or auto")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after these")
    parser.add_argument("--peer", action="store_true", help="time torch-pruning's models as well")
    parser.add_argument("--again", action="store_true", help="do all anew")
    parser.add_argument("--publish", action="store_true", help="write the page from the rows, and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.publish:
        publish(HERE, list(store.read(RESULTS).values()), MODELS)
        return
    ways = options.way or list(WAYS)
    if "onnxruntime" in ways and (options.device == "cuda" or find_spec("onnxruntime") is None):
        print("onnxruntime is left out: " + ("it runs on the CPU here." if options.device == "cuda" else "it is not installed."))
        ways = [way for way in ways if way != "onnxruntime"]
    options.until = time.monotonic() + 60 * options.minutes
    for key in options.models:
        if time.monotonic() < options.until:
            measure(key, ways, options)


if __name__ == "__main__":
    main()
