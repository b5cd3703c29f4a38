"""What selection keeps: the knapsack and the other passes on ResNet-50 at full channel resolution.

    python run.py

ResNet-50 with fresh weights, scores by l2 and by sp-lamp. Score kept: the scores of the units that stay, as a share of all.
  - Sums of MACs (each group's change with the others at full width) for half of them, in multiples of :data:`ROUND_TO` channels:
    what the dynamic programme keeps with :data:`BUCKETS` buckets, and what HiGHS keeps, which rounds no costs and stops within
    :data:`GAP` of the optimum. At full resolution the programme alone, with the memory that Python and NumPy allocate at most.
  - The passes with the targets of :data:`TARGETS`, which are met on the true, joint costs.
Nothing is timed. Rows go to ``results.jsonl``, replaced atomically after each; those that are there are left, so that an
interrupted run goes on. ``README.md`` is made from them.
"""

from __future__ import annotations

import json
import platform
import sys
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))  # a clone that is not installed

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402

import graphprune  # noqa: E402
from graphprune.files import atomic_write  # noqa: E402
from graphprune.ir.program import Program  # noqa: E402
from graphprune.passes.analysis.channels import ChannelGroups  # noqa: E402
from graphprune.passes.scoring.score import latest  # noqa: E402
from graphprune.passes.selection.decision import Budgeted, Question  # noqa: E402
from graphprune.passes.selection.linearised import changes  # noqa: E402
from graphprune.passes.selection.local_search import top  # noqa: E402
from graphprune.passes.selection.solvers import dynamic, mixed_integer  # noqa: E402
from graphprune.passes.selection.solvers.problem import Constraint  # noqa: E402
from graphprune.pipeline.analysis_manager import AnalysisManager  # noqa: E402
from graphprune.pipeline.pass_manager import PassManager  # noqa: E402
from graphprune.pipeline.text import parse_pipeline  # noqa: E402
from graphprune.plans.plan import kept_units  # noqa: E402
from graphprune.surveys.pareto import kept_score  # noqa: E402

BUCKETS = 100_000
ROUND_TO = 8
GAP = 1e-5  # of the optimum, within which HiGHS may stop
CRITERIA = ("l2", "sp-lamp")
TARGETS = ("macs=50%", "macs=50%,params=60%", "macs=50%,params=60%,memory=70%")
PASSES = ("select{%s}", "select{%s,ranking=local}", "greedy{%s}", "knapsack{%s}", "knapsack{%s,round_to=8}")
RESULTS = HERE / "results.jsonl"
ANALYSES = AnalysisManager()
Row = dict[str, Any]


@cache
def scored(criterion: str) -> Program:
    """ResNet-50 with scores."""
    torch.manual_seed(0)
    captured = graphprune.capture(torchvision.models.resnet50(weights=None).eval(), torch.zeros(1, 3, 224, 224))
    return PassManager(parse_pipeline(f"channels,score{{criterion={criterion}}}")).run(captured)


def asked(program: Program, text: str) -> tuple[Budgeted, Question]:
    """A selection pass, and what it is asked."""
    (step,) = parse_pipeline(text)
    assert isinstance(step, Budgeted)
    return step, step.question(program, ANALYSES.view(program, step))


def sums(criterion: str) -> Row:
    """The knapsack over sums, by the dynamic programme and by HiGHS."""
    row: Row = {}
    for step in (ROUND_TO, 1):
        question = asked(scored(criterion), f"knapsack{{macs=50%,round_to={step}}}")[1]
        choices, bounds = question.choices(), question.bounds
        costs = [change[:, 0] for change in changes(choices, bounds, top(choices))]
        room = float(bounds.most[0] - bounds.amounts(choices.at(top(choices)))[0])
        tracemalloc.start()
        found = dynamic.solve(choices.values, costs, room, BUCKETS)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        row |= {"groups": len(costs), f"candidates_{step}": sum(c.size for c in costs), f"peak_mib_{step}": peak}
        if step == ROUND_TO:
            exact = mixed_integer.solve(choices.values, [Constraint(tuple(costs), room)], gap=GAP)
            row["dynamic"], row["highs"] = (choices.value(items) / choices.value(top(choices)) for items in (found, exact))
    return row


def kept(criterion: str, targets: str, text: str) -> Row:
    """What a pass keeps, and what remains of each target."""
    program = scored(criterion)
    step, _ = asked(program, text % targets)
    plan = step.run(program, ANALYSES.view(program, step)).plan
    assert plan is not None
    groups = ANALYSES.get(program, ChannelGroups)
    score = kept_score(groups, latest(program.scores), kept_units(plan, groups).units)
    return {"score": score, "left": {kind: plan.achieved[kind] for kind in plan.target}}


def main() -> None:
    """Fill in the rows that are missing, and write the page."""
    torch.set_num_threads(1)
    for criterion in CRITERIA:
        if f"{criterion}/sums" not in read():
            put(f"{criterion}/sums", sums(criterion))
        for targets in TARGETS:
            for text in PASSES:
                if (key := f"{criterion}/{targets}/{text}") not in read():
                    put(key, kept(criterion, targets, text))
    with atomic_write(HERE / "README.md") as temporary:
        temporary.write_text(page(read()))


def read() -> dict[str, Row]:
    """Rows by key."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def put(key: str, row: Row) -> None:
    """Add a row."""
    made_with = f"torch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    rows = read() | {key: {"key": key, **row, "made_with": made_with}}
    with atomic_write(RESULTS) as temporary:
        temporary.write_text("".join(json.dumps(one) + "\n" for one in rows.values()))
    print(rows[key], flush=True)


def page(rows: dict[str, Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "# What selection keeps on ResNet-50\n",
        f"Made by `run.py` beside this page, which says how. {' / '.join(sorted({row['made_with'] for row in rows.values()}))}.\n",
        "Score kept: the scores of the units that stay, as a share of all. Every choice meets its targets on the true costs.\n",
        "## The knapsack over sums\n",
        f"| scores by | dynamic programme, {BUCKETS:,} buckets | HiGHS, within {GAP:.3%} of the optimum | at full resolution |",
        "| --- | ---: | ---: | ---: |",
    ]
    for criterion in CRITERIA:
        row = rows[f"{criterion}/sums"]
        memory = f"{row['peak_mib_1']:.0f} MiB ({row['groups']} groups, {row['candidates_1']:,} widths)"
        lines.append(f"| {criterion} | {row['dynamic']:.4%} | {row['highs']:.4%} | {memory} |")
    for criterion in CRITERIA:
        lines += [f"\n## Scores by {criterion}\n", "| targets | pass | score kept | what remains |", "| --- | --- | ---: | ---: |"]
        for targets in TARGETS:
            for text in PASSES:
                row = rows[f"{criterion}/{targets}/{text}"]
                left = ", ".join(f"{kind} {share:.1%}" for kind, share in row["left"].items())
                name = text.replace("%s,", "").replace("{%s}", "")
                lines.append(f"| {targets} | `{name}` | {row['score']:.3%} | {left} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
