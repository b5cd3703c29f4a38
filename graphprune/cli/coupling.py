"""The coupling graph for other tools, by networkx's own writers, and as a picture, by matplotlib."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import networkx as nx

from graphprune.channels.couplings import layers
from graphprune.channels.groups import Groups
from graphprune.cli.pictures import FORMATS, check_plot, picture
from graphprune.cli.survey import listed_groups
from graphprune.errors import UsageError
from graphprune.files import atomic_write


def check_graph_format(path: Path) -> None:
    """Raise UsageError unless the name's ending is a format that can be written here."""
    if path.suffix not in (*_WRITERS, *FORMATS):
        known = ", ".join((*_WRITERS, *FORMATS))
        raise UsageError(f"Cannot tell the graph format of {path} from its name. End it in {known}.")
    if path.suffix in FORMATS:
        check_plot(path, "--graph")
    if path.suffix == ".dot" and find_spec("pydot") is None:
        raise UsageError(f"Writing {path} needs pydot. Install it with: pip install pydot; or write .svg, .graphml or .json.")


def write_graph(groups: Groups, path: Path) -> None:
    """Write the graph, atomically, in the format of the path's ending. Raises UsageError where the path cannot be written."""
    if path.suffix in FORMATS:
        _draw(groups, path)
        return
    with atomic_write(path) as temporary:
        _WRITERS[path.suffix](groups.graph(), temporary)


def _draw(groups: Groups, path: Path) -> None:
    """Groups in one column and the layers that they tie in another, both in the order of the model, with a line for each tie."""
    rows = {layer: row for row, layer in enumerate(layers(groups.trace.parameters))}
    shown = [(group, layers(member.tensor for member in group.members)) for group in listed_groups(groups)]
    shown.sort(key=lambda pair: min(map(rows.__getitem__, pair[1])))
    step = max(1, len(rows) - 1) / max(1, len(shown) - 1)
    with picture(path, 1, 1, size=(9, 1 + 0.2 * max(len(rows), len(shown)))) as (_, axes):
        panel = axes[0, 0]
        for index, (group, tied) in enumerate(shown):
            colour = "0.6" if group.reason else f"C{index % 10}"
            label = f"{group.name}: {group.size}{' (stays)' if group.reason else ''}"
            panel.text(-0.02, index * step, label, ha="right", va="center", fontsize=7, color=colour)
            for layer in tied:
                panel.plot((0, 1), (index * step, rows[layer]), color=colour, linewidth=0.8)
        for layer, row in rows.items():
            panel.text(1.02, row, layer, va="center", fontsize=7)
        panel.set(xlim=(-0.8, 1.8), ylim=(len(rows), -1), title="Groups, with their units, and the layers that they tie")
        panel.axis("off")


def _write_json(graph: nx.Graph, path: Path) -> None:
    path.write_text(json.dumps(nx.node_link_data(graph, edges="edges"), indent=1), encoding="utf-8")


def _write_dot(graph: nx.Graph, path: Path) -> None:
    # Names that hold colons or dots must be quoted for pydot; plain numbers need no quotes.
    labels = {node: facts.get("label", node) for node, facts in graph.nodes(data=True)}
    plain: nx.Graph = nx.convert_node_labels_to_integers(graph, label_attribute="name")
    drawn = nx.Graph()
    for number, facts in plain.nodes(data=True):
        shape = "box" if facts["kind"] == "axis" else "ellipse"
        style = "dashed" if facts["kind"] == "frozen" else "solid"
        drawn.add_node(number, label=json.dumps(str(labels[facts["name"]])), shape=shape, style=style)
    drawn.add_edges_from((a, b, {"label": facts["multiplicity"]}) for a, b, facts in plain.edges(data=True))
    nx.drawing.nx_pydot.write_dot(drawn, path)


_WRITERS: Final[Mapping[str, Callable[[nx.Graph, Path], None]]] = {
    ".dot": _write_dot,
    ".graphml": nx.write_graphml,
    ".json": _write_json,
}
