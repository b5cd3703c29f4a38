"""What ``inspect`` prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from graphprune.channels.groups import Group
from graphprune.channels.labels import Reason
from graphprune.cli import tables
from graphprune.cli.explaining import place
from graphprune.cli.survey import KERNEL_EXTENT, Survey
from graphprune.cli.trees import group_tree


def overview(survey: Survey, groups: Sequence[Group], verbose: bool) -> Iterator[RenderableType]:
    """The capture, the groups, and what is frozen. verbose: as flat tables, every group in a row of its own."""
    yield _captured(survey)
    if survey.program.opaque:
        yield tables.notes_table("Not traced into, so left as they are", survey.program.opaque, "module", "reason")
    if survey.program.eval_only:
        yield tables.eval_only_table(survey.program.eval_only)
    if survey.missing:
        rules = {name: tables.listed(nodes) for name, nodes in survey.missing.items()}
        yield tables.notes_table("Operators without a rule, whose inputs are frozen", rules, "operator", "called by")
    prunable = [g for g in groups if g.reason is None]
    if verbose:
        yield from _flat(survey, groups)
    elif groups:
        yield Text()
        yield group_tree(survey, groups)
    yield from _statistics(prunable)
    extents = sum(g.reason is not None and g.reason.text == KERNEL_EXTENT for g in groups)
    if extents and not verbose:
        yield Text(f"And {extents} extents of convolution kernels, which are never pruned (-v lists them).")
    yield Text(
        f"In reach of pruning: {survey.prunable_parameters:.1%} of the parameters and {survey.prunable_macs:.1%} of the MACs, "
        f"in {len(survey.groups.prunable)} group{'' if len(survey.groups.prunable) == 1 else 's'}."
    )


def _captured(survey: Survey) -> Table:
    table = Table.grid(padding=(0, 2))
    graph = survey.program.module.graph
    rows = {
        "model": f"{type(survey.job.source.model).__name__ or 'model'} from {survey.program.source}",
        "input": survey.job.inputs.describe(),
        "traced": _traced(survey),
        **({"in the way": survey.program.untraced} if survey.program.untraced else {}),
        "graph": f"{len(graph.nodes)} nodes, {survey.groups.trace.operators} operator calls",
        "parameters": _parameters(survey),
        "MACs": f"{tables.count(survey.costs.macs)} ({tables.count(survey.costs.flops)} FLOPs)",
        "weights": tables.size(survey.costs.weight_bytes),
        "activations": f"{tables.size(survey.costs.activation_bytes)} at the peak",
    }
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def _traced(survey: Survey) -> str:
    scopes, opaque = survey.program.scopes, len(survey.program.opaque)
    how = "as a whole"
    if scopes:
        how = f"{'' if survey.job.scopes else 'not as a whole; '}in scopes: {', '.join(scope.path for scope in scopes)}"
    return f"{how}, but for {opaque} module{'s' if opaque > 1 else ''} (below)" if opaque else how


def _parameters(survey: Survey) -> str:
    if not survey.outside:
        return tables.count(survey.costs.parameters)
    where = "outside the scopes" if survey.program.scopes else "not used by the forward"
    return f"{tables.count(survey.costs.parameters)}, and {tables.count(survey.outside)} {where}"


def _prunable_table(survey: Survey, groups: Sequence[Group]) -> Table:
    headings = ("group", "#units", "#channels\nper unit", "#members", "#share of\nparameters")
    table = tables.plain_table(*headings, title="Prunable groups")
    for group in groups:
        share = f"{survey.parameter_shares[group.index]:.1%}"
        table.add_row(tables.folded(group.name), str(group.size), str(group.channels_per_unit), str(len(group.members)), share)
    return table


def _statistics(groups: Sequence[Group]) -> Iterator[Text]:
    """What is computed over channels that can go, a line for each kind."""
    together: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        if group.statistics is not None:
            together[group.statistics.text].append(group.name)
    for text, names in together.items():
        yield Text(f"{text[:1].upper()}{text[1:]}, taken over the kept ones once pruned, in: {tables.listed(names)}.")


def _flat(survey: Survey, groups: Sequence[Group]) -> Iterator[Table]:
    prunable = [group for group in groups if group.reason is None]
    if prunable:
        yield _prunable_table(survey, prunable)
    if len(prunable) < len(groups):
        table = tables.plain_table("group", "#units", "reason", "where", title="Frozen groups")
        for group in groups:
            if group.reason is not None:
                where = "\n".join(part for part in (group.reason.node, place(group.reason.source)) if part)
                table.add_row(tables.folded(group.name), str(group.size), group.reason.text, tables.folded(where))
        yield table


def as_data(survey: Survey, groups: Sequence[Group]) -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "source": survey.program.source,
        "inputs": survey.job.inputs.describe(),
        "scopes": [scope.path for scope in survey.program.scopes],
        "untraced": survey.program.untraced,
        "graph_nodes": len(survey.program.module.graph.nodes),
        "operator_calls": survey.groups.trace.operators,
        "opaque": survey.program.opaque,
        "eval_only": survey.program.eval_only,
        "without_rule": survey.missing,
        "cost": tables.cost_data(survey.costs),
        "parameters_outside": survey.outside,
        "prunable": {"parameters": survey.prunable_parameters, "macs": survey.prunable_macs},
        "groups": [_group_data(survey, group) for group in groups if group.reason is None],
        "frozen": [_group_data(survey, group) for group in groups if group.reason is not None],
    }


def _group_data(survey: Survey, group: Group) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": group.name,
        "units": group.size,
        "channels_per_unit": group.channels_per_unit,
        "members": [{"tensor": m.tensor, "axis": m.axis, "indices_per_unit": m.multiplicity} for m in group.members],
        "statistics": _reason_data(group.statistics),
        "reason": _reason_data(group.reason),
    }
    return facts if group.reason is not None else facts | {"parameter_share": survey.parameter_shares[group.index]}


def _reason_data(reason: Reason | None) -> dict[str, str] | None:
    if reason is None:
        return None
    return {"text": reason.text, "operator": reason.operator, "node": reason.node, "source": reason.source}
