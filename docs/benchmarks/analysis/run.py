"""Analysis and rewrite against torch-pruning, alternating in one run.

    pip install graphprune torch-pruning==1.6.1 matplotlib
    python docs/benchmarks/analysis/run.py peer      # ratios of time and peak memory, per model
    python docs/benchmarks/analysis/run.py stages    # time of each stage against the number of operators, and the fitted exponents

``peer``: every model is pruned to half its channels, local ranking, by L2 magnitude, from the same in-memory model, in one
process, ours and theirs in turn (``A B A B ...``) after one warm-up of each; the ratio is that of the medians. Ours is
capture + analysis + scoring + selection + rewrite, with and without the verification that the peer does not have; theirs
is the construction of the pruner (which traces the model) and one step, on a copy made outside the timed region. Peak
memory is measured apart, in a fresh process for each, as what the resident size rises above that before the run.

``stages``: chains of residual convolutions and of transformer blocks, of 10^2 to 10^5 ATen operators, on the meta device; capture,
analysis (channel groups and costs), planning (half of all channels by random scores, local ranking) and rewrite, each timed by
itself in CPU seconds of the process, the least of some runs. An exponent is the slope of a line fitted to the logarithms.
Results go to ``results.json`` and ``README.md`` beside this file.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
MODELS = (
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "squeezenet1_1",
    "convnext_tiny",
    "mnasnet1_0",
    "deeplabv3_resnet50",
    "densenet201",
)


def build(name: str) -> nn.Module:
    """A torchvision model with random weights, in eval mode."""
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **({"weights_backbone": None} if "deeplab" in name else options)).eval()


def ours(model: nn.Module, verify: bool) -> Callable[[], Any]:
    """One complete pruning by graphprune, ready to be timed."""
    import graphprune

    example = torch.randn(1, 3, 224, 224)
    return lambda: graphprune.prune(model, example, target="channels=50%", criterion="l2", ranking="local", verify=verify)


def theirs(model: nn.Module) -> Callable[[], Any]:
    """One complete pruning by torch-pruning, on a copy made now (it changes the model that it is given)."""
    import torch_pruning as tp

    victim, example = copy.deepcopy(model), torch.randn(1, 3, 224, 224)
    for parameter in victim.parameters():
        parameter.requires_grad_(True)
    heads = [m for n, m in victim.named_modules() if n in last_layers(model)]

    def run() -> None:
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        pruner = tp.pruner.MetaPruner(victim, example, importance=importance, pruning_ratio=0.5, ignored_layers=heads)
        pruner.step()

    return run


def last_layers(model: nn.Module) -> set[str]:
    """The layers that make the outputs, which the peer must be told to leave."""
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if type(model).__name__ == "SqueezeNet":
        return {"classifier.1"}
    if type(model).__name__ == "GoogLeNet":
        return {"fc", "aux1.fc2", "aux2.fc2"}
    return {names[-1]}


def seconds(make: Callable[[], Callable[[], Any]]) -> float:
    """Wall-clock seconds of one run; preparation is not timed."""
    run = make()
    gc.collect()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peer(models: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Alternate the three on every model."""
    rows = {}
    for name in models:
        model = build(name)
        contenders = {
            "ours": lambda model=model: ours(model, False),
            "ours_verified": lambda model=model: ours(model, True),
            "peer": lambda model=model: theirs(model),
        }
        times: dict[str, list[float]] = {key: [] for key in contenders}
        first = seconds(contenders["peer"])  # warm-ups
        seconds(contenders["ours"])
        seconds(contenders["ours_verified"])
        count = max(2, min(repeats, int(60 / first)))
        for _ in range(count):
            for key, make in contenders.items():
                times[key].append(seconds(make))
        medians = {key: statistics.median(values) for key, values in times.items()}
        memory = {key: peak_memory(name, key) for key in contenders}
        parameters = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
        rows[name] = {"seconds": medians, "spread": {k: [min(v), max(v)] for k, v in times.items()}, "runs": count}
        rows[name] |= {"peak_mib": memory, "weights_mib": parameters}
        rows[name]["speedup"] = medians["peer"] / medians["ours"]
        rows[name]["speedup_verified"] = medians["peer"] / medians["ours_verified"]
        print(name, {k: round(v, 3) for k, v in medians.items()}, f"{rows[name]['speedup']:.1f}x", flush=True)
    return rows


def peak_memory(name: str, contender: str) -> float:
    """MiB by which one run raises the peak resident size of a fresh process that already holds the model."""
    done = subprocess.run([sys.executable, __file__, "memory", name, contender], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def memory(name: str, contender: str) -> float:
    """In a process of its own: peak growth of one run, in MiB."""
    model = build(name)
    run = theirs(model) if contender == "peer" else ours(model, contender == "ours_verified")
    # The first use of each library costs memory that is not the model's: pay it on a tiny one.
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    (theirs(tiny) if contender == "peer" else ours(tiny, contender == "ours_verified"))()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from the present size (Linux)
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A size of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


class Chain(nn.Module):
    """A residual net of a given number of convolutions, each with a norm, an activation and an add."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth))
        self.stem, self.head = nn.Conv2d(3, width, 1), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores of an image batch."""
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + torch.relu(norm(conv(x)))
        result: torch.Tensor = self.head(x.mean((2, 3)))
        return result


class Block(nn.Module):
    """A pre-norm transformer block with fused queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.second, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape: (batch, tokens, width)."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        result: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.second(x))))
        return result


class Transformer(nn.Module):
    """A number of transformer blocks between embeddings and a classifier."""

    def __init__(self, depth: int, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Class scores of token ids of shape (batch, tokens)."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(x.mean(1))
        return result


#: Nets of the part ``stages``: how to make one of some depth, its example input, and about how many operators a block has.
NETS: dict[str, tuple[Callable[[int], nn.Module], torch.Tensor, int]] = {
    "residual convolutions": (Chain, torch.zeros(1, 3, 8, 8), 4),
    "transformer blocks": (Transformer, torch.zeros(1, 5, dtype=torch.int64), 31),
}


def stage_times(model: nn.Module, example: torch.Tensor) -> dict[str, float]:
    """CPU seconds of each stage, and how many operators the model runs."""
    from graphprune.channels.tape import tape_of
    from graphprune.collector import collector_paused
    from graphprune.passes.analysis.channels import ChannelGroups
    from graphprune.passes.analysis.cost import ModelCost
    from graphprune.passes.rewrite.rewrite import RewritePass
    from graphprune.passes.selection.select import SelectPass
    from graphprune.pipeline.analysis_manager import AnalysisManager
    from graphprune.pipeline.pass_manager import PassManager
    from graphprune.scores import Scores
    from graphprune.tracing import capture

    times: dict[str, float] = {}

    def timed(stage: str, step: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = step()
        times[stage] = time.process_time() - begin
        return result

    analyses = AnalysisManager()
    with collector_paused():
        program = timed("capture", lambda: capture(model, example))
        groups, _ = timed("analysis", lambda: (analyses.get(program, ChannelGroups), analyses.get(program, ModelCost)))
        scores = Scores("random", np.random.default_rng(0).random(groups.unit_count))
        select = SelectPass(channels="50%", ranking="local")
        scored = program.with_(scores={"random": scores})
        planned = timed("planning", lambda: PassManager([select]).run(scored, analyses))
        timed("rewrite", lambda: PassManager([RewritePass()]).run(planned, analyses))
    operators = sum(len(step.operations) for step in tape_of(program).steps)
    return {"operators": operators, **times}


def stages(sizes: tuple[int, ...], most: int) -> dict[str, Any]:
    """Times of the stages for nets of about so many operators, and the exponents of power laws fitted to them."""
    found = {}
    for name, (make, example, operators) in NETS.items():
        rows = []
        for size in sizes:
            with torch.device("meta"):
                model = make(max(1, size // operators)).eval()
            runs = []
            for _ in range(max(1, min(most, 10_000 // size))):
                runs.append(stage_times(model, example))
                gc.collect()
            rows.append({key: min(run[key] for run in runs) for key in runs[0]})
            print(name, {key: round(value, 4) for key, value in rows[-1].items()}, flush=True)
        exponents = {key: exponent([(row["operators"], row[key]) for row in rows]) for key in rows[0] if key != "operators"}
        total = [(row["operators"], sum(row.values()) - row["operators"]) for row in rows]
        found[name] = {"rows": rows, "exponents": exponents | {"total": exponent(total)}}
        print(name, found[name]["exponents"], flush=True)
    return found


def exponent(points: list[tuple[float, float]]) -> float:
    """The slope of the line fitted to the logarithms of (size, seconds)."""
    logs = np.log(np.array(points))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def publish(results: dict[str, Any]) -> None:
    """Write results.json, the figure and the README beside this file."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        "# Analysis and rewrite: time and memory",
        "",
        "Made by `run.py` beside this page, which says how. " + results["machine"],
        "",
    ]
    if rows := results.get("peer"):
        speed = math.exp(statistics.fmean(math.log(row["speedup"]) for row in rows.values()))
        verified = math.exp(statistics.fmean(math.log(row["speedup_verified"]) for row in rows.values()))
        lines += [
            f"Against torch-pruning 1.6.1, geometric mean over {len(rows)} models: **{speed:.1f} times faster** without "
            f"verification, {verified:.1f} times with the proof against the masked original, which the peer does not make.",
            "",
            "| model | peer, s | ours, s | with proof, s | times faster | with proof "
            "| peer, MiB | ours, MiB | with proof, MiB | weights, MiB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, row in rows.items():
            s, m = row["seconds"], row["peak_mib"]
            lines.append(
                f"| {name} | {s['peer']:.3f} | {s['ours']:.3f} | {s['ours_verified']:.3f} "
                f"| {row['speedup']:.1f} | {row['speedup_verified']:.1f} "
                f"| {m['peer']:.0f} | {m['ours']:.0f} | {m['ours_verified']:.0f} | {row['weights_mib']:.0f} |"
            )
        lines += [
            "",
            "Seconds are medians of alternating runs; MiB is the growth of the peak resident size in a fresh process.",
            "",
        ]
    for name, fit in results.get("stages", {}).items():
        slopes = fit["exponents"]
        columns = [key for key in slopes if key != "total"]
        lines += [
            f"CPU seconds of each stage against the number of operators, {name}:",
            "",
            f"| operators | {' | '.join(columns)} |",
            f"| ---: |{' ---: |' * len(columns)}",
            *(f"| {row['operators']:,} | {' | '.join(f'{row[key]:.3f}' for key in columns)} |" for row in fit["rows"]),
            f"| **exponent** ({slopes['total']:.2f} for the sum) | {' | '.join(f'**{slopes[key]:.2f}**' for key in columns)} |",
            "",
        ]
    (HERE / "README.md").write_text("\n".join(lines))


def main() -> None:
    """Run one part and update the published results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("peer", "stages", "memory"))
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.part == "memory":
        print(memory(*options.arguments))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    results["machine"] = f"{versions}, Python {platform.python_version()}, CPU ({platform.machine()}), {options.threads} thread(s)."
    if options.part == "peer":
        results["peer"] = peer(tuple(options.arguments) or MODELS, options.repeats)
    else:
        results["stages"] = stages(tuple(map(int, options.arguments)) or (100, 1_000, 10_000, 100_000), options.repeats)
    publish(results)


if __name__ == "__main__":
    main()
