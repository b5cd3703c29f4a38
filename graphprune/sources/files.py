"""Models read from files: graphprune artifacts, and pickled modules."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.sources.source import Source


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
