"""Writing the coupling graph for other tools, by networkx's own writers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import networkx as nx

from graphprune.errors import UsageError
from graphprune.files import atomic_write


def check_graph_format(path: Path) -> None:
    """Raise UsageError unless the name's ending is a format that can be written here."""
    if path.suffix not in _WRITERS:
        raise UsageError(f"Cannot tell the graph format of {path} from its name. End it in {', '.join(_WRITERS)}.")
    if path.suffix == ".dot" and find_spec("pydot") is None:
        raise UsageError(f"Writing {path} needs pydot. Install it with: pip install pydot; or write .graphml or .json.")


def write_graph(graph: nx.Graph, path: Path) -> None:
    """Write a graph, atomically, in the format of the path's ending. Raises UsageError where the path cannot be written."""
    with atomic_write(path) as temporary:
        _WRITERS[path.suffix](graph, temporary)


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
