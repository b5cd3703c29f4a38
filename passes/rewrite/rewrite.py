"""The rewriter: carries a plan out. It makes a new, really smaller GraphModule and decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from graphprune.analysis_manager import AnalysisView
from graphprune.errors import RewriteError
from graphprune.graph_module import adopt
from graphprune.groups import Groups, Kept
from graphprune.pass_base import Pass
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.rewrite import calls, modules  # noqa: F401  (register the resizers)
from graphprune.passes.rewrite.shuffles import rewrite_shuffles
from graphprune.passes.rewrite.site import NodeSite, Provenance, Rewriting
from graphprune.plan import kept_units
from graphprune.program import Program, Record
from graphprune.resizers import call_resizer, module_resizer
from graphprune.twins import named_tensors, twin


def rewrite(module: fx.GraphModule, groups: Groups, kept: Kept) -> fx.GraphModule:
    """A new GraphModule with only the kept units.

    Parameters and buffers are sliced copies (``requires_grad``, dtype, device, memory format and tying are kept); leaf
    modules are copies with new attributes; names, hierarchy, ``state_dict`` keys and modes are those of ``module``,
    which shares nothing with the result and is not changed. Raises RewriteError naming the node that cannot follow.
    """
    root = twin(module, _slicer(module, groups, kept))
    graph = fx.Graph(tracer_cls=module.graph._tracer_cls)
    copied: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(module.graph, copied)
    old_output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    new_output = graph.output(output, type_expr=getattr(old_output, "type", None))
    new_output.meta = dict(old_output.meta)
    rewriting = Rewriting(groups.trace, kept, {new: old.name for old, new in copied.items()})
    buffers = rewrite_shuffles(rewriting, groups.trace.shuffles, copied, module)
    for new in [node for node in graph.nodes if node in rewriting.origin and node not in rewriting.finished]:
        _resize(new, root, rewriting)
    for name, index in buffers.items():
        root.register_buffer(name, index, persistent=False)
    _drop_unread_sizes(graph, rewriting)
    return adopt(root, graph, type(module).__name__)


def _slicer(module: fx.GraphModule, groups: Groups, kept: Kept) -> Any:
    names = {id(tensor): name for name, tensor in reversed(named_tensors(module).items())}
    parameters = groups.trace.parameters

    def sliced(tensor: torch.Tensor) -> torch.Tensor:
        value = parameters.get(names.get(id(tensor), ""))
        result = tensor.detach()
        for axis in range(tensor.dim()):
            mask = None if value is None else kept.axis(value, axis)
            if mask is not None and not mask.all():
                index = torch.from_numpy(np.flatnonzero(mask)).to(tensor.device)
                result = result.index_select(axis, index)
        result = _in_format_of(tensor, result)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(result, requires_grad=tensor.requires_grad)
        return result

    return sliced


def _in_format_of(tensor: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """A copy of its own, channels-last where the original is."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(tensor.dim())
    if wanted is not None and tensor.is_contiguous(memory_format=wanted) and not tensor.is_contiguous():
        copy = result.contiguous(memory_format=wanted)
    else:
        copy = result.contiguous()
    return copy.clone() if copy.data_ptr() == tensor.data_ptr() else copy


def _resize(node: fx.Node, root: torch.nn.Module, rewriting: Rewriting) -> None:
    site = NodeSite(rewriting, node)
    try:
        if node.op == "call_module":
            leaf = root.get_submodule(str(node.target))
            resize_leaf = module_resizer(leaf)
            if resize_leaf is not None:
                resize_leaf(leaf, site)
        elif node.op in ("call_function", "call_method"):
            resize = call_resizer(node.target)
            before = (node.args, node.kwargs)
            if resize is not None:
                resize(site)
            site.pin()
            if site.node is not node or (site.node.args, site.node.kwargs) != before:
                site.node.meta["graphprune"] = Provenance("rewrite", rewriting.origin[site.node])
    except Exception as error:
        place = node.meta.get("source", "")
        raise RewriteError(
            f"{node.op.removeprefix('call_')} {node.target} ({node.name}{f' at {place}' if place else ''}) cannot follow the new "
            f"widths: {error}. Exclude the layers around it (exclude=...)."
        ) from error


def _drop_unread_sizes(graph: fx.Graph, rewriting: Rewriting) -> None:
    """Erase size arithmetic that nothing reads any more."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op not in ("call_function", "call_method") or node not in rewriting.origin:
            continue
        if all(isinstance(leaf, (int, float)) for leaf in tree_leaves(rewriting.old_value(node))):
            graph.erase_node(node)


@dataclass(frozen=True)
class RewritePass(Pass):
    """Carry out the program's plan: the module becomes the smaller one, the original is kept for verification."""

    name: ClassVar[str] = "rewrite"
    requires: ClassVar[tuple[Any, ...]] = (ChannelGroups, ModelCost)
    needs: ClassVar[tuple[str, ...]] = ("plan",)
    provides: ClassVar[tuple[str, ...]] = ("original",)

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Rewrite; raises RewriteError where a node cannot follow, PlanError where the plan does not fit."""
        assert program.plan is not None
        groups, cost = analyses.get(ChannelGroups), analyses.get(ModelCost)
        if groups.remembered(program.plan) is None:
            program.plan.check_fits(program.module)
        kept = kept_units(program.plan, groups)
        slim = rewrite(program.module, groups, kept)
        widths = {g.name: (g.size, int(kept.units[g.units].sum())) for g in groups.prunable}
        record = Record(cost.costs(groups.widths), cost.costs(kept.widths()), groups, widths)
        return program.with_(module=slim, original=program.module, record=record)
