"""How to make the same again: commands, recipe, pipeline and plan."""

from __future__ import annotations

import shlex
from typing import Any

import torch

from graphprune.errors import GraphpruneError
from graphprune.ir.program import Inputs
from graphprune.pipeline.text import parse_pipeline
from graphprune.plans.plan import Plan
from graphprune.reporting.facts import Missing, Section, Table, Text
from graphprune.reporting.material import Material


def repeat(material: Material) -> Section:
    """Commands to run, and the files that they need as text."""
    texts = [Text("Commands", "\n".join(commands))] if (commands := _commands(material)) else []
    run, plan = material.run, material.plan
    if run is not None and run.recipe_text:
        texts.append(Text("recipe.toml", run.recipe_text, "recipe.toml", folded=True))
    if plan is not None:
        texts += [Text("Pipeline", plan.pipeline)] if plan.pipeline else []
        texts.append(Text("plan.json", plan.model_dump_json(), "plan.json", folded=True))
    missing = []
    if plan is None and len(material.runs) < 2:
        missing.append(
            Missing("There is no plan.", "A run leaves plan.json when it has finished; `prune --plan plan.json` writes one.")
        )
    if run is not None and not run.recipe_text:
        missing.append(
            Missing("The run has no recipe.toml, as it was started from Python.", "Start it with `graphprune run` to have one.")
        )
    if len(material.runs) > 1 and not texts:
        missing.append(
            Missing("The runs have no recipe.toml, as they were started from Python.", "Start them with `graphprune run`.")
        )
    facts = [] if run is None or not run.about else [Table("The run's journal says", ("what", "value"), _about(run.about))]
    return Section("again", "Reproduce", "", tables=facts, texts=texts, missing=missing)


def _about(about: object) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in about.items()] if isinstance(about, dict) else []


def _commands(material: Material) -> list[str]:
    recipes = [run.folder / "recipe.toml" for run in material.runs if run.recipe_text]
    found = [shlex.join(["graphprune", "run", str(path)]) for path in recipes]
    named, plan = material.named, material.plan
    if plan is None or not named:
        return found
    wanted = material.request
    options = [] if wanted.weights is None else ["--weights", str(wanted.weights)]
    shape = wanted.shape or (_input(material.original.inputs) if material.original is not None else None)
    options += [] if shape is None else ["--input", shape]
    if plan.pipeline and material.run is None:
        data = ["--calibrate", wanted.calibrate or "DATA"] if wanted.calibrate or _needs_data(plan) else []
        found.append(
            shlex.join(["graphprune", "prune", named, *options, *data, "--pipeline", plan.pipeline, "-o", "slim.safetensors"])
        )
    path = str(material.run.folder / "plan.json") if material.run is not None else "plan.json"
    found.append(shlex.join(["graphprune", "apply", named, path, *options, "-o", "slim.safetensors"]))
    return found


def _needs_data(plan: Plan) -> bool:
    """Whether a plan was made with calibration data, by its criterion or by a pass of its pipeline."""
    if any("calibration" in scores for scores in plan.scores.values()):
        return True
    try:
        return any("calibration" in step.needs for step in parse_pipeline(plan.pipeline))
    except GraphpruneError:  # of another version, or with passes of an extension that is not here
        return False


def _input(inputs: Inputs) -> str | None:
    """Example inputs as ``--input`` takes them; None where they hold what it has no word for."""
    parts = [_argument(item) for item in inputs.args]
    parts += [f"{name}={_argument(item)}" for name, item in inputs.kwargs.items()]
    return None if any("?" in part for part in parts) else ",".join(parts)


def _argument(item: Any) -> str:
    if isinstance(item, torch.Tensor):
        dtype = str(item.dtype).removeprefix("torch.")
        return "x".join(map(str, item.shape)) + ("" if dtype == "float32" else f":{dtype}") if item.ndim else "?"
    if isinstance(item, list):
        return f"[{','.join(map(_argument, item))}]"
    return str(item) if item is None or isinstance(item, bool) else "?"
