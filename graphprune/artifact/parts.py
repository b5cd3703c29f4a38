"""Pruned parts of a model in an artifact: their joint graph, where each of them belongs, and the weights around them.

A model that does not trace as a whole runs code of its own around its pruned parts, and a file that runs no code cannot hold
that. The file holds all else, so that the original's code and the file together are the slim model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import fx, nn

from graphprune.artifact.values import check_name
from graphprune.errors import ArtifactError
from graphprune.ir.program import Scope
from graphprune.ir.twins import named_tensors, twin

_KEY: Final = "scopes"
_SCOPES: Final = TypeAdapter(tuple[Scope, ...])


def describe_parts(scopes: Sequence[Scope]) -> dict[str, str]:
    """Where the parts belong, as an entry of an artifact's provenance; none for a whole model."""
    return {_KEY: _SCOPES.dump_json(tuple(scopes)).decode()} if scopes else {}


def parts_in(provenance: Mapping[str, str]) -> tuple[Scope, ...]:
    """Where the parts of an artifact belong, from its provenance; empty for a whole model. Raises ArtifactError."""
    try:
        scopes = _SCOPES.validate_json(provenance.get(_KEY, "[]"))
        for name in (name for scope in scopes for pair in scope.arguments for name in pair if name):
            check_name(name, "the argument")  # it will stand in generated source
    except (ValidationError, ArtifactError) as error:
        raise ArtifactError(
            "The artifact's list of pruned parts cannot be read. Get an undamaged copy or write it again."
        ) from error
    return scopes


def with_weights_of(model: nn.Module, graph: fx.GraphModule) -> fx.GraphModule:
    """The graph over a tree that also has the other tensors of the model's state, under their names. Both stay as they are."""
    whole = twin(graph, lambda tensor: tensor)
    known = named_tensors(whole)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in known and isinstance(tensor, torch.Tensor):
            path, _, leaf = name.rpartition(".")
            owner = _plain_module(whole, path)
            store = owner._parameters if isinstance(tensor, nn.Parameter) else owner._buffers
            store[leaf] = cast(nn.Parameter, tensor)
    return cast(fx.GraphModule, whole)


def _plain_module(root: nn.Module, path: str) -> nn.Module:
    for name in filter(None, path.split(".")):
        root = root._modules.setdefault(name, nn.Module()) or nn.Module()
    return root
