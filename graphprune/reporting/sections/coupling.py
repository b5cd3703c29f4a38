"""The coupling graph: which layers lose channels together, and what keeps others whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from graphprune.cli.survey import KERNEL_EXTENT
from graphprune.cli.tables import listed
from graphprune.groups import Group
from graphprune.reporting.facts import Chart, Missing, Section, Table
from graphprune.reporting.layers import Layer, layer_graph, layer_of
from graphprune.reporting.material import Material
from graphprune.reporting.original import Original

_MOST: Final = 900  # nodes that a browser lays out in a few seconds
_TITLE: Final = "Coupling"
_Axes: TypeAlias = dict[str, list[tuple[str, int]]]  # tensor and axis, by layer


def coupling(material: Material) -> Section | None:
    """The layers of the original as a drawing to search, and its groups as tables."""
    original = material.original
    if original is None:
        if len(material.runs) > 1:
            return None
        return Section("coupling", _TITLE, missing=[Missing(material.no_original, "")])
    layers = layer_graph(original.program, original.groups)
    frozen = [group for group in original.groups.frozen if group.reason and group.reason.text != KERNEL_EXTENT]
    tables = [
        Table("Prunable groups", ("group", "#units", "#kept", "#channels per unit", "layers"), _prunable(original)),
        Table("What is frozen, and why", ("layers", "#units", "reason"), _frozen(original, frozen)),
    ]
    prunable = original.groups.prunable
    lead = (
        f"{len(prunable)} groups of channels, each cut as one. Layers of one colour lose the same channels. Choose a layer to see "
        "what it shares, and what keeps it whole; drag to move, pinch or use the buttons to zoom."
    )
    if len(layers) > _MOST:
        lack = Missing(
            f"The model has {len(layers):,} layers, too many to draw.", "`graphprune inspect --graph FILE` writes the graph."
        )
        return Section("coupling", _TITLE, lead, tables=tables, missing=[lack])
    label = "The layers of the model and the way of the data between them. The tables hold the same."
    chart = Chart("coupling", label, _data(original, layers, frozen), 540)
    return Section("coupling", _TITLE, lead, charts=[chart], tables=tables)


def _data(original: Original, layers: dict[str, Layer], frozen: Sequence[Group]) -> dict[str, Any]:
    """Nodes, edges and groups for the drawing; groups by place: prunable ones first, then frozen ones."""
    axes = [_axes(original, group) for group in (*original.groups.prunable, *frozen)]
    groups = [_group(original, group, found) for group, found in zip((*original.groups.prunable, *frozen), axes, strict=True)]
    nodes = []
    for layer in layers.values():
        made, read = _places(layer.key, axes) if layer.kind == "layer" else ([], [])
        facts = {"id": layer.key, "kind": layer.kind, "label": layer.label, "folded": layer.folded}
        nodes.append(facts | {"makes": made, "reads": read, "width": _width(layer.key, original) if made else None})
    edges = [[source, layer.key] for layer in layers.values() for source in layer.sources if source in layers]
    return {"nodes": nodes, "edges": edges, "groups": groups}


def _axes(original: Original, group: Group) -> _Axes:
    """Tensor axes of a group by layer."""
    found: _Axes = {}
    for member in group.members:
        found.setdefault(layer_of(member.tensor, original.program), []).append((member.tensor, member.axis))
    return found


def _places(layer: str, axes: Sequence[_Axes]) -> tuple[list[int], list[int]]:
    """Groups along the first axes of a layer's tensors, which are what it makes, and those along others alone."""
    made = [place for place, found in enumerate(axes) if any(axis == 0 for _, axis in found.get(layer, ()))]
    return made, [place for place, found in enumerate(axes) if layer in found and place not in made]


def _width(layer: str, original: Original) -> tuple[int, int]:
    """First axis of a layer's largest tensor, before and after the plan."""
    tensors = original.program.tensors
    name = max((name for name in tensors if layer_of(name, original.program) == layer), key=lambda name: tensors[name].ndim)
    full = tensors[name].shape[0]
    return full, len(original.plan.kept.get(name, {}).get(0, range(full))) if original.plan is not None else full


def _group(original: Original, group: Group, axes: _Axes) -> dict[str, Any]:
    kept = None if original.kept is None or group.reason else int(original.kept[group.index])
    return {
        "name": group.name,
        "units": group.size,
        "kept": kept,
        "channels": group.channels_per_unit if group.members else 1,
        "reason": str(group.reason) if group.reason else None,
        "layers": {layer: [f"{tensor}[{axis}]" for tensor, axis in members] for layer, members in axes.items()},
    }


def _prunable(original: Original) -> list[list[str]]:
    rows = []
    for group in original.groups.prunable:
        kept = "-" if original.kept is None else str(original.kept[group.index])
        layers = ", ".join(_axes(original, group))
        rows.append([group.name, str(group.size), kept, str(group.channels_per_unit), layers])
    return rows


def _frozen(original: Original, frozen: Sequence[Group]) -> list[list[str]]:
    return [[listed(_axes(original, group)) or group.name, str(group.size), str(group.reason)] for group in frozen]
