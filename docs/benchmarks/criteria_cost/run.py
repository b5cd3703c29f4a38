"""What criteria cost: seconds of the scoring pass, and for those that read data as a ratio to plain forward passes over the data.

    python run.py [--device cuda] [--out FOLDER] [CRITERION ...]

ResNet-50 with fresh weights, one thread, :data:`BATCHES` batches of :data:`BATCH` images of :data:`SIZE` x :data:`SIZE` with labels
of :data:`CLASSES` classes. The analyses (groups, filters) are made before. Seconds are the least of two runs, of process time on
the CPU and of wall time on a GPU, the plain forward passes (eval mode, no gradients) among them. ``obs`` takes minutes. Rewrites
``results.json`` (``results-cuda.json``) and ``README.md``, which has a table of each, beside it or in the folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
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

BATCHES, BATCH, SIZE, CLASSES = 4, 8, 224, 10
FORMS = ["taylor(form=weight)", "fpgm(scope=group)"]


FILES = {"cpu": "results.json", "cuda": "results-cuda.json"}


def seconds(run: Callable[[], Any], device: str) -> float:
    """The least time of two runs."""
    found = []
    for _ in range(2):
        start = now(device)
        run()
        found.append(now(device) - start)
    return min(found)


def now(device: str) -> float:
    """Process time; on a GPU wall time, once all is done that was begun there."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measured(device: str, criteria: Sequence[str]) -> dict[str, Any]:
    """Measure criteria on a device."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval().to(device)
    data = [
        (torch.randn(BATCH, 3, SIZE, SIZE).to(device), ((torch.arange(BATCH) + n) % CLASSES).to(device)) for n in range(BATCHES)
    ]
    program = graphprune.capture(model, data[0][0][:1]).with_(calibration=graphprune.Calibration(data))
    analyses = AnalysisManager()
    analyses.get(program, ChannelGroups)
    analyses.get(program, Filters)

    def forward() -> None:
        with torch.no_grad():
            for x, _ in data:
                model(x)

    rows: dict[str, dict[str, float]] = {}
    plain = seconds(forward, device)
    for form in criteria:
        chosen = ScorePass(criterion=form)
        taken = seconds(lambda chosen=chosen: chosen.run(program, analyses.view(program, chosen)), device)
        rows[form] = {"seconds": round(taken, 3)}
        name = find_criterion(form.partition("(")[0])
        if name.needs(**name.options):
            rows[form]["ratio"] = round(rows[form]["seconds"] / plain, 1)
    made = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}", f"Python {platform.python_version()}"]
    made += [platform.machine(), "CPU, 1 thread" if device == "cpu" else torch.cuda.get_device_name()]
    return {"made_with": ", ".join(made), "forward_seconds": round(plain, 3), "criteria": rows}


def page(results: Sequence[dict[str, Any]]) -> str:
    """The page of the results."""
    lines = ["# What criteria cost", "", "Made by `run.py` beside this page, which says how."]
    for result in results:
        lines += [
            "",
            f"{result['made_with']}. ResNet-50, {BATCHES * BATCH} images of {SIZE} x {SIZE}: plain forward passes take "
            f"{result['forward_seconds']} s.",
            "",
            "| criterion | seconds | times the forward passes |",
            "| --- | ---: | ---: |",
            *(f"| `{name}` | {row['seconds']:.3f} | {row.get('ratio', '')} |" for name, row in result["criteria"].items()),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("criteria", nargs="*", default=sorted({*criteria_names(), *FORMS}), metavar="CRITERION")
    parser.add_argument("--device", choices=list(FILES), default="cpu")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results and the page go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measured(options.device, options.criteria)
    (options.out / FILES[options.device]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    files = [options.out / name for name in FILES.values()]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.exists()]
    (options.out / "README.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
