"""One model of the coverage benchmark, in a process of its own: ``python child.py KEY RESULT``.

The row is written to the file RESULT after every stage, so that what was found out stays when a limit ends the process.
Stages: build, capture, analysis, prune, proof. An error ends the row with the stage, the message and the place.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clone  # noqa: F401  (makes graphprune importable)
import numpy as np
import torch
from suites import Case, load
from suites.case import LARGE, moved
from suites.large import fill as fill_weights
from suites.large import parameters_on_meta, shorten
from torch import nn

import graphprune
from graphprune.channels.groups import Groups
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.verification.captured import check_captured
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.tracing import normalise_inputs

_INSTALLED = re.compile(r"[^\s\"'(]*/site-packages/")  # where libraries lie says nothing to others
HOW: dict[str, Any] = {"target": "channels=50%", "ranking": "local", "criterion": "l2"}


class Row:
    """What is known of a model so far, on disk at any time."""

    def __init__(self, key: str, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {"key": key, "status": "crashed", "stage": "build"}

    def add(self, **facts: Any) -> None:
        """Add facts and write the row."""
        self.facts |= facts
        self.path.write_text(_INSTALLED.sub("", json.dumps(self.facts)))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A part of the work; the CPU seconds that it takes become a fact."""
        self.add(stage=name)
        start = time.process_time()
        yield
        self.add(**{f"{name}_seconds": time.process_time() - start})


def try_model(key: str, row: Row) -> None:
    """All stages of one model."""
    case = load(key)
    inputs = case.inputs()
    hollow = built_without_values(case)
    large = hollow is not None and parameters(hollow) > LARGE
    with row.stage("build"):
        torch.manual_seed(0)
        model = hollow.to("meta") if large and hollow is not None else case.build()
        row.add(parameters=parameters(model), weights_mib=sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20)
    warm_up()
    analyse(model, moved(inputs, "meta") if large else inputs, row)
    if large:
        with row.stage("shorten"), parameters_on_meta():
            model = case.build()
        row.add(blocks_left_out=shorten(model), analysed_without_values=True)
        fill_weights(model)
    prune(model, inputs, row)
    row.add(status="proved" if row.facts["passed"] else "wrong")


def built_without_values(case: Case) -> nn.Module | None:
    """The model with parameters on the meta device; None where its constructor needs their values."""
    try:
        with parameters_on_meta():
            return case.build()
    except Exception:
        return None


def analyse(model: nn.Module, inputs: Any, row: Row) -> None:
    """Capture and group, and what the cost model says of half of every group."""
    with row.stage("capture"):
        program = graphprune.capture(model, inputs)
    opaque = {name: reason[:200] for name, reason in program.opaque.items()}
    row.add(opaque=opaque, scopes=[scope.path for scope in program.scopes])
    manager = AnalysisManager()
    with row.stage("analysis"):
        groups = manager.get(program, ChannelGroups())
        cost = manager.get(program, ModelCost())
    full = groups.widths
    row.add(
        operators=groups.trace.operators,
        groups=len(groups.prunable),
        units=int(full.sum()),
        missing={operator: len(nodes) for operator, nodes in groups.trace.missing.items()},
        frozen=frozen(groups),
        prunable_parameters=gone(cost.parameters(np.minimum(full, 1)), cost.parameters(full)),
        prunable_macs=gone(cost.macs(np.minimum(full, 1)), cost.macs(full)),
        left=1 - gone(cost.parameters((full + 1) // 2), cost.parameters(full)),
        left_macs=1 - gone(cost.macs((full + 1) // 2), cost.macs(full)),
    )


def frozen(groups: Groups) -> dict[str, int]:
    """Frozen units by reason, the commonest six."""
    count: Counter[str] = Counter()
    for group in groups.frozen:
        count[group.reason.text if group.reason else ""] += group.size
    return dict(count.most_common(6))


def gone(left: Any, total: Any) -> float:
    """The share that is missing."""
    return 1 - float(left) / float(total) if float(total) else 0.0


def prune(model: nn.Module, inputs: Any, row: Row) -> None:
    """Cut half of every group, measured; then the proof."""
    before = rest()
    with row.stage("prune"):
        result = graphprune.prune(model, inputs, verify=False, **HOW)
    row.add(peak_mib=(status("VmHWM") - before) / 1024)
    report = result.report
    if not row.facts.get("analysed_without_values"):
        unused = 1 - report.before.parameters / parameters(model)
        row.add(
            left=report.after.parameters / report.before.parameters,
            left_macs=report.after.macs / report.before.macs if report.before.macs else 1.0,
            left_with_unused=report.after.parameters / parameters(model) + unused,
        )
    before = rest()
    with row.stage("proof"):
        check_captured(model, normalise_inputs(inputs), graphprune.capture(model, inputs))
        proof = graphprune.verify(model, result.model, result.plan, inputs)
    row.add(
        proof_peak_mib=(status("VmHWM") - before) / 1024,
        error=proof.error if np.isfinite(proof.error) else None,
        compared=proof.compared,
        passed=proof.passed and proof.error < 1e-4,
        reason=proof.failure,
    )


def parameters(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def warm_up() -> None:
    """Pay for the first use of each library on a tiny model."""
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    graphprune.prune(tiny, torch.zeros(1, 3, 8, 8), **HOW)


def rest() -> int:
    """Hand freed memory back and let the peak start anew: the present resident size in KiB."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> int:
    """A size of this process in KiB; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def message(error: BaseException) -> str:
    """The first line of an error, with its type where that says something."""
    text = (str(error).strip().splitlines() or [place(error)])[0]
    return text if isinstance(error, graphprune.GraphpruneError) else f"{type(error).__name__}: {text}"


def place(error: BaseException) -> str:
    """The innermost line of graphprune's own code that the error passed."""
    home = str(Path(graphprune.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(home)]
    return f"{os.path.relpath(frames[-1].filename, home)}:{frames[-1].lineno} {frames[-1].name}" if frames else ""


def fill(try_model: Callable[[str, Row], None]) -> None:
    """Fill the row of the model that the command line names."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    row = Row(sys.argv[1], Path(sys.argv[2]))
    row.add()
    try:
        try_model(sys.argv[1], row)
    except Exception as error:
        refused = isinstance(error, graphprune.GraphpruneError)
        row.add(status="refused" if refused else "failed", reason=message(error)[:600], where=place(error))


if __name__ == "__main__":
    fill(try_model)
