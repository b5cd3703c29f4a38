"""What ``prune`` and ``apply`` do once they know how: make the slim model, measure it, save it, and report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphprune
from graphprune.api import PruneResult
from graphprune.cli import tables
from graphprune.cli.accuracy import top1
from graphprune.cli.loading import Job
from graphprune.cli.output import Output
from graphprune.cli.watching import Watching


def finish(job: Job, make: Callable[[], PruneResult], out: Path, plan: Path | None, watching: Watching, output: Output) -> None:
    """Make, measure, save, report. Nothing is written unless everything before it went well.

    job: the original. make: the pruning. out, plan: files to write.
    """
    images, original = job.images, job.source.model
    before = None if images is None else top1(original, images, output, "Accuracy of the original")
    result = make()
    after = None if images is None else top1(result.model, images, output, "Accuracy of the slim model")
    with output.task(f"Writing {out}"):
        graphprune.save(result, out)
        if plan is not None:
            result.plan.save(plan)
    accuracy = None if images is None or before is None else {"before": before, "after": after, "images": len(images.y)}
    output.data(_data(job, result, accuracy, out, plan, watching))
    _print(result, accuracy, out, plan, output)
    watching.report(output)


def _data(
    job: Job, result: PruneResult, accuracy: dict[str, Any] | None, out: Path, plan: Path | None, watching: Watching
) -> dict[str, Any]:
    report = result.report
    return {
        "source": job.source.text,
        "inputs": result.inputs.describe(),
        "pipeline": result.plan.pipeline,
        "target": result.plan.target,
        "achieved": result.plan.achieved,
        "before": tables.cost_data(report.before) | {"disk_bytes": report.before.weight_bytes},
        "after": tables.cost_data(report.after) | {"disk_bytes": out.stat().st_size},
        "widths": report.widths,
        "opaque": report.opaque,
        "unused": report.unused,
        "verification": tables.verification_data(report.verification),
        "accuracy": accuracy,
        "out": str(out),
        "plan": None if plan is None else str(plan),
        "timing": watching.timing.as_dict() if watching.time_passes else None,
    }


def _print(result: PruneResult, accuracy: dict[str, Any] | None, out: Path, plan: Path | None, output: Output) -> None:
    report = result.report
    disk = (report.before.weight_bytes, out.stat().st_size)
    output.show(tables.before_after(report.before, report.after, disk, result.inputs.describe()))
    if output.verbose:
        output.show(tables.widths_table(report.widths))
    if report.opaque:
        output.show(tables.notes_table("Not traced into, so left as they are", report.opaque, "module", "reason"))
    if report.unused:
        output.say(f"Left out, for the forward pass does not use them: {tables.listed(report.unused)}.")
    output.say(tables.verification_line(report.verification))
    if accuracy is not None:
        output.say(f"{tables.accuracy_line(accuracy)} (no fine-tuning).")
    output.say(f"Written to {out}. Load it with: {tables.load_hint(str(out))}")
    if plan is not None:
        output.say(f"Plan written to {plan}.")
