"""``graphprune prune-checkpoint``: a checkpoint that need not fit into memory in, a smaller one out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli import options
from graphprune.errors import CaptureError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from graphprune.cli.output import Output, Task
    from graphprune.ir.program import Inputs
    from graphprune.streaming import CheckpointReport

_HOW = "How to prune"


@dataclass(frozen=True, kw_only=True)
class Selection(options.Selection):
    """How channels are scored and selected where the weights are read one by one."""

    criterion: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Importance of a channel, as of `prune`, if it reads weights one by one: l2, l1, lamp, sp-lamp, bn-scale, "
            "fpgm, euclidean, cosine, random; with --calibrate also attention, apoz, mean-activation, variance, taylor, fisher "
            "and obs. Default: l2.",
            rich_help_panel=_HOW,
        ),
    ] = None
    ranking: Annotated[
        str | None,
        typer.Option(
            metavar="local|global|isomorphic",
            help="What is compared with what. Default: local, which gives alike layers the same widths.",
            rich_help_panel=_HOW,
        ),
    ] = None
    widths: Annotated[
        str | None,
        typer.Option(
            metavar="config|any",
            help="Which widths are taken: such as the config can state, or any. Default: config, with which the slim model loads.",
            rich_help_panel=_HOW,
        ),
    ] = None


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A folder of transformers (config.json and .safetensors); with --model any .safetensors."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the slim one goes.", rich_help_panel="Result")],
    *,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="package.module:factory that builds the model, instead of the config. It is built without values.",
            rich_help_panel="Model",
        ),
    ] = None,
    shape: options.Shape = None,
    exclude: options.Exclude = None,
    policy: options.PolicyChoices = None,
    seed: options.Seed = 0,
    selection: Selection,
    calibration: options.Calibration,
    compensate: Annotated[
        str | None,
        typer.Option(
            metavar="least-squares",
            help="Give layers the weights that make up best for what they lost, on --calibrate data.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    from_plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Carry out this plan, instead of scoring and selecting.", rich_help_panel=_HOW),
    ] = None,
    plan: options.PlanCopy = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", help="Write plan.json and no weights; run again without it for them.", rich_help_panel="Result"
        ),
    ] = False,
    no_verify: options.NoVerify = False,
    proof_memory: Annotated[
        float,
        typer.Option(metavar="GB", help="Largest copy of reduced depth that the proof may build.", rich_help_panel="Result"),
    ] = 1.0,
    screen: options.Screen,
) -> None:
    """Prune a checkpoint larger than the memory: it is scored and cut one tensor at a time."""
    from graphprune.cli.loading import check_outputs, parse_policy
    from graphprune.runs.ranks import leave, meet
    from graphprune.sources import load_calibration
    from graphprune.streaming import apply_plan_to_checkpoint, prune_checkpoint

    how = {
        **selection.arguments(),
        "exclude": exclude,
        "policy": parse_policy(policy) or None,
        "data": calibration.calibrate,
        "compensate": compensate,
        "plan_only": plan_only or None,
    }
    given: dict[str, Any] = {name: value for name, value in how.items() if value is not None}
    if from_plan is not None and given:
        name = "calibrate" if "data" in given else next(iter(given)).replace("_", "-")
        raise UsageError(f"--from-plan replaces --{name}. Leave out one of them.")
    check_outputs([plan], [] if from_plan is None else [from_plan])
    rank, ranks = meet()
    with screen.output(silent=rank > 0) as output:
        with output.task(f"Reading {checkpoint}"):
            built, inputs, config = _open(checkpoint, model, shape, seed)
            if calibration.calibrate is not None:
                data = load_calibration(calibration.calibrate, samples=calibration.samples, like=inputs, seed=seed)
                given["data"] = data.part(rank, ranks)
        with output.task("Analysing", total=1.0) as task:
            shared: dict[str, Any] = {"seed": seed, "verify": not no_verify, "proof_bytes": int(proof_memory * 1e9)}
            shared |= {"config": config, "progress": _Shown(task)}
            with _guessed(inputs) if shape is None else nullcontext():
                if from_plan is None:
                    report = prune_checkpoint(built, inputs, checkpoint, out, **given, **shared)
                else:
                    report = apply_plan_to_checkpoint(built, inputs, checkpoint, out, from_plan, **shared)
        if rank == 0:
            if plan is not None:
                report.plan.save(plan)
            output.data(_data(report, out, plan))
        _print(report, inputs.describe(), out, output)
        if plan is not None:
            output.say(f"Plan written to {plan}.")
    leave()


def _open(checkpoint: Path, model: str | None, shape: str | None, seed: int) -> tuple[nn.Module, Inputs, dict[str, Any] | None]:
    """The model without values, example inputs, and the config that it was built from, if it was."""
    import torch

    from graphprune.sources import parse_input
    from graphprune.sources.factories import from_python
    from graphprune.streaming import build_for, open_checkpoint, read_config, usual_inputs

    given = None if shape is None else parse_input(shape, seed=seed)
    if model is not None:
        if given is None:
            raise UsageError("The inputs of a --model are not known. Give them with --input, for example --input 1x3x224x224.")
        with torch.device("meta"):
            return from_python(model).model.eval(), given, None
    opened = open_checkpoint(checkpoint)
    config = read_config(opened.folder)
    built = build_for(config, opened)
    return built, given or usual_inputs(built), config


@contextmanager
def _guessed(inputs: Inputs) -> Iterator[None]:
    """Say with a failure of capture which inputs were taken, since they were not given."""
    try:
        yield
    except CaptureError as error:
        raise CaptureError(
            f"{error} No inputs were named, and {inputs.describe()} was taken; if the model needs others, give them with --input."
        ) from error


class _Shown:
    """Shows on a task of total 1 how far scoring or writing is."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._share = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        share = done / max(1, total)
        self._task.describe(f"{what}: {done / 1e9:.2f} of {total / 1e9:.2f} GB")
        self._task.advance(share - self._share)
        self._share = share


def _print(report: CheckpointReport, inputs: str, out: Path, output: Output) -> None:
    from graphprune.cli import tables

    disk = (report.bytes_before, report.bytes_after)
    output.show(tables.before_after(report.before, report.after, disk, inputs))
    if output.verbose:
        output.show(tables.widths_table(report.widths))
    if report.plan.keep:
        output.say(tables.keep_line(report.plan.keep))
    output.say(f"Checked on the meta device: the slim graph runs, and {report.tensors} tensors have the shapes of the plan.")
    output.say(report.proof.describe())
    if report.compensation:
        output.say(tables.compensation_line(report.compensation))
    if report.config is not None:
        output.say(report.config.describe() + ("" if report.config.config is not None else " Its graph comes from plan.json."))
    if not report.shards:
        output.say(f"Plan written to {out / 'plan.json'}. Run the command again without --plan-only to write the weights.")
        return
    resumed = f", of which {report.resumed} were there already" if report.resumed else ""
    load = ""
    if report.config is not None and report.config.config is not None:
        load = f' Load it with: from_pretrained("{out}")'
    files = tables.several(len(report.shards), "file")
    output.say(f"Written to {out}: {files} of weights{resumed}.{load}")


def _data(report: CheckpointReport, out: Path, plan: Path | None) -> dict[str, Any]:
    from graphprune.cli import tables

    fit = report.config
    return {
        "before": tables.cost_data(report.before) | {"disk_bytes": report.bytes_before},
        "after": tables.cost_data(report.after) | {"disk_bytes": report.bytes_after},
        "target": report.plan.target,
        "keep": report.plan.keep,
        "achieved": report.plan.achieved,
        "widths": report.widths,
        "tensors": report.tensors,
        "verification": tables.verification_data(report.proof.verification),
        "proof": report.proof.describe(),
        "compensation": [asdict(one) for one in report.compensation],
        "config": None if fit is None else {"changes": fit.changes, "reason": fit.reason, "written": fit.config is not None},
        "shards": report.shards,
        "resumed": report.resumed,
        "out": str(out),
        "plan": None if plan is None else str(plan),
    }
