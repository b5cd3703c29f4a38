"""The plan in a file, whatever holds it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from graphprune.artifact import read_artifact
from graphprune.errors import PlanError, first_line
from graphprune.files import check_archive
from graphprune.plans.plan import Plan


def read_plan(path: str | Path) -> Plan:
    """The plan in a file: the JSON of one, or a slim model with its plan (.safetensors, .pt2).

    Raises PlanError or ArtifactError where it has none.
    """
    file = Path(path)
    readers = {".safetensors": _of_artifact, ".pt2": _of_program}
    if file.suffix not in readers:
        return Plan.load(file)
    text = readers[file.suffix](file)
    if text is None:
        raise PlanError(f"{path} holds no plan. Give the plan that made it, or a slim model that graphprune wrote.")
    return Plan.parse(text, f"The plan in {path}")


def _of_artifact(path: Path) -> str | None:
    return read_artifact(path).plan


def _of_program(path: Path) -> str | None:
    if not path.is_file():
        raise PlanError(f"Cannot read the plan in {path}: it is no file. Check the path.")
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("extra/plan.json")), None)
            return None if name is None else archive.read(name).decode()
    except Exception as error:  # zipfile and zlib raise whatever the damaged part leads to
        raise PlanError(f"Cannot read the plan in {path}: {first_line(error)}. Get an undamaged copy.") from error
