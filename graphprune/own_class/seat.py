"""A copy of a model, of its own class, whose layers and tensors are those of a slim graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from torch import fx, nn

from graphprune.errors import CaptureError, RewriteError, first_line
from graphprune.ir.program import Inputs
from graphprune.ir.twins import modules_by_path, named_tensors
from graphprune.own_class.calls import first_difference
from graphprune.result import PruneResult

_KEY: Final = "class"


def seated(model: nn.Module, slim: fx.GraphModule) -> nn.Module:
    """A deep copy of the model in which the layers and tensors of the slim graph, shared with it, stand for their namesakes.

    What the graph does not use is copied as it is. Raises RewriteError where the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    small, modules = named_tensors(slim), modules_by_path(model)
    for name, tensor in named_tensors(model).items():
        if name in small:
            memo[id(tensor)] = small[name]
    for path in {str(node.target) for node in slim.graph.nodes if node.op == "call_module"}:
        memo[id(modules[path])] = slim.get_submodule(path)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise RewriteError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {first_line(error)}), and a slim model of its class "
            "is a copy of it. Leave out keep_class."
        ) from error


def in_own_class(result: PruneResult, model: nn.Module, inputs: Inputs) -> PruneResult:
    """The result with a model of the original's class. Raises RewriteError unless its own code runs what the slim graph runs.

    inputs: example inputs of the model.
    """
    own = seated(model, result.graph)
    try:
        difference = first_difference(own, inputs, result.graph, result.inputs, result.scopes)
    except CaptureError as error:
        difference = first_line(error)
    if difference:
        raise RewriteError(
            f"The code of {type(model).__name__} cannot follow this plan: {difference.rstrip('.')}. "
            "Leave out keep_class, or have `prune` choose with it."
        )
    return replace(result, model=own, keeps_class=True)


def describe_class(result: PruneResult) -> dict[str, str]:
    """The class of a model that keeps its own, as an entry of an artifact's provenance; none for any other."""
    return {_KEY: type(result.model).__name__} if result.keeps_class else {}


def class_in(provenance: Mapping[str, str]) -> str:
    """The name of the class that the model in an artifact keeps; empty for a graph."""
    return str(provenance.get(_KEY, ""))
