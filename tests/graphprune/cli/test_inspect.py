"""inspect and passes: what can be pruned, what cannot and why, and what a pipeline is made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest
import sympy

from graphprune.cli.trees import _from

Cli = Callable[..., Any]

SOURCE = "graphprune.cli.digits:small_cnn"
INPUT = ("--input", "1x1x8x8")

# A module that does not trace, and an operator that nothing is known about, between prunable layers.
OPAQUE = """
import torch
class Branching(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(8, 8) for _ in range(3))
        self.odd = Branching()
    def forward(self, x):
        return self.third(self.odd(self.second(torch.relu(self.first(x)))))
"""


def test_groups_are_listed_with_their_couplings(cli: Cli) -> None:
    data = cli("inspect", SOURCE, *INPUT, "--json").data
    groups = {group["name"]: group for group in data["groups"]}
    assert {name: group["units"] for name, group in groups.items()} == {
        "stem": 32,
        "block.conv1": 32,
        "wide.pointwise": 48,
        "narrow": 16,
    }
    coupled = {member["tensor"] for member in groups["stem"]["members"]}
    assert {"stem.weight", "block.conv2.weight", "wide.depthwise.weight", "narrow.weight"} <= coupled
    assert 0 < groups["narrow"]["parameter_share"] < groups["stem"]["parameter_share"] <= 1
    assert data["cost"]["parameters"] == 22010
    assert 0.9 < data["prunable"]["parameters"] < 1


def test_frozen_groups_come_with_the_reason_and_kernel_extents_are_folded(cli: Cli) -> None:
    ran = cli("inspect", SOURCE, *INPUT)
    assert ran.code == 0 and "it reaches the model's output" in ran.out
    assert "extents of convolution kernels" in ran.out and "the extent of a convolution kernel" not in ran.out
    assert "the extent of a" in cli("inspect", SOURCE, *INPUT, "-v").out


def test_what_does_not_trace_is_named_with_the_reason(cli: Cli, folder: Path) -> None:
    (folder / "opaque_net.py").write_text(OPAQUE)
    ran = cli("inspect", "opaque_net:Net", "--input", "1x8")
    assert "as a whole, but for 1 module (below)" in ran.out and "Not traced into" in ran.out and "odd" in ran.out
    data = cli("inspect", "opaque_net:Net", "--input", "1x8", "--json").data
    assert set(data["opaque"]) == {"odd"}
    frozen = {group["name"]: group["reason"] for group in data["frozen"]}
    assert "module odd does not trace" in frozen["second"]["text"] and frozen["second"]["node"] == "odd"
    assert [group["name"] for group in data["groups"]] == ["first"]


# A module that calls more in train mode.
NOISY = """
import torch
class Noise(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
    def forward(self, x):
        x = self.layer(x)
        return x + torch.randn_like(x) if self.training else x
class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(8, 8), Noise(), Noise(), torch.nn.Linear(8, 8))
"""


def test_what_does_not_follow_train_mode_is_named_with_the_reason(cli: Cli, folder: Path) -> None:
    (folder / "noisy_net.py").write_text(NOISY)
    reason = "in train mode it makes other calls from randn_like on"
    for command in (("inspect",), ("prune", "--target", "channels=50%", "-o", "slim.safetensors")):
        given = (command[0], "noisy_net:Net", "--input", "1x8", *command[1:])
        ran = cli(*given)
        assert "Not as the original when trained" in ran.out and "1, 2" in ran.out and "randn_like" in ran.out
        found = cli(*given, "--json").data["eval_only"]
        assert found.keys() == {"1", "2"} and all(text.startswith(reason) for text in found.values())
    quiet = cli("inspect", SOURCE, *INPUT)
    assert "train mode" not in quiet.out and cli("inspect", SOURCE, *INPUT, "--json").data["eval_only"] == {}


def test_statistics_over_channels_that_can_go_are_told(cli: Cli, folder: Path) -> None:
    (folder / "normed.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))\n"
    )
    ran = cli("inspect", "normed:net", "--input", "1x4")
    assert "A norm over prunable channels, taken over the kept ones once pruned, in: 0." in ran.out.replace("\n", " ")
    assert "taken over" not in cli("inspect", "normed:net", "--input", "1x4", "--policy", "statistics=freeze").out


def test_why_explains_the_groups_of_one_layer(cli: Cli) -> None:
    ran = cli("inspect", SOURCE, *INPUT, "--why", "head")
    assert "must stay: it reaches the model's output" in ran.out and "Frozen by output." in ran.out
    assert "To free it:" in ran.out and "wide.pointwise: 48 units, can be pruned" in ran.out
    assert "head.weight" not in ran.out and "head.weight" in cli("inspect", SOURCE, *INPUT, "--why", "head", "-v").out
    assert "block.conv1" not in ran.out


def test_why_names_the_operator_and_the_source_line_of_each_tie(cli: Cli, folder: Path) -> None:
    (folder / "alike.py").write_text(ALIKE)
    given = ("inspect", "alike:net", "--input", "1x3", "--why", "3.second")
    said = " ".join(cli(*given).out.split())
    add = ALIKE.splitlines().index("        return x + self.second(self.first(x))") + 1
    assert f"3.second and 0 are combined channel by channel: add_2 (aten::add) at alike.py:{add}" in said
    (stream,) = (one for one in cli(*given, "--json").data["why"] if one["group"] == "0")
    assert stream["remedy"] is None and {tie["kind"] for tie in stream["ties"]} == {"holds", "reads", "combines"}
    (tie,) = (tie for tie in stream["ties"] if tie["node"] == "add_2")
    assert tie["operator"] == "aten::add" and tie["source"] == f"{folder / 'alike.py'}:{add}"


def test_why_of_an_unknown_name_offers_near_ones(cli: Cli) -> None:
    ran = cli("inspect", SOURCE, *INPUT, "--why", "haed")
    assert ran.code == 2 and "'haed'; did you mean 'head'" in ran.err


def test_pattern_filters_and_must_match(cli: Cli) -> None:
    data = cli("inspect", SOURCE, *INPUT, "--pattern", "narrow*", "--json").data
    assert [group["name"] for group in data["groups"]] == ["stem", "narrow"]
    ran = cli("inspect", SOURCE, *INPUT, "--pattern", "nothing*")
    assert ran.code == 2 and "'nothing*' matches no group" in ran.err


def test_exclusions_and_policies_show_in_the_groups(cli: Cli) -> None:
    data = cli("inspect", SOURCE, *INPUT, "--exclude", "narrow", "--json").data
    assert "narrow" not in {group["name"] for group in data["groups"]}
    assert any("excluded by 'narrow'" in group["reason"]["text"] for group in data["frozen"])
    frozen = cli("inspect", SOURCE, *INPUT, "--policy", "statistics=freeze", "--json")
    assert frozen.code == 0


def test_the_coupling_graph_is_written_for_other_tools(cli: Cli) -> None:
    assert cli("inspect", SOURCE, *INPUT, "--graph", "g.graphml").code == 0
    graph = nx.read_graphml("g.graphml")
    assert graph.has_edge("group:0", "stem.weight[0]")
    assert cli("inspect", SOURCE, *INPUT, "--graph", "g.json").code == 0
    same = nx.node_link_graph(json.loads(Path("g.json").read_text()), edges="edges")
    assert set(same.nodes) == set(graph.nodes) and same.number_of_edges() == graph.number_of_edges()


def test_a_dot_file_is_written_where_pydot_is_installed(cli: Cli) -> None:
    pydot = pytest.importorskip("pydot")
    assert cli("inspect", SOURCE, *INPUT, "--graph", "g.dot").code == 0
    (graph,) = pydot.graph_from_dot_file("g.dot")
    assert {"stem", "stem.weight[0]"} <= {node.get("label").strip('"') for node in graph.get_nodes() if node.get("label")}


def test_a_dot_file_without_pydot_is_refused_with_the_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.cli.coupling.find_spec", lambda name: None)
    ran = cli("inspect", SOURCE, *INPUT, "--graph", "g.dot")
    assert ran.code == 2 and "pip install pydot" in ran.err and not Path("g.dot").exists()


def test_an_unknown_graph_format_is_refused(cli: Cli) -> None:
    ran = cli("inspect", SOURCE, *INPUT, "--graph", "g.jpg")
    assert ran.code == 2 and ".dot, .graphml, .json" in ran.err and not Path("g.jpg").exists()


def test_the_coupling_graph_is_drawn(cli: Cli) -> None:
    assert cli("inspect", SOURCE, *INPUT, "--graph", "g.svg").code == 0
    root = ElementTree.parse("g.svg").getroot()
    assert root.tag.endswith("svg")
    comments = Path("g.svg").read_text()  # matplotlib draws letters as outlines, and keeps the text beside them
    assert "<!-- stem: 32 -->" in comments and "<!-- head: 10 (stays) -->" in comments and "narrow" in comments


def test_a_picture_without_matplotlib_is_refused_with_the_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = cli("inspect", SOURCE, *INPUT, "--graph", "g.svg")
    assert ran.code == 2 and "--graph needs matplotlib" in ran.err and not Path("g.svg").exists()


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal_and_cut_nothing_off(cli: Cli, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    ran = cli("inspect", "torchvision:resnet18", "--input", "1x3x64x64")
    assert max(map(len, ran.out.splitlines())) <= width
    assert "…" not in ran.out and "tied with, or why it stays" in " ".join(ran.out.split())
    flat = cli("inspect", "torchvision:resnet18", "--input", "1x3x64x64", "-v").out
    assert max(map(len, flat.splitlines())) <= width
    assert "…" not in flat and "layer4.1.conv1" in flat


ALIKE = """
import torch
class Block(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, hidden), torch.nn.Linear(hidden, 8)
    def forward(self, x):
        return x + self.second(self.first(x))
def net():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), Block(4), Block(4), Block(6), torch.nn.Linear(8, 2))
"""


def test_the_tree_shows_branches_that_are_alike_as_one(cli: Cli, folder: Path) -> None:
    (folder / "alike.py").write_text(ALIKE)
    lines = cli("inspect", "alike:net", "--input", "1x3").out.splitlines()
    tree = [" ".join(line.split()) for line in lines if line[:1] in ("├", "│", "└")]
    assert tree[2] == "├ 1.first to 2.first, alike 4 21.8% second"
    assert tree[3].startswith("├ 3.first 6") and tree[4] == "└ 4 2 stays it reaches the model's output"
    assert tree[0].startswith("├ 0 8 94.9% 1.first, 1.second and 5 more") and tree[1].startswith("│ 3 stays")


@pytest.mark.parametrize(
    ("name", "other", "seen"),
    [
        ("stem", "layer1.0.conv1", "layer1.0.conv1"),
        ("layer1.0.conv3", "layer1.0.bn3", "bn3"),
        ("net.layer1.0.conv3", "net.layer1.1.conv3", "…1.conv3"),
        ("net.layer1.0.conv3", "head", "head"),
        ("net.conv", "net", "net"),
    ],
)
def test_other_layers_are_named_from_the_module_around_both(name: str, other: str, seen: str) -> None:
    assert _from(name, other) == seen


def test_passes_lists_passes_options_criteria_and_policies(cli: Cli) -> None:
    data = cli("passes", "--json").data
    pruning = ["channels", "score", "select", "knapsack", "greedy", "threshold", "loss-aware", "rewrite", "verify"]
    assert list(data["passes"]) == [*pruning, "fold-constants", "compensate", "recalibrate"]
    assert data["passes"]["score"]["options"]["criterion"] == {"type": "str", "default": "l2"}
    assert {"l1", "l2", "random"} <= set(data["criteria"]) and all(about["doc"] for about in data["criteria"].values())
    assert data["criteria"]["attention"]["options"] == {"p": "1", "statistic": "mean", "at": "consumed"}
    assert data["policies"]["heads"] == {"choices": ["whole", "head_dim"], "default": "whole"}
    ran = cli("passes")
    assert "statistic=mean" in ran.out and "round_to" in ran.out and "conv_groups" in ran.out and ran.err == ""


def test_cost_says_what_a_unit_costs_and_how(cli: Cli) -> None:
    data = cli("inspect", SOURCE, *INPUT, "--cost", "--json").data
    found = data["cost_by_width"]
    groups = {group["name"]: group for group in data["groups"]}
    widths = {found["groups"][name]["symbol"]: group["units"] for name, group in groups.items()}
    for name, formula in found["formulas"].items():
        total = sympy.sympify(formula).subs(widths)
        if name in ("parameters", "MACs"):
            assert int(total) == data["cost"][name.lower()]
    for name, group in found["groups"].items():
        assert group["shares"]["params"] == pytest.approx(groups[name]["parameter_share"])
        fewer = widths | {group["symbol"]: groups[name]["units"] - 1}
        macs = sympy.sympify(found["formulas"]["MACs"])
        assert group["per_unit"]["macs"] == int(macs.subs(widths) - macs.subs(fewer)) > 0


def test_cost_is_printed_with_the_symbols_that_its_formulas_use(cli: Cli) -> None:
    text = cli("inspect", SOURCE, *INPUT, "--cost").out
    assert "Cost of every prunable group" in text and "w0" in text and "bytes moved" in text
    assert "Cost of every" not in cli("inspect", SOURCE, *INPUT).out
