"""What ``graphprune run`` does once it has a recipe: open what it names, run the method, measure, save, report."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import graphprune
from graphprune.cli import run_plots, tables
from graphprune.cli.loading import parse_policy
from graphprune.cli.output import Output
from graphprune.cli.pictures import check_plot
from graphprune.cli.rounds import Several, rounds_table, watching
from graphprune.devices import check_device
from graphprune.errors import ArtifactError, RunError, UsageError, first_line
from graphprune.failures import lost_worker, memory_is_out, worker_is_lost
from graphprune.files import atomic_write, write_whole
from graphprune.ir.program import Inputs
from graphprune.methods import MethodResult
from graphprune.recipe import Draft, Recipe
from graphprune.runs import ranks
from graphprune.runs.history import Round, Silent, Watch
from graphprune.sources import example_inputs, load_source
from graphprune.training.data import TrainingData, load_training_data
from graphprune.training.trainer import Trainer

RECIPE: Final = "recipe.toml"
_BEGUN: Final = {"journal.jsonl", "snapshots"}  # what a run may leave that was killed before its recipe was written

#: What a run loses to the machine: how errors say so, and what the user is told.
_LOSSES: Final[tuple[tuple[Callable[[Exception], bool], Callable[[Exception], str]], ...]] = (
    (worker_is_lost, lost_worker),
    (ranks.lost, lambda error: "Another process of this run went away; its own messages say why."),
    (memory_is_out, lambda error: "Out of memory. Make some free, or train in another folder with a larger training.accumulate."),
)


@dataclass(frozen=True)
class Extras:
    """What is made besides the slim model. plot: the format of pictures, or none. tensorboard: write its logs."""

    plot: str
    tensorboard: bool

    @classmethod
    def checked(cls, plot: str | None, tensorboard: bool) -> Extras:
        """The extras that are wanted. Raises UsageError for what is unknown or not installed."""
        if plot not in (None, "none", *run_plots.FORMATS):
            raise UsageError(f"--plot {plot} is not known; choose from {', '.join(run_plots.FORMATS)} and none.")
        if plot in run_plots.FORMATS:
            check_plot(Path(f"rounds.{plot}"))
        if tensorboard and find_spec("tensorboard") is None:
            raise UsageError('--tensorboard needs tensorboard. Install it with: pip install "graphprune[tensorboard]".')
        return cls(plot or ("png" if find_spec("matplotlib") is not None else "none"), tensorboard)


@dataclass(frozen=True)
class Opened:
    """What a recipe names. model: the original, which stays as it is."""

    model: nn.Module
    inputs: Inputs
    data: TrainingData
    trainer: Trainer


def conduct(recipe: Recipe, extras: Extras, output: Output) -> None:
    """Run a recipe. Nothing is written before all that can be checked is checked.

    Raises UsageError for what is wrong with it, RunError for a folder of another run, or where a process was lost.
    """
    policy = parse_policy(recipe.model.policy)
    with output.task(f"Loading {recipe.model.source}"):
        opened = _open(recipe)
    folder = recipe.run.out
    _check_folder(folder, recipe)
    _check_fit(opened, recipe)
    ranks.together()
    with _explained(folder):
        with watching(output, recipe.options.expected_rounds()) as view:
            opened.trainer.watch = view.batch
            watches = [
                _Keeper(recipe, folder),
                view,
                _Warner(opened.data.classes, recipe.options.trained, output),
                *_logs(extras, folder),
            ]
            result = _run(recipe, opened, policy, Several(watches) if ranks.rank() == 0 else Silent())
        _finish(recipe, opened, result, extras, output)
    ranks.leave()


def _open(recipe: Recipe) -> Opened:
    if recipe.run.device != "auto":
        check_device(recipe.run.device)
    device = "cpu" if recipe.run.device == "cpu" else None  # else each process takes a GPU of its own
    part, run = recipe.model, recipe.run
    source = load_source(part.source, weights=part.weights, trust_pickle=part.trust_pickle, seed=run.seed)
    about = recipe.data
    data = load_training_data(
        about.source, prepare=about.prepare, validation=about.validation, seed=run.seed, workers=about.workers
    )
    if part.input is None and source.inputs is None:
        source = replace(source, inputs=Inputs((data.example(),)))
    trainer = Trainer(data, recipe.training, device=device)
    where = trainer.processes.device  # cuts are chosen and proved where the model trains
    inputs = example_inputs(source, part.input, seed=run.seed).to(where)
    return Opened(source.model.to(where), inputs, data, trainer)


def _check_folder(folder: Path, recipe: Recipe) -> None:
    """Raise RunError for a folder of another run, or of something else."""
    known = folder / RECIPE
    if known.is_file():
        difference = Draft.load(known).checked().difference(recipe)
        if difference is not None:
            raise RunError(f"The run in {folder} has {difference}. Give the same options to go on with it, or another --out.")
        return
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "is not writable" if nearest.is_dir() else "is a file"
        raise RunError(f"Cannot write to the folder {folder}: {nearest} {reason}. Choose another --out.")
    others = {path.name for path in nearest.iterdir() if not path.name.startswith(".")} - _BEGUN
    if nearest == folder.absolute() and others:
        raise RunError(f"The folder {folder} holds other files and no run. Choose another --out.")


def _check_fit(opened: Opened, recipe: Recipe) -> None:
    """Raise UsageError where the model does not take the data, or has too few classes for them."""
    model, sample = opened.model, opened.data.example()
    before = [(module, module.training) for module in model.modules()]
    parameter = next((p for p in model.parameters() if p.is_floating_point()), sample)
    try:
        with torch.no_grad():
            opened.trainer.scores(model.eval(), sample.to(parameter.device, parameter.dtype))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UsageError(
            f"{recipe.model.source} does not take the samples {list(sample.shape[1:])} of {recipe.data.source}: "
            f"{first_line(error)}. Choose another model, or [data] prepare."
        ) from error
    finally:
        for module, mode in before:
            module.training = mode


class _Keeper(Silent):
    """Writes the recipe into the folder with the first step that is done there."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._recipe, self._path = recipe, folder / RECIPE

    def working(self, what: str, number: int) -> None:
        """A step begins, so there is a run."""
        if not self._path.exists():
            self._recipe.save(self._path)


class _Warner(Silent):
    """Says so where a model that comes trained, or was trained first, knows no more than chance."""

    def __init__(self, classes: int, comes: bool, output: Output) -> None:
        self._chance, self._output = 1 / classes, output
        self._remedy = (
            "Give --weights, or have it trained first with --set trained=false" if comes else "Train it for more --epochs"
        )

    def round(self, row: Round, *, repeated: bool) -> None:
        """Look at the dense model."""
        if row.status == "dense" and row.accuracy is not None and row.accuracy < 1.5 * self._chance and not self._output.quiet:
            self._output.errors.print(
                f"graphprune: warning: the model is hardly better than chance. {self._remedy}.",
                soft_wrap=True,
            )


def _logs(extras: Extras, folder: Path) -> list[Watch]:
    if not extras.tensorboard:
        return []
    from graphprune.cli.tensorboard import TensorBoard

    return [TensorBoard(folder / "tensorboard")]


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """An interruption, or the loss of a process or of memory, says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        if ranks.rank() == 0 and (folder / RECIPE).exists():
            error.add_note(f"Go on with the same command, or with: graphprune run {shlex.quote(str(folder / RECIPE))}")
        raise
    except (RuntimeError, MemoryError) as error:
        found = next((text for fits, text in _LOSSES if fits(error)), None)
        if found is None:
            raise
        kept = f"What was done is kept in {folder}: run the same command again to go on."
        raise RunError(f"{found(error)} {kept}") from error


def _run(recipe: Recipe, opened: Opened, policy: Mapping[str, str], watch: Watch) -> MethodResult:
    part, run, trainer = recipe.model, recipe.run, opened.trainer
    return recipe.method(
        opened.model,
        opened.inputs,
        train=trainer.train,
        evaluate=trainer.evaluate,
        data=opened.data.calibration(recipe.data.samples, seed=run.seed),
        folder=run.out,
        seed=run.seed,
        exclude=part.exclude,
        policy=policy,
        scopes=part.scopes,
        verify=run.verify,
        masks=run.masks,
        recalibrate=run.recalibrate,
        keep_class=part.keep_class,
        watch=watch,
        **recipe.options.model_dump(),
    )


def _finish(recipe: Recipe, opened: Opened, result: MethodResult, extras: Extras, output: Output) -> None:
    """Save, test once, report. Only the first process of a distributed run writes and says anything."""
    result = replace(result, pruned=replace(result.pruned, source=recipe.model.source))
    first, folder = ranks.rank() == 0, recipe.run.out
    load = _save(result, folder) if first else ""
    with output.task("Testing"):
        tested = _tested(opened.trainer, result)
    if not first:
        return
    data = _data(recipe, result, tested)
    write_whole(folder / "result.json", json.dumps(data, indent=1) + "\n")
    drawn = [] if extras.plot == "none" else run_plots.draw(folder, result.rounds, extras.plot)
    output.data(data | {"out": str(folder), "plots": [str(path) for path in drawn]})
    output.show(rounds_table(result.rounds), *([tables.widths_table(result.pruned.report.widths)] if output.verbose else []))
    output.show(_comparison(recipe, result, tested))
    keep = getattr(recipe.options, "keep", {})
    if keep:
        output.say(tables.keep_line(keep))
    output.say(tables.verification_line(result.pruned.report.verification))
    if tested["slim"] is None:
        output.say(f"{recipe.data.source} has no test samples: the accuracy is that on the samples that all decisions went by.")
    if not result.plan.kept:
        output.say(
            f"Nothing was removed: {_nothing(result)}. `graphprune recipe --show {recipe.method.name}` explains what decides it."
        )
    if drawn:
        output.say(f"Pictures: {', '.join(str(path) for path in drawn)}.")
    output.say(f"Written to {folder}. Load the slim model with: {load}")


def _nothing(result: MethodResult) -> str:
    """Why a run has removed nothing."""
    back = any(row.status == "rolled back" for row in result.rounds)
    return "every cut lost more accuracy than is tolerated" if back else "the options of the method allow no cut"


def _save(result: MethodResult, folder: Path) -> str:
    """Write the slim model and its plan; how to load it. A model that no artifact holds is written as weights."""
    result.plan.save(folder / "plan.json")
    path = folder / "slim.safetensors"
    try:
        graphprune.save(result.pruned, path)
    except ArtifactError:
        from safetensors.torch import save_model

        path = folder / "weights.safetensors"
        with atomic_write(path) as temporary:
            save_model(result.model, str(temporary))
        plan = f'graphprune.apply_plan(original, inputs, "{folder / "plan.json"}")'
        return f'slim = {plan}.model; safetensors.torch.load_model(slim, "{path}")'
    return tables.load_hint(str(path), bool(result.pruned.scopes) or result.pruned.keeps_class)


def _tested(trainer: Trainer, result: MethodResult) -> dict[str, float | None]:
    """Accuracies on the test samples, which nothing else looks at."""
    if trainer.data.test is None:
        return {"dense": None, "slim": None}
    dense = trainer.test(result.dense) if result.dense_accuracy is not None else None
    return {"dense": dense, "slim": trainer.test(result.model)}


def _best(result: MethodResult) -> float | None:
    return next((row.best for row in reversed(result.rounds) if row.best is not None), None)


def _data(recipe: Recipe, result: MethodResult, tested: Mapping[str, float | None]) -> dict[str, Any]:
    report = result.pruned.report
    return {
        "method": recipe.method.name,
        "source": recipe.model.source,
        "inputs": result.pruned.inputs.describe(),
        "dense": tables.cost_data(report.before)
        | {"accuracy": {"validation": result.dense_accuracy, "validation_best_epoch": None, "test": tested["dense"]}},
        "slim": tables.cost_data(report.after)
        | {"accuracy": {"validation": result.accuracy, "validation_best_epoch": _best(result), "test": tested["slim"]}},
        "widths": report.widths,
        "verification": tables.verification_data(report.verification),
        "rounds": [asdict(row) for row in result.rounds],
    }


def _comparison(recipe: Recipe, result: MethodResult, tested: Mapping[str, float | None]) -> Any:
    """The costs of both models, and their accuracies."""
    report = result.pruned.report
    table = tables.before_after(report.before, report.after, None, result.pruned.inputs.describe())
    rows = [
        ("accuracy on validation data", result.dense_accuracy, result.accuracy),
        ("  of the best epoch", None, _best(result)),
        ("accuracy on test data", tested["dense"], tested["slim"]),
    ]
    for label, old, new in rows:
        if new is not None:
            change = f"{100 * (new - old):+.2f} points" if old is not None else "-"
            table.add_row(label, *("-" if value is None else f"{value:.2%}" for value in (old, new)), change)
    return table
