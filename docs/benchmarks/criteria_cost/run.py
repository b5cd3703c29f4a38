"""What criteria cost: seconds of the scoring pass, and for those that read data as a ratio to plain forward passes over the data.

    python run.py

ResNet-50 with fresh weights, one thread, :data:`BATCHES` batches of :data:`BATCH` images of :data:`SIZE` x :data:`SIZE` with labels
of :data:`CLASSES` classes. The analyses (groups, filters) are made before. Seconds are process time, the least of two runs, the
plain forward passes (eval mode, no gradients) among them. ``obs`` is left out: it takes minutes. Rewrites ``results.json``
and ``README.md`` beside it.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))  # a clone that is not installed

import graphprune  # noqa: E402
from graphprune.criteria import criteria_names, find_criterion  # noqa: E402
from graphprune.passes.analysis.channels import ChannelGroups  # noqa: E402
from graphprune.passes.analysis.filters import Filters  # noqa: E402
from graphprune.passes.scoring.score import ScorePass  # noqa: E402
from graphprune.pipeline.analysis_manager import AnalysisManager  # noqa: E402

BATCHES, BATCH, SIZE, CLASSES = 4, 16, 64, 10
FORMS = ["taylor(form=weight)", "fpgm(scope=group)"]


def seconds(run: Callable[[], Any]) -> float:
    """The least process time of two runs."""
    found = []
    for _ in range(2):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    data = [(torch.randn(BATCH, 3, SIZE, SIZE), (torch.arange(BATCH) + n) % CLASSES) for n in range(BATCHES)]
    program = graphprune.capture(model, torch.zeros(1, 3, SIZE, SIZE)).with_(calibration=graphprune.Calibration(data))
    analyses = AnalysisManager()
    analyses.get(program, ChannelGroups)
    analyses.get(program, Filters)

    def forward() -> None:
        with torch.no_grad():
            for x, _ in data:
                model(x)

    rows: dict[str, dict[str, float]] = {}
    plain = seconds(forward)
    for form in sorted({*criteria_names(), *FORMS} - {"obs"}):
        chosen = ScorePass(criterion=form)
        rows[form] = {"seconds": round(seconds(lambda chosen=chosen: chosen.run(program, analyses.view(program, chosen))), 3)}
        name = find_criterion(form.partition("(")[0])
        if name.needs(**name.options):
            rows[form]["ratio"] = round(rows[form]["seconds"] / plain, 1)
    made = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}", f"Python {platform.python_version()}"]
    result = {"made_with": ", ".join([*made, platform.machine()]), "forward_seconds": round(plain, 3), "criteria": rows}
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "README.md").write_text(page(result), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """The page of the results."""
    lines = [
        "# What criteria cost",
        "",
        f"Made by `run.py` beside this page, which says how. {result['made_with']}, CPU, 1 thread.",
        "",
        f"ResNet-50, {BATCHES * BATCH} images of {SIZE} x {SIZE}: plain forward passes take {result['forward_seconds']} s.",
        "",
        "| criterion | seconds | times the forward passes |",
        "| --- | ---: | ---: |",
        *(f"| `{name}` | {row['seconds']:.3f} | {row.get('ratio', '')} |" for name, row in result["criteria"].items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
