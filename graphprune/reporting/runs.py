"""Folders of ``graphprune run``, finished or not, read without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from graphprune.errors import RunError, first_problem
from graphprune.files import read_text
from graphprune.plans.plan import Plan
from graphprune.recipe import Draft
from graphprune.runs.history import Round

_ROUND: Final = TypeAdapter(Round)
_MARKS: Final = ("rounds.jsonl", "journal.jsonl", "result.json")
_Found = TypeVar("_Found")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Accuracies(_Part):
    """Shares of right answers; None where nobody asked."""

    validation: float | None = None
    validation_best_epoch: float | None = None
    test: float | None = None


class Figures(_Part):
    """Costs and accuracies of one model of a run. Costs are at the example inputs, sizes in bytes."""

    parameters: int
    macs: int
    weight_bytes: int
    activation_bytes: int
    accuracy: Accuracies = Accuracies()


class Result(_Part):
    """``result.json``, as far as a report reads it. widths: units of every prunable group, before and after."""

    method: str
    source: str
    inputs: str
    dense: Figures
    slim: Figures
    widths: dict[str, tuple[int, int]]
    verification: dict[str, Any] | None = None


@dataclass(frozen=True)
class Run:
    """A run as its folder tells of it. What the folder lacks is None or empty: a run may have been stopped, or still go on.

    recipe: the sections of its recipe. about: what its journal says it is: method, options, seed.
    """

    name: str
    folder: Path
    rounds: tuple[Round, ...] = ()
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe_text: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    result: Result | None = None
    plan: Plan | None = None
    slim: Path | None = None

    @property
    def method(self) -> str:
        """The method's name, or "unknown"."""
        if self.result is not None:
            return self.result.method
        return str(self.recipe.get("method", {}).get("name") or self.about.get("method") or "unknown")

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return self.result is not None or any(row.status == "final" for row in self.rounds)

    @property
    def last(self) -> Round | None:
        """The last round that stayed."""
        return next((row for row in reversed(self.rounds) if row.status != "rolled back"), None)

    @property
    def dense_accuracy(self) -> float | None:
        """That of the trained dense model. None where there was none: the run cuts a model that it is still training."""
        return next((row.accuracy for row in self.rounds if row.status == "dense"), None)

    @property
    def options(self) -> Mapping[str, Any]:
        """The method's options, of the recipe or else of the journal."""
        if "method" in self.recipe:
            return self.recipe["method"]
        known = _json(str(self.about.get("options", "{}")), self.folder / "journal.jsonl")
        return known if isinstance(known, dict) else {}


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run."""
    return path.is_dir() and any((path / name).is_file() for name in _MARKS)


def runs_in(path: Path) -> tuple[Run, ...]:
    """The run of a folder, or those of the folders in it by name; empty where there are none. Raises as :func:`read_run`."""
    if is_run(path):
        return (read_run(path),)
    return tuple(read_run(folder) for folder in sorted(path.iterdir()) if is_run(folder))


def read_run(folder: Path) -> Run:
    """Read a run's folder. Raises RunError naming the file that is damaged, UsageError or PlanError for its recipe or plan."""
    paths = {name: folder / name for name in (*_MARKS, "recipe.toml", "plan.json", "slim.safetensors")}
    there = {name: path for name, path in paths.items() if path.is_file()}
    journal = _lines(there["journal.jsonl"], 1) if "journal.jsonl" in there else []
    recipe = there.get("recipe.toml")
    result = there.get("result.json")
    plan = there.get("plan.json")
    return Run(
        folder.resolve().name,
        folder,
        tuple(_checked(_ROUND.validate_json, line, paths["rounds.jsonl"]) for line in _lines(there.get("rounds.jsonl"))),
        {} if recipe is None else Draft.load(recipe).chosen,
        "" if recipe is None else _text(recipe),
        next((_json(line, paths["journal.jsonl"]) for line in journal), {}),
        None if result is None else _checked(Result.model_validate_json, _text(result), result),
        None if plan is None else Plan.load(plan),
        there.get("slim.safetensors"),
    )


def _lines(path: Path | None, most: int | None = None) -> list[str]:
    """Whole lines of a file: the last one may be torn while a run goes on."""
    if path is None:
        return []
    text = _text(path)
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line][:most]


def _text(path: Path) -> str:
    return read_text(path, "file", RunError)


def _json(text: str, path: Path) -> Any:
    return _checked(json.loads, text, path)


def _checked(read: Any, text: str, path: Path) -> Any:
    try:
        return read(text)
    except ValidationError as error:
        place, problem = first_problem(error)
        raise RunError(f"{path} is damaged: {problem} at {place}. Take it from a sound copy of the run.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}. Take it from a sound copy of the run.") from error
