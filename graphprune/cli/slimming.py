"""What ``prune`` and ``apply`` do once they know how: make the slim model, measure it, save it, and report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

import graphprune
from graphprune.cli import tables
from graphprune.cli.accuracy import top1
from graphprune.cli.loading import Job
from graphprune.cli.output import Output
from graphprune.cli.watching import Watching
from graphprune.result import PruneResult

PLAN: Final = ".json"


def finish(job: Job, make: Callable[[], PruneResult], out: Path, plan: Path | None, watching: Watching, output: Output) -> None:
    """Make, measure, save, report. Nothing is written unless everything before it went well.

    job: the original. make: the pruning. out: the file of the slim model, or of the plan where it is named so. plan: a file of
    the plan beside it.
    """
    images, original = job.images, job.source.model
    before = None if images is None else top1(original, images, output, "Accuracy of the original")
    result = make()
    after = None if images is None else top1(result.model, images, output, "Accuracy of the slim model")
    if job.device != "cpu":
        result = _on_cpu(result)
    with output.task(f"Writing {out}"):
        if out.suffix == PLAN:
            result.plan.save(out)
        else:
            graphprune.save(result, out)
        if plan is not None:
            result.plan.save(plan)
    accuracy = None if images is None or before is None else {"before": before, "after": after, "images": len(images.y)}
    disk = None if out.suffix == PLAN else (_weights_size(original), out.stat().st_size)
    output.data(_data(job, result, accuracy, disk, watching) | {"out": str(out), "plan": None if plan is None else str(plan)})
    _print(job, result, accuracy, disk, output)
    if disk is None:
        output.say(f"Plan written to {out}. Carry it out with: graphprune apply {shlex.quote(job.source.text)} {out} -o FILE")
    else:
        output.say(f"Written to {out}. Load it with: {tables.load_hint(str(out), bool(result.scopes) or result.keeps_class)}")
        if out.suffix == ".pt2":
            output.say(
                "It takes inputs of the example's sizes. `graphprune export` makes one for any batch, of a .safetensors file."
            )
    if plan is not None:
        output.say(f"Plan written to {plan}.")
    watching.report(output)


def _on_cpu(result: PruneResult) -> PruneResult:
    """Files are of the CPU, so that they load where the device is not."""
    result.graph.to("cpu")
    result.model.to("cpu")
    return replace(result, inputs=result.inputs.to("cpu"))


def _weights_size(model: nn.Module) -> int:
    """Bytes of the model's state, tied tensors once: as large as a file of its weights."""
    tensors = {id(item): item for item in model.state_dict(keep_vars=True).values() if isinstance(item, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


def _data(
    job: Job, result: PruneResult, accuracy: dict[str, Any] | None, disk: tuple[int, int] | None, watching: Watching
) -> dict[str, Any]:
    report = result.report
    old, new = disk or (None, None)
    return {
        "source": job.source.text,
        "inputs": job.inputs.describe(),
        "scopes": report.scopes,
        "untraced": report.untraced,
        "pipeline": result.plan.pipeline,
        "target": result.plan.target,
        "keep": result.plan.keep,
        "achieved": result.plan.achieved,
        "errors": result.plan.errors,
        "before": tables.cost_data(report.before) | {"disk_bytes": old},
        "after": tables.cost_data(report.after) | {"disk_bytes": new},
        "widths": report.widths,
        "opaque": report.opaque,
        "eval_only": report.eval_only,
        "unused": report.unused,
        "verification": tables.verification_data(report.verification),
        "compensation": [asdict(one) for one in report.compensation],
        "accuracy": accuracy,
        "timing": watching.timing.as_dict() if watching.time_passes else None,
    }


def _print(job: Job, result: PruneResult, accuracy: dict[str, Any] | None, disk: tuple[int, int] | None, output: Output) -> None:
    report = result.report
    what = "Cost of the pruned parts" if report.scopes else "Cost"
    output.show(tables.before_after(report.before, report.after, disk, job.inputs.describe(), what))
    _print_widths(report.widths, result.plan.keep, output)
    if report.opaque:
        output.show(tables.notes_table("Not traced into, so left as they are", report.opaque, "module", "reason"))
    if report.eval_only:
        output.show(tables.eval_only_table(report.eval_only))
    if report.scopes:
        output.say(tables.scopes_line(report.scopes, report.untraced))
    if report.unused:
        output.say(f"Left out, for the forward pass does not use them: {tables.listed(report.unused)}.")
    for note in (scores["latency"] for scores in result.plan.scores.values() if "latency" in scores):
        output.say(f"Latency: {note}.")
    output.say(tables.verification_line(report.verification))
    if report.compensation:
        output.say(tables.compensation_line(report.compensation) + " Compare such weights with `graphprune verify --trained`.")
    if accuracy is not None:
        output.say(f"{tables.accuracy_line(accuracy)} (no fine-tuning).")


def _print_widths(widths: Mapping[str, tuple[int, int]], keep: Mapping[str, str], output: Output) -> None:
    cut = sum(new < old for old, new in widths.values())
    if not cut:
        output.say("Nothing was removed: every channel stays.")
    elif output.verbose:
        output.show(tables.widths_table(widths))
    else:
        output.say(f"{cut} of {len(widths)} groups are narrower (-v lists them).")
    if keep:
        output.say(tables.keep_line(keep))
