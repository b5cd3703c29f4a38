"""Models read from files: graphprune artifacts, and pickled modules."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.sources.checkpoints import holds_weights
from graphprune.sources.source import Source

_NAME_IT = "Name the code that builds the model, and the file after it: torchvision:NAME, timm:NAME or package.module:factory"


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
    if _scripted(path):
        raise UsageError(
            f"{path} is a scripted (TorchScript) model, which has no Python to trace. Save the model before it is scripted."
        )
    if not trust_pickle:
        if holds_weights(path):
            raise UsageError(f"{path} holds weights and no model. {_NAME_IT} --weights {path}.")
        raise UsageError(
            f"{path} as a model would be unpickled, and a pickle can run any code when it is loaded. Use --trust-pickle if you "
            "trust who made it, or save model.state_dict() for --weights."
        )
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling runs arbitrary code
        raise UsageError(
            f"{path} cannot be unpickled ({type(error).__name__}): it is damaged, or the code of its classes cannot be imported."
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{path} holds no module but something of class {type(model).__name__}. {_NAME_IT} --weights {path}.")
    return Source(model, str(path))


def _scripted(path: Path) -> bool:
    """Whether a file is of torch.jit.save: its archive has constants of code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
