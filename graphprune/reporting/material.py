"""What a report rests on: files that are there, and the original where it can be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from graphprune.artifact import read_artifact
from graphprune.artifact.file import Artifact
from graphprune.artifact.parts import parts_in
from graphprune.calibration import Calibration
from graphprune.cli.accuracy import top1
from graphprune.cli.loading import Request as Source
from graphprune.cli.loading import parse_policy
from graphprune.cli.output import Output
from graphprune.errors import GraphpruneError, UsageError
from graphprune.ir.program import Inputs
from graphprune.latency.table import LatencyTable
from graphprune.plans.plan import Plan
from graphprune.recipe import Draft, ModelSection
from graphprune.reporting.original import Original, analysed
from graphprune.reporting.runs import Run, runs_in
from graphprune.saving import load
from graphprune.sources.load import names_code

_KINDS: Final = "the folder of a run (or of several), an artifact (.safetensors), or a plan (.json)"


@dataclass(frozen=True)
class Request:
    """What a report is asked for.

    subject: a run, a folder of runs, an artifact or a plan. against: the original, as the user named it, or None to take what the
    subject says; its ``source`` is then empty. latency: a file of a latency table. criterion: for the distributions of importance;
    None for the one that the plan was made by.
    """

    subject: Path
    against: Source
    latency: Path | None = None
    criterion: str | None = None


@dataclass(frozen=True)
class Material:
    """What is at hand.

    runs: none for an artifact or a plan, several for a folder of runs. original: None where it is not at hand, and then
    ``no_original`` says why, as a sentence. named: the name of the original. accuracy: of the original and the slim model on the
    user's images, with their number.
    """

    subject: Path
    runs: tuple[Run, ...] = ()
    plan: Plan | None = None
    artifact: Artifact | None = None
    original: Original | None = None
    no_original: str = ""
    named: str = ""
    request: Source = field(default_factory=lambda: Source(""))
    calibration: Calibration | str | None = None
    criterion: str | None = None
    table: LatencyTable | None = None
    accuracy: tuple[float, float, int] | None = None

    @property
    def run(self) -> Run | None:
        """The run, where the report is about a single one."""
        return self.runs[0] if len(self.runs) == 1 else None

    @property
    def slim(self) -> Path | None:
        """The file of the slim model."""
        if self.artifact is None:
            return None
        return self.subject if self.run is None else self.run.slim

    @property
    def widths(self) -> Mapping[str, tuple[int, int]]:
        """Units of every prunable group by name, before and after; empty where nothing says."""
        if self.run is not None and self.run.result is not None:
            return self.run.result.widths
        if self.original is not None and self.original.kept is not None:
            kept = self.original.kept.tolist()
            return {group.name: (group.size, kept[group.index]) for group in self.original.groups.prunable}
        last = self.run.last if self.run is not None else None
        if self.run is None or last is None:
            return {}
        first = self.run.rounds[0].widths
        return {name: (first[name], width) for name, width in last.widths.items() if name in first}


def gather(request: Request, output: Output) -> Material:
    """Read the subject, and load and analyse its original.

    What a file names as its original is loaded only where that imports no code that the file names, without the user's word.

    Raises UsageError for a subject that is none, RunError, PlanError, ArtifactError or LatencyError for a damaged file. What is
    wrong with an original that the user named is an error too; one that only the subject names is left out, and the report says
    why.
    """
    with output.task(f"Reading {request.subject}"):
        runs, plan, artifact = _read(request.subject)
        table = None if request.latency is None else LatencyTable.load(request.latency)
    run = runs[0] if len(runs) == 1 else None
    implied = _implied(run, artifact)
    wanted = _merged(request.against, implied) if request.against.source in ("", implied.source) else request.against
    found = Material(
        request.subject, runs, plan, artifact, named=wanted.source, request=wanted, criterion=request.criterion, table=table
    )
    if not wanted.source:
        return replace(found, no_original="The report does not know the original model. Name it with --against SOURCE.")
    explicit = bool(request.against.source)
    if names_code(wanted.source) and not explicit and not wanted.trust_pickle:
        about = f"The original, {wanted.source}, is code that the file names and nobody asked to run."
        return replace(found, no_original=f"{about} If you trust it, give --trust-pickle, or --against with its name.")
    weights = explicit or wanted.weights is not None
    try:
        return _opened(found, wanted, implied.recipe, weights, output)
    except GraphpruneError as error:
        if explicit:
            raise
        hint = "Name the original with --against SOURCE, with --weights and --input as for the other commands."
        return replace(found, no_original=f"The original, {wanted.source}, could not be taken: {error} {hint}")


def _read(subject: Path) -> tuple[tuple[Run, ...], Plan | None, Artifact | None]:
    if subject.is_dir():
        runs = runs_in(subject)
        if not runs:
            raise UsageError(f"{subject} holds no run and no folders of runs. Give {_KINDS}.")
        only = runs[0] if len(runs) == 1 else None
        slim = None if only is None or only.slim is None else read_artifact(only.slim)
        return runs, None if only is None else only.plan, slim
    if subject.suffix == ".json":
        return (), Plan.load(subject), None
    if subject.suffix == ".safetensors":
        artifact = read_artifact(subject)
        return (), None if artifact.plan is None else Plan.parse(artifact.plan, f"The plan in {subject}"), artifact
    raise UsageError(f"{subject} is nothing to report on. Give {_KINDS}.")


@dataclass(frozen=True)
class _Implied:
    """What the subject says about its original."""

    source: str = ""
    recipe: ModelSection | None = None


def _implied(run: Run | None, artifact: Artifact | None) -> _Implied:
    if run is not None and "source" in run.recipe.get("model", {}):
        model = Draft(run.recipe).section("model", ModelSection)
        return _Implied(model.source, model)
    return _Implied("" if artifact is None else artifact.provenance.get("source", ""))


def _merged(given: Source, implied: _Implied) -> Source:
    """The source that the subject names, with what the user gave beside it."""
    model = implied.recipe
    if model is None:
        return replace(given, source=implied.source)
    return replace(given, source=implied.source, weights=given.weights or model.weights, shape=given.shape or model.input)


def _opened(found: Material, wanted: Source, model: ModelSection | None, weights: bool, output: Output) -> Material:
    """The material with its original."""
    known = _inputs(found.artifact)
    job = wanted.open(output, known)
    if not wanted.shape and known is not None:
        job = replace(job, inputs=known)
    with output.task("Following channels"):
        exclude, policy = ((), {}) if model is None else (model.exclude, parse_policy(model.policy))
        original = analysed(job.source, job.inputs, found.plan, exclude, policy, weights=weights)
    rated = None
    slim = found.slim
    if job.images is not None and slim is not None:
        names = ("Accuracy of the original", "Accuracy of the slim model")
        models = (job.source.model, load(slim, job.source.model))
        first, second = (top1(model, job.images, output, name) for model, name in zip(models, names, strict=True))
        rated = first, second, len(job.images.y)
    return replace(found, original=original, calibration=job.calibration, accuracy=rated)


def _inputs(artifact: Artifact | None) -> Inputs | None:
    """The example inputs in an artifact, if it has any; those of parts of a model are none for the whole."""
    if artifact is None or parts_in(artifact.provenance) or not (artifact.inputs.args or artifact.inputs.kwargs):
        return None
    return artifact.inputs
