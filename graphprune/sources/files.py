"""Models read from files: exported programs, graphprune artifacts, and pickled modules."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.program import Inputs
from graphprune.quiet import quiet
from graphprune.sources.source import Source


def from_exported(path: Path, trust_pickle: bool) -> Source:
    """A ``.pt2`` file of ``torch.export.save``, with the example inputs that it was exported with.

    torch falls back to full unpickling for what its safe loader refuses, so a file with such parts is refused here
    unless ``trust_pickle``. That closes the easy way in, no more: ``torch.export.load`` was not made for hostile files,
    where the safetensors artifact was. Raises UsageError for such parts, and when torch cannot read the file.
    """
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is no exported program, or is truncated. Write it again with torch.export.save.")
    if not trust_pickle:
        _refuse_code(path)
    try:
        with quiet():
            program = torch.export.load(path)
            module = program.module()  # with its checks of sizes in Python, which capture takes over
    except Exception as error:  # torch's readers raise whatever the damaged part leads to
        raise UsageError(
            f"{path} cannot be read as an exported program: it is damaged, truncated, or made by another version of torch."
        ) from error
    args, kwargs = program.example_inputs or ((), {})
    return Source(module, str(path), None, Inputs(tuple(args), dict(kwargs)) if args or kwargs else None)


def from_artifact(path: Path, trust_pickle: bool) -> Source:
    """A slim model written by graphprune; it needs neither the model's code nor pickle, so ``trust_pickle`` plays no part.

    Raises UsageError for a file that holds parts of a model, which are none without its code.
    """
    from graphprune.artifact import read_artifact
    from graphprune.artifact.parts import parts_in

    artifact = read_artifact(path)
    if parts_in(artifact.provenance):
        raise UsageError(
            f"{path} holds pruned parts of {artifact.provenance.get('source') or 'a model'}, and no code to run them. "
            "Put them back with graphprune.load(path, model), and prune that."
        )
    return Source(artifact.module, str(path), None, artifact.inputs)


def from_pickle(path: Path, trust_pickle: bool) -> Source:
    """A whole module saved with ``torch.save(model, path)``. Raises UsageError unless ``trust_pickle``, for it runs code."""
    if not trust_pickle:
        raise UsageError(
            f"{path} as a model would be unpickled, and a pickle can run any code when it is loaded. "
            f"Use package.module:factory --weights {path} for a file of weights, or --trust-pickle if you trust who made it."
        )
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling runs arbitrary code
        raise UsageError(
            f"{path} cannot be unpickled ({type(error).__name__}): it is damaged, or the code of its classes cannot be imported."
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{path} holds a {type(model).__name__}, not a whole module. Use package.module:factory --weights {path}.")
    return Source(model, str(path))


def _refuse_code(path: Path) -> None:
    """Refuse an archive with a part that only the full unpickler can read."""
    with zipfile.ZipFile(path) as archive:
        for name in _pickled_parts(archive):
            try:
                torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise UsageError(
                    f"{path} holds a pickle ({name}) that can run any code when it is loaded. "
                    "Export the program without custom objects, or use --trust-pickle if you trust who made it."
                ) from error
            except Exception as error:  # a damaged part
                raise UsageError(
                    f"{path} is damaged: its part {name} cannot be read. Write it again with torch.export.save."
                ) from error


def _pickled_parts(archive: zipfile.ZipFile) -> list[str]:
    """Members that torch unpickles: ``.pt`` files, and payloads that a config marks as pickled."""
    names = archive.namelist()
    marked: set[str] = set()
    for name in names:
        if name.endswith("_config.json"):
            folder = name.rpartition("/")[0]
            marked |= {f"{folder}/{payload}" for payload in _marked(archive.read(name))}
    return [name for name in names if name in marked or name.endswith(".pt")]


def _marked(config: bytes) -> Iterator[str]:
    entries: Any = json.loads(config).get("config", {})
    for entry in entries.values():
        if entry.get("use_pickle"):
            yield entry["path_name"]
