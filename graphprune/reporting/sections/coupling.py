"""The coupling graph: which layers lose channels together, and what keeps others whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from graphprune.channels.groups import Group
from graphprune.cli.survey import KERNEL_EXTENT
from graphprune.cli.tables import listed
from graphprune.reporting.boxes import boxes, opened
from graphprune.reporting.facts import Chart, Missing, Section, Table
from graphprune.reporting.layers import Layer, layer_graph, layer_of
from graphprune.reporting.material import Material
from graphprune.reporting.original import Original

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
    data = _data(original, layers, frozen)
    if data["closed"]:
        lead += " Boxes with two borders are modules: a second click opens them, and so does finding a layer by its name."
    label = "The layers of the model and the way of the data between them. The tables hold the same."
    chart = Chart("coupling", label, data, 540)
    return Section("coupling", _TITLE, lead, charts=[chart], tables=tables)


def _data(original: Original, layers: dict[str, Layer], frozen: Sequence[Group]) -> dict[str, Any]:
    """Nodes, edges and groups for the drawing; groups by place: prunable ones first, then frozen ones."""
    axes = [_axes(original, group) for group in (*original.groups.prunable, *frozen)]
    groups = [_group(original, group, found) for group, found in zip((*original.groups.prunable, *frozen), axes, strict=True)]
    made, read = _by_layer(axes)
    widths = _widths(original)
    around = boxes(layers)
    open_boxes = opened(layers, around)
    nodes = []
    for layer in layers.values():
        key = layer.key if layer.kind == "layer" else ""  # a call makes no channels, even one that is named like a layer
        facts = {"id": layer.key, "kind": layer.kind, "label": layer.label, "folded": layer.folded, "within": around[layer.key]}
        width = widths[key] if key in made else None
        nodes.append(facts | {"makes": made.get(key, []), "reads": read.get(key, []), "width": width})
    edges = [[source, layer.key] for layer in layers.values() for source in layer.sources if source in layers]
    closed = any(set(path) - set(open_boxes) for path in around.values())
    return {"nodes": nodes, "edges": edges, "groups": groups, "open": open_boxes, "closed": closed}


def _axes(original: Original, group: Group) -> _Axes:
    """Tensor axes of a group by layer."""
    found: _Axes = {}
    for member in group.members:
        found.setdefault(layer_of(member.tensor, original.program), []).append((member.tensor, member.axis))
    return found


def _by_layer(axes: Sequence[_Axes]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Groups along the first axes of each layer's tensors, which are what it makes, and those along others alone."""
    made: dict[str, list[int]] = {}
    read: dict[str, list[int]] = {}
    for place, found in enumerate(axes):
        for layer, members in found.items():
            (made if any(axis == 0 for _, axis in members) else read).setdefault(layer, []).append(place)
    return made, read


def _widths(original: Original) -> dict[str, tuple[int, int]]:
    """First axis of the largest tensor of every layer, before and after the plan."""
    largest: dict[str, str] = {}
    for name, tensor in original.program.tensors.items():
        layer = layer_of(name, original.program)
        if layer not in largest or tensor.ndim > original.program.tensors[largest[layer]].ndim:
            largest[layer] = name
    return {layer: _width(name, original) for layer, name in largest.items()}


def _width(tensor: str, original: Original) -> tuple[int, int]:
    full = (*original.program.tensors[tensor].shape, 1)[0]
    return full, len(original.plan.kept.get(tensor, {}).get(0, range(full))) if original.plan is not None else full


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
