"""The GraphModule that graphprune makes: its code is generated when first needed, its copies keep modes and persistence."""

from __future__ import annotations

from typing import Any, cast

from torch import fx, nn

from graphprune.twins import restore_modes

_COMPILED = ("forward", "_code", "_lineno_map", "_prologue_start")  # what recompile() makes


class _OnDemand:
    """An attribute of one graph module that compiling makes: reading it compiles, which puts the real one in its place.

    The forward is also read from the class, of which each graph module has its own: so symbolic tracing does.
    """

    def __init__(self, name: str, module: fx.GraphModule) -> None:
        self.name = name
        self.module = module

    def __get__(self, instance: fx.GraphModule | None, owner: type) -> Any:
        if instance is None and self.name != "forward":
            return self
        (self.module if instance is None else instance).recompile()
        return getattr(owner if instance is None else instance, self.name)


class _Nothing(fx.Graph):
    """The graph of a module that is given its own in a moment: no code is generated for it."""


class GraphModule(fx.GraphModule):
    """As ``fx.GraphModule``. torch up to 2.11 makes every buffer of a deep copy persistent, which changes its state_dict."""

    def recompile(self) -> Any:
        """Generate the Python code of the graph."""
        return None if isinstance(self._graph, _Nothing) else super().recompile()

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        """A deep copy, with the train or eval mode of every module and the persistence of every buffer."""
        result = cast(GraphModule, super().__deepcopy__(memo))
        restore_modes(result, self)
        return result

    def __reduce__(self) -> Any:
        """Pickled as code, which must be there before fx takes the attributes."""
        self.recompile()
        return super().__reduce__()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """``torch.compile`` the module in place; Dynamo does not trace fx's own code generation."""
        self.recompile()
        super().compile(*args, **kwargs)


def adopt(root: nn.Module, graph: fx.Graph, class_name: str) -> GraphModule:
    """A GraphModule that takes over a module tree as it is; fx's constructor would build the hierarchy anew.

    Its Python code is generated when it is first called, read or pickled: a graph that is only analysed never needs any.
    """
    result = GraphModule(nn.Module(), _Nothing(), class_name)
    for store in ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
        result.__dict__[store] = root.__dict__[store]
    result.__dict__["_graph"] = graph
    graph.owning_module = result
    for name in _COMPILED:
        result.__dict__.pop(name, None)
        setattr(type(result), name, _OnDemand(name, result))
    return result
