"""``graphprune verify``: prove a slim model against its original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli import options
from graphprune.errors import UsageError

if TYPE_CHECKING:
    from graphprune.artifact import Artifact
    from graphprune.plans.plan import Plan


def command(
    source: options.SourceText,
    slim: Annotated[Path, typer.Argument(metavar="OUT", help="The slim model: a .safetensors file that graphprune wrote.")],
    *,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="The plan, instead of the artifact's own.")] = None,
    trained: Annotated[
        bool,
        typer.Option("--trained", help="The slim model was trained since: compare its structure, with the original's weights."),
    ] = False,
    model: options.Model,
    device: options.Device = "cpu",
    accuracy: options.Accuracy,
    screen: options.Screen,
) -> None:
    """Prove that a slim model computes what the masked original computes."""
    import graphprune
    from graphprune.cli import tables
    from graphprune.cli.accuracy import top1
    from graphprune.cli.loading import Request

    with screen.output() as output:
        artifact, decision = _read(slim, plan)
        known = None if decision.scopes else artifact.inputs
        job = Request.of(source, model, accuracy, device=device).open(output, known)
        small = (graphprune.load(slim, job.source.model) if decision.scopes else artifact.module).to(device)
        with output.task("Verifying"):
            found = graphprune.verify(job.source.model, small, decision, job.inputs, seed=model.seed, weights=not trained)
        rated: dict[str, Any] | None = None
        if job.images is not None:
            before = top1(job.source.model, job.images, output, "Accuracy of the original")
            after = top1(small, job.images, output, "Accuracy of the slim model")
            rated = {"before": before, "after": after, "images": len(job.images.y)}
        output.data({"source": source, "slim": str(slim), "verification": tables.verification_data(found), "accuracy": rated})
        if found.passed:
            output.say(tables.verification_line(found))
            if screen.verbose:
                output.say(f"Tensors that were constant, and were given random values in both models: {found.randomised}.")
        if rated is not None:
            output.say(f"{tables.accuracy_line(rated)}.")
        found.check()


def _read(slim: Path, plan: Path | None) -> tuple[Artifact, Plan]:
    """The slim model and its plan. Raises ArtifactError or PlanError."""
    from graphprune.artifact import read_artifact
    from graphprune.plans.plan import Plan
    from graphprune.plans.reading import read_plan

    if slim.suffix == ".pt2":
        raise UsageError(
            f"{slim} is an exported program, whose graph is no longer that of the model. Verify the .safetensors artifact."
        )
    artifact = read_artifact(slim)
    if plan is not None:
        return artifact, read_plan(plan)
    if artifact.plan is None:
        raise UsageError(f"{slim} holds no plan. Give the one that it was made by, with --plan FILE.")
    return artifact, Plan.parse(artifact.plan, f"The plan in {slim}")
