"""The rewriter: carries a plan out. It makes a new, really smaller GraphModule and decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import fx

from graphprune.channels.groups import Groups, Kept
from graphprune.channels.propagate import Trace, varies
from graphprune.errors import RewriteError
from graphprune.ir.graph_module import adopt
from graphprune.ir.program import Program, Record
from graphprune.ir.twins import modules_by_path, named_tensors, twin
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.rewrite import calls, modules, recurrent  # noqa: F401  (register the resizers)
from graphprune.passes.rewrite.copies import copy_graph
from graphprune.passes.rewrite.shuffles import rewrite_shuffles
from graphprune.passes.rewrite.site import NodeSite, Provenance, Rewriting
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass
from graphprune.plans.plan import kept_units
from graphprune.resizers import call_resizer, module_resizer
from graphprune.scratch import Scratch

_CALLS: Final = ("call_module", "call_function", "call_method")
_BLOCK: Final = 2**22  # elements that are cut along all axes at a time: in the cache, this takes a third of the time
_FEW: Final = 2**14  # elements that are cut as fast one axis after the other
_CHANNELS_LAST: Final[Mapping[int, torch.memory_format]] = {4: torch.channels_last, 5: torch.channels_last_3d}


def rewrite(module: fx.GraphModule, groups: Groups, kept: Kept) -> fx.GraphModule:
    """A new GraphModule with only the kept units.

    Parameters and buffers are sliced copies (``requires_grad``, dtype, device, memory format and tying are kept); leaf
    modules are copies with new attributes; names, hierarchy, ``state_dict`` keys and modes are those of ``module``,
    which shares nothing with the result and is not changed. Raises RewriteError naming the node that cannot follow.
    """
    with torch.no_grad():
        root = twin(module, _slicer(module, kept))
    graph, copied = copy_graph(module.graph)
    _drop_checks_of_widths(graph, copied, groups.trace)
    rewriting = Rewriting(module, groups.trace, kept, {new: old.name for old, new in copied.items()})
    idle = rewrite_shuffles(rewriting, groups.trace.shuffles, copied)
    tree = modules_by_path(root)
    for new in [node for node in rewriting.origin if node not in rewriting.finished]:
        _resize(new, tree, rewriting)
    for copy in idle:
        copy.replace_all_uses_with(copy.all_input_nodes[0])
        graph.erase_node(copy)
    for name, index in rewriting.buffers.items():
        root.register_buffer(name, index, persistent=False)
    for node in reversed(rewriting.sizes):
        if not node.users:  # size arithmetic that nothing reads any more
            graph.erase_node(node)
    return adopt(root, graph, type(module).__name__)


def _drop_checks_of_widths(graph: fx.Graph, copied: dict[fx.Node, fx.Node], trace: Trace) -> None:
    """Take out checks of nothing but channel counts: they held for the original, and say nothing of these inputs."""
    for old, new in list(copied.items()):
        if new.target is torch._assert and isinstance(condition := old.args[0], fx.Node) and not varies(condition, trace.values):
            graph.erase_node(new)
            del copied[old]


def _slicer(module: fx.GraphModule, kept: Kept) -> Callable[[torch.Tensor], torch.Tensor]:
    tensors = named_tensors(module)
    cuts = {id(tensors[name]): axes for name, axes in kept.cuts.items()}
    indices: dict[tuple[int, torch.device], torch.Tensor] = {}
    scratch = Scratch(_BLOCK)

    def index_of(vector: int, device: torch.device) -> torch.Tensor:
        """The kept indices; most vectors are those of many tensors."""
        index = indices.get((vector, device))
        if index is None:
            index = indices[vector, device] = torch.from_numpy(np.flatnonzero(kept.vector(vector))).to(device)
        return index

    def sliced(tensor: torch.Tensor) -> torch.Tensor:
        result, wanted = tensor, _memory_format(tensor)
        places = [(axis, index_of(vector, tensor.device)) for axis, vector in cuts.get(id(tensor), ())]
        if len(places) > 1 and tensor.numel() > _FEW:
            result = _by_blocks(tensor, places, scratch)
        else:
            for axis, index in places:
                result = result.index_select(axis, index)
        result = result.clone(memory_format=wanted) if result is tensor else result.contiguous(memory_format=wanted)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(result, requires_grad=tensor.requires_grad)
        return result

    return sliced


def _by_blocks(tensor: torch.Tensor, places: list[tuple[int, torch.Tensor]], scratch: Scratch) -> torch.Tensor:
    """What is at these places of two axes or more of a tensor; no half of it, cut along one of them, is written to fresh memory."""
    (axis, index), *others, (last, kept) = places
    sizes = [*tensor.shape]
    for cut, chosen in places:
        sizes[cut] = len(chosen)
    result = tensor.new_empty(sizes)
    slice_size = tensor.numel() // tensor.shape[axis]
    step = max(1, _BLOCK // slice_size)
    for some, part in zip(index.split(step), result.split(step, axis), strict=True):
        shape = [*tensor.shape[:axis], len(some), *tensor.shape[axis + 1 :]]
        block = torch.index_select(tensor, axis, some, out=scratch.of(shape, tensor))
        for other, chosen in others:
            block = block.index_select(other, chosen)
        torch.index_select(block, last, kept, out=part)
    return result


def _memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """Channels-last where the tensor is laid out so, else contiguous."""
    if tensor.is_contiguous() or tensor.dim() not in _CHANNELS_LAST:
        return torch.contiguous_format
    wanted = _CHANNELS_LAST[tensor.dim()]
    return wanted if tensor.is_contiguous(memory_format=wanted) else torch.contiguous_format


def _resize(node: fx.Node, tree: Mapping[str, torch.nn.Module], rewriting: Rewriting) -> None:
    if node.op not in _CALLS:
        return
    site = NodeSite(rewriting, node)
    before = (node.args, node.kwargs)
    try:
        if node.op == "call_module":
            leaf = tree[str(node.target)]
            resize_leaf = module_resizer(leaf)
            if resize_leaf is not None:
                resize_leaf(leaf, site)
        else:
            resize = call_resizer(node.target)
            if resize is not None:
                resize(site)
        site.pin()
        if site.node is not node or (site.node.args, site.node.kwargs) != before:
            same = before if site.node is node else None
            site.node.meta["graphprune"] = Provenance("rewrite", rewriting.origin[site.node], same)
    except Exception as error:
        place = node.meta.get("source", "")
        raise RewriteError(
            f"{node.op.removeprefix('call_')} {node.target} ({node.name}{f' at {place}' if place else ''}) cannot follow the new "
            f"widths: {error}. Exclude the layers around it (exclude=...)."
        ) from error


@dataclass(frozen=True)
class RewritePass(Pass):
    """Carry out the program's plan: the module becomes the smaller one, the original is kept for verification."""

    name: ClassVar[str] = "rewrite"
    requires: ClassVar[tuple[Any, ...]] = (ChannelGroups, ModelCost)
    needs: ClassVar[tuple[str, ...]] = ("plan",)
    provides: ClassVar[tuple[str, ...]] = ("original",)
    streams: ClassVar[bool] = True

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Rewrite; raises RewriteError where a node cannot follow, PlanError where the plan does not fit."""
        assert program.plan is not None
        groups, cost = analyses.get(ChannelGroups), analyses.get(ModelCost)
        if groups.remembered(program.plan) is None:
            program.plan.check_fits(program.module)
        kept = kept_units(program.plan, groups)
        slim = rewrite(program.module, groups, kept)
        left = kept.widths()
        widths = {g.name: (g.size, width) for g, width in zip(groups.prunable, left.tolist(), strict=True)}
        record = Record(cost.costs(groups.widths), cost.costs(left), groups, widths)
        weights = None if program.weights is None else program.weights.sliced(slim, program.plan.kept)
        return program.with_(module=slim, weights=weights, original=program.module, original_weights=program.weights, record=record)
