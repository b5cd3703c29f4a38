"""The GraphModule that graphprune makes: an fx.GraphModule whose copies keep modes and the persistence of buffers."""

from __future__ import annotations

from typing import Any, cast

from torch import fx, nn

from graphprune.twins import restore_modes


class GraphModule(fx.GraphModule):
    """As ``fx.GraphModule``. torch up to 2.11 makes every buffer of a deep copy persistent, which changes its state_dict."""

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        """A deep copy, with the train or eval mode of every module and the persistence of every buffer."""
        result = cast(GraphModule, super().__deepcopy__(memo))
        restore_modes(result, self)
        return result


def adopt(root: nn.Module, graph: fx.Graph, class_name: str) -> GraphModule:
    """A GraphModule that takes over a module tree as it is; fx's constructor would build the hierarchy anew."""
    result = GraphModule(nn.Module(), fx.Graph(), class_name)
    for store in ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
        result.__dict__[store] = root.__dict__[store]
    result.graph = graph
    return result
