"""What Dynamo calls in place of its graph: the slim graph, with the slices of the model's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.compiling.lifting import Lifted
from graphprune.ir.program import Inputs
from graphprune.ir.twins import named_tensors, twin
from graphprune.plans.plan import Plan

Compiled = Callable[..., Any]


class Slice:
    """The slice of one tensor that a plan keeps: made once, and again only when the tensor has changed.

    written: whether the graph writes to it (running statistics in train mode): the tensor then gets it back after each call.
    """

    def __init__(self, plan: Plan, name: str, written: bool) -> None:
        self.cut = bool(plan.kept.get(name))
        self._plan, self._name, self._written = plan, name, written
        self._stamp: tuple[int, int, int] | None = None
        self._value = torch.empty(0)

    def of(self, tensor: Tensor) -> Tensor:
        """The slice. Where gradients are recorded it is cut anew, so that they reach the tensor."""
        if not self.cut:
            return tensor
        if tensor.requires_grad and torch.is_grad_enabled():
            return self._plan.slice(self._name, tensor)
        stamp = id(tensor), tensor._version, tensor.data_ptr()
        if stamp != self._stamp:
            with torch.no_grad():
                self._value = self._plan.slice(self._name, tensor).contiguous(memory_format=_layout(tensor))
            self._stamp = stamp
        return self._value

    def put_back(self, tensor: Tensor) -> None:
        """Write the slice into the tensor that it was cut from, if the graph has written to it."""
        if self.cut and self._written:
            kept = self._plan.kept[self._name]
            places = [torch.tensor(kept.get(axis, range(size)), device=tensor.device) for axis, size in enumerate(tensor.shape)]
            with torch.no_grad():
                tensor[torch.meshgrid(*places, indexing="ij")] = self._value
            self._stamp = id(tensor), tensor._version, tensor.data_ptr()


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@dataclass(frozen=True)
class Runtime:
    """The callable for Dynamo: takes the arguments of its graph, and returns what that returns, of the slim one.

    compiled: the slim graph as :func:`functional` makes it, compiled. slices: by the names in ``lifted``. accepts: whether the
    decision holds for these tensors. whole: what runs for others.
    """

    compiled: Compiled
    lifted: Lifted
    slices: tuple[Slice, ...]
    accepts: Callable[[Sequence[Tensor]], bool]
    whole: Compiled

    def __call__(self, *arguments: Any) -> Any:
        """Run the slim graph."""
        tensors = [arguments[place] for place in self.lifted.tensors.values()]
        if not self.accepts(tensors):
            return self.whole(*arguments)
        given = [each.of(tensor) for each, tensor in zip(self.slices, tensors, strict=True)]
        result = self.compiled(*given, *(arguments[place] for place in self.lifted.given))
        for each, tensor in zip(self.slices, tensors, strict=True):
            each.put_back(tensor)
        return result


def functional(slim: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """The slim graph as a function of its tensors, in the order of ``names``, and then of its inputs; as Dynamo hands graphs on."""
    graph = fx.Graph()
    stems = [f"tensor_{name.replace('.', '_')}" for name in names]
    tensors = {name: graph.placeholder(stem) for name, stem in zip(names, stems, strict=True)}
    old = list(slim.graph.nodes)
    copies = {node: graph.node_copy(node) for node in old if node.op == "placeholder"}
    copies |= {node: tensors[str(node.target)] for node in old if node.op == "get_attr" and node.target in tensors}
    graph.output(graph.graph_copy(slim.graph, copies))
    for node in graph.nodes:
        node.meta.clear()  # it is of the capture, at other sizes
    return fx.GraphModule(slim, graph, "SlimGraph")


def written_buffers(module: fx.GraphModule, inputs: Inputs) -> frozenset[str]:
    """Names of the tensors that one run of the graph changes. Nothing of the module or the inputs is modified."""
    copy: Any = twin(module, lambda tensor: tensor.detach().clone())
    before = {name: tensor.clone() for name, tensor in named_tensors(copy).items()}
    given = inputs.map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
    with torch.no_grad(), torch.random.fork_rng():
        fx.Interpreter(copy).run(*given.args)
    return frozenset(name for name, tensor in named_tensors(copy).items() if not torch.equal(tensor, before[name]))
