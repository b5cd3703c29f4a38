"""One model against torch-pruning 1.6.1, in a process of its own: ``python against.py KEY RESULT``.

Both prune the same model to half of every group with local ranking, alternating in this process with one thread; seconds
are medians of CPU time. Ours is measured without and with the proof, which the peer does not make. The peer works on a
copy that it changes, made before the clock starts, gets no hints (no numbers of heads), and is told to leave the layers
that make the outputs, which it cannot find out; "works" means that the pruned copy also runs. Memory is the growth of
the resident size in a fresh process for each (``python against.py KEY RESULT ours``), which holds the model already.
"""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clone  # noqa: F401  (makes graphprune importable)
import torch
from child import HOW, Row, message, parameters, rest, status
from suites import load
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import graphprune
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisManager

REPEATS = 3
_MOST_SECONDS = 60.0  # a slow contender is repeated less, but at least once


def ours(model: nn.Module, inputs: Any, proof: bool = False) -> Callable[[], Any]:
    """One complete pruning by graphprune, ready to be timed."""
    return lambda: graphprune.prune(model, inputs, verify=proof, **HOW)


def theirs(model: nn.Module, inputs: Any, heads: set[str]) -> Callable[[], nn.Module]:
    """One complete pruning by torch-pruning, on a copy made now; it returns the copy."""
    import torch_pruning

    victim = copy.deepcopy(model)
    for parameter in victim.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # it sees the graph of gradients only

    def run() -> nn.Module:
        pruner = torch_pruning.pruner.MetaPruner(
            victim,
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[module for name, module in victim.named_modules() if name in heads],
            forward_fn=call,
            output_transform=differentiable,
        )
        pruner.step()
        return victim

    return run


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, a tuple of arguments, or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def differentiable(output: Any) -> list[Tensor]:
    """The tensors of an output that the peer can walk back from."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]


def last_layers(model: nn.Module, inputs: Any) -> set[str]:
    """Names of the layers whose channels are those of the outputs, as our analysis finds them."""
    program = graphprune.capture(model, inputs)
    groups = AnalysisManager().get(program, ChannelGroups())
    reached = [group for group in groups.frozen if group.reason is not None and "output" in group.reason.text]
    layers = dict(model.named_modules())
    names = {
        m.tensor.rpartition(".")[0] for group in reached for m in group.members if m.axis == 0 and m.tensor.endswith(".weight")
    }
    return {name for name in names if isinstance(layers.get(name), (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))}


def seconds(make: Callable[[], Callable[[], Any]]) -> float:
    """CPU seconds of one run; preparation is not timed."""
    run = make()
    rest()
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(key: str, row: Row) -> None:
    """Time both, and measure the memory of both."""
    case = load(key)
    torch.manual_seed(0)
    model, inputs = case.build(), case.inputs()
    row.add(weights_mib=sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20, stage="ours")
    report = ours(model, inputs)().report
    total = parameters(model)
    row.add(left_with_unused=(report.after.parameters + total - report.before.parameters) / total)
    heads = last_layers(model, inputs)
    contenders = {"ours": lambda: ours(model, inputs), "ours_proved": lambda: ours(model, inputs, proof=True)}
    row.add(seconds=alternating(contenders, 1), mib={"ours": in_fresh_process(key, "ours")})  # known even if the peer never ends
    row.add(stage="peer")
    failure = peer_fails(model, inputs, heads, row)
    if failure is None:
        row.add(seconds=alternating(contenders | {"peer": lambda: theirs(model, inputs, heads)}))
        row.add(mib=row.facts["mib"] | {"peer": in_fresh_process(key, "peer")})
    row.add(status="compared", peer=failure or "works")


def peer_fails(model: nn.Module, inputs: Any, heads: set[str], row: Row) -> str | None:
    """Why the peer cannot prune the model, or None; it is a warm-up at the same time."""
    try:
        victim = theirs(model, inputs, heads)()
        with torch.no_grad():
            call(victim, inputs)
    except Exception as error:
        return message(error)
    left = parameters(victim) / parameters(model)
    row.add(peer_left=left)
    return None if left < 1 else "leaves the model as it is"


def alternating(contenders: dict[str, Callable[[], Callable[[], Any]]], repeats: int = REPEATS) -> dict[str, float]:
    """Medians of CPU seconds, each contender in turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, make in contenders.items():
            if not times[name] or sum(times[name]) < _MOST_SECONDS:
                times[name].append(seconds(make))
    return {name: statistics.median(values) for name, values in times.items()}


def in_fresh_process(key: str, contender: str) -> float:
    """MiB by which one run of a contender raises the peak resident size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mib"
        subprocess.run([sys.executable, __file__, key, str(path), contender], check=True, capture_output=True)
        return float(path.read_text())


def memory(key: str, contender: str) -> float:
    """In this process: the growth of the peak by one run, after a run on a tiny model has paid for the libraries."""
    case = load(key)
    model, inputs = case.build(), case.inputs()
    tiny, image = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), torch.zeros(1, 3, 8, 8)
    heads = last_layers(model, inputs) if contender == "peer" else set()
    (theirs(tiny, image, {"2"}) if contender == "peer" else ours(tiny, image))()
    run = theirs(model, inputs, heads) if contender == "peer" else ours(model, inputs)
    before = rest()
    run()
    return (status("VmHWM") - before) / 1024


def main() -> None:
    """Fill the row of one model, or measure the memory of one contender."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    key, path = sys.argv[1], Path(sys.argv[2])
    if len(sys.argv) > 3:
        path.write_text(str(memory(key, sys.argv[3])))
        return
    row = Row(key, path)
    row.add()
    try:
        compare(key, row)
    except Exception as error:
        row.add(status="failed", reason=message(error)[:600])


if __name__ == "__main__":
    main()
