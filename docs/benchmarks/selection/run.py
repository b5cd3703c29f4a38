"""What selection takes and what it keeps: the knapsack and the other passes on ResNet-50 at full channel resolution.

    python run.py

ResNet-50 with fresh weights, one thread, :data:`BUCKETS` buckets. The dynamic programme alone solves the knapsack over sums of
MACs (each group's change with the others at full width) for half of them; its memory is what Python and NumPy allocate at most.
The passes get scores by l2 and by sp-lamp and the targets of :data:`TARGETS`; what they keep is the sum of the scores of the kept
units, as a share of all. Seconds are process time of the pass alone. Rewrites ``results.json`` and ``README.md`` beside it.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))  # a clone that is not installed

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402

import graphprune  # noqa: E402
from graphprune.analysis_manager import AnalysisManager  # noqa: E402
from graphprune.pareto import kept_score  # noqa: E402
from graphprune.pass_manager import PassManager  # noqa: E402
from graphprune.passes.analysis.channels import ChannelGroups  # noqa: E402
from graphprune.passes.scoring.score import latest  # noqa: E402
from graphprune.passes.selection.decision import Budgeted  # noqa: E402
from graphprune.passes.selection.linearised import changes  # noqa: E402
from graphprune.passes.selection.local_search import top  # noqa: E402
from graphprune.passes.selection.solvers import dynamic  # noqa: E402
from graphprune.pipeline_text import parse_pipeline  # noqa: E402
from graphprune.plan import kept_units  # noqa: E402
from graphprune.program import Program  # noqa: E402

BUCKETS = 100_000
TARGETS = ("macs=50%", "macs=50%,params=60%", "macs=50%,params=60%,memory=70%")
PASSES = ("select{%s}", "select{%s,ranking=local}", "greedy{%s}", "knapsack{%s}", "knapsack{%s,round_to=8}")


def programme(program: Program) -> dict[str, Any]:
    """Seconds and memory of the dynamic programme alone."""
    (step,) = parse_pipeline("knapsack{macs=50%}")
    assert isinstance(step, Budgeted)
    question = step.question(program, AnalysisManager().view(program, step))
    choices, bounds = question.choices(), question.bounds
    costs = [change[:, 0] for change in changes(choices, bounds, top(choices))]
    budget = float(bounds.most[0] - bounds.amounts(choices.at(top(choices)))[0])

    def solve() -> Any:
        return dynamic.solve(choices.values, costs, budget, BUCKETS)

    seconds = min(timed(solve)[0] for _ in range(3))
    tracemalloc.start()
    solve()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return {"seconds": seconds, "peak_mib": peak, "groups": len(costs), "candidates": sum(cost.size for cost in costs)}


def timed(run: Any) -> tuple[float, Any]:
    """Process time of a call, and its result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def passes(program: Program) -> list[dict[str, Any]]:
    """A row for each pass and target."""
    manager = AnalysisManager()
    groups = manager.get(program, ChannelGroups)
    rows = []
    for targets in TARGETS:
        for text in PASSES:
            (step,) = parse_pipeline(text % targets)
            view = manager.view(program, step)
            seconds, done = min((timed(lambda step=step, view=view: step.run(program, view)) for _ in range(2)), key=lambda r: r[0])
            plan = done.plan
            score = kept_score(groups, latest(program.scores), kept_units(plan, groups).units)
            rows.append(
                {"pass": text.replace("%s,", "").replace("{%s}", ""), "targets": targets, "seconds": seconds, "score": score}
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, and write the figures and the page."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    captured = graphprune.capture(model, torch.zeros(1, 3, 224, 224))
    found: dict[str, Any] = {"made_with": f"torch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"}
    for criterion in ("l2", "sp-lamp"):
        program = PassManager(parse_pipeline(f"channels,score{{criterion={criterion}}}")).run(captured)
        found[criterion] = {"programme": programme(program), "passes": passes(program)}
        print(found[criterion]["programme"], flush=True)
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "README.md").write_text(page(found))


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    alone = found["l2"]["programme"]
    lines = [
        "# Selection on ResNet-50\n",
        f"Made by `run.py` beside this page, which says how. {found['made_with']}, {platform.machine()}, one thread.\n",
        f"The dynamic programme alone, {alone['groups']} groups, {alone['candidates']:,} widths, {BUCKETS:,} buckets: "
        f"**{alone['seconds']:.2f} s**, {alone['peak_mib']:.0f} MiB allocated at most "
        f"(with scores by sp-lamp {found['sp-lamp']['programme']['seconds']:.2f} s).\n",
    ]
    for criterion in ("l2", "sp-lamp"):
        lines += [f"## Scores by {criterion}\n", "| targets | pass | score kept | seconds |", "| --- | --- | ---: | ---: |"]
        for row in found[criterion]["passes"]:
            lines.append(f"| {row['targets']} | `{row['pass']}` | {row['score']:.3%} | {row['seconds']:.2f} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
