"""A copy of a model, of its own class, whose layers and tensors are those of a slim graph."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn

from graphprune.errors import RewriteError, first_line
from graphprune.ir.twins import modules_by_path, named_tensors


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
