"""What a config can state, on a model of a few lines with several ways of reading its config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import graphprune
from graphprune.channels.groups import Groups
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.rewrite.rewrite import rewrite
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.streaming.configs import Config, Shapes
from graphprune.streaming.levers import Finder, at_full_depth, first_units, widths_of
from graphprune.streaming.same import difference

X = torch.zeros(2, 3, 5)
CONFIG: Config = {"width": 24, "heads": 4, "inner": None, "layers": 2, "seed": 7, "scaled": False}


class _Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.heads = config["width"], config["heads"]
        if "head" not in config and width % self.heads:
            raise ValueError("heads do not divide the width")
        inner = config["inner"] or 2 * width
        size = self.heads * config.get("head", width // self.heads)
        self.qkv, self.out = nn.Linear(width, 3 * size), nn.Linear(size, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(self.up(x).relu())


class _Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scale = config["width"] ** 0.5 if config["scaled"] else 1.0
        self.stem = nn.Linear(5, config["width"])
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config["layers"]))
        self.head = nn.Linear(config["width"], 2)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x) * self.scale
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _shapes(config: Config) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in _Model(config).state_dict().items()}


def _analysed(config: Config) -> tuple[Any, Groups]:
    program = graphprune.capture(_Model(config).eval(), X)
    return program, AnalysisManager().get(program, ChannelGroups())


def _agrees(program: Any, groups: Groups, config: Config, widths: Any) -> str:
    slim = program.with_(module=rewrite(program.module, groups, first_units(groups, widths)))
    other = graphprune.capture(_Model(config).eval(), X).with_(tape=None)
    return difference(slim, other, _shapes(config))


def _found(config: Config, asked: Sequence[str] = ()) -> list[Any]:
    program, groups = _analysed(config)
    return Finder(config, _shapes, groups, partial(_agrees, program, groups), [(name,) for name in asked]).run()


def _texts(levers: Any) -> dict[str, int]:
    return {" ".join(str(path[0]) for path in lever.numbers): lever.steps for lever in levers}


def test_numbers_are_found_that_change_alone_together_and_that_the_config_leaves_out() -> None:
    """The width and the heads have one divisor of 4 in common; what is twice the width by default gets a number of its own."""
    assert _texts(_found(CONFIG)) == {"inner": 48, "width heads": 4}


def test_a_number_that_the_config_does_not_have_frees_others_once_it_is_stated() -> None:
    """The size of a head is by default the width by the number of heads, so that one cannot change without the other."""
    found = _found(CONFIG, ["head", "seed"])
    assert _texts(found) == {"inner": 48, "head": 1, "width": 24, "heads": 4}
    constant = next(lever for lever in found if not lever.groups)
    groups = _analysed(CONFIG)[1]
    assert constant.at(constant.step(groups.widths, groups.widths)) == {("head",): 6}
    assert _texts(at_full_depth(found, CONFIG, _shapes, groups)) == {"inner": 48, "width": 24, "heads": 4, "head": 1}
    assert not at_full_depth([constant], CONFIG, _shapes, groups), "alone it narrows nothing"


def test_a_number_that_also_decides_how_the_model_computes_is_no_lever() -> None:
    """As the scale of Gemma's embeddings: the shapes would be right, and the model another."""
    assert _texts(_found(CONFIG | {"scaled": True})) == {"inner": 48}


def test_a_number_that_the_model_does_not_read_is_no_lever() -> None:
    assert not any("seed" in text for text in _texts(_found(CONFIG | {"inner": 30})))
    assert _texts(_found(CONFIG | {"inner": 30})) == {"inner": 30, "width heads": 4}


def test_levers_of_few_layers_move_the_groups_of_all() -> None:
    deep = CONFIG | {"layers": 5}
    groups = _analysed(deep)[1]
    levers = at_full_depth(_found(CONFIG), deep, _shapes, groups)
    assert _texts(levers) == {"inner": 48, "width heads": 4}
    assert sorted(group for lever in levers for group in lever.groups) == list(range(len(groups.prunable)))


def test_levers_over_what_has_to_stay_are_none() -> None:
    program = graphprune.capture(_Model(CONFIG).eval(), X).under(exclude=["blocks.1.up"])
    groups = AnalysisManager().get(program, ChannelGroups())
    assert not at_full_depth([lever for lever in _found(CONFIG) if ("inner",) in lever.numbers], CONFIG, _shapes, groups)


def test_widths_are_read_from_shapes_or_there_are_none() -> None:
    groups = _analysed(CONFIG)[1]
    full = _shapes(CONFIG)
    by_name = dict(zip((group.name for group in groups.prunable), range(len(groups.prunable)), strict=True))
    widths = widths_of(groups, full, _shapes(CONFIG | {"width": 12, "heads": 2}))
    assert widths is not None and widths[by_name["stem"]] == 12 and widths[by_name["blocks.0.qkv"]] == 2
    assert widths_of(groups, full, _shapes(CONFIG | {"layers": 1})) is None
    assert widths_of(groups, full, {**full, "head.weight": (3, 24)}) is None, "an axis that no width moves"
    assert widths_of(groups, full, {**full, "stem.bias": (12,)}) is None, "axes of one group that disagree"
    assert widths_of(groups, full, _shapes(CONFIG | {"width": 48})) is None, "wider than it is"


class _Stage(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError("heads do not divide the width")
        self.heads = heads
        self.qkv, self.out, self.wider = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.wider(x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class _Stages(nn.Module):
    """As Swin: each stage has twice the width of the one before, and a number of heads in a list."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stem = nn.Linear(5, config["width"])
        self.stages = nn.Sequential(*(_Stage(config["width"] * 2**index, heads) for index, heads in enumerate(config["heads"])))
        self.head = nn.Linear(config["width"] * 2 ** len(config["heads"]), config["classes"])

    def forward(self, x: Tensor) -> Any:
        return self.head(self.stages(self.stem(x)))


class _Pooled(nn.Module):
    """As DeBERTa: the pooler has a number of its own, and tokens of another width than the model's would be projected."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.heads = config["width"], config["heads"]
        if width % self.heads:
            raise ValueError("heads do not divide the width")
        tokens = config["tokens"] or width
        self.stem = nn.Linear(5, tokens)
        self.project = nn.Linear(tokens, width) if tokens != width else nn.Identity()
        self.qkv, self.pooler, self.head = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, config["pooled"]),
            nn.Linear(config["pooled"], 2),
        )

    def forward(self, x: Tensor) -> Any:
        x = self.project(self.stem(x))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scale = torch.tensor(q.shape[-1] * 3.0).sqrt()
        x = x + (((q / scale) @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(x + self.pooler(x).tanh())


def _search(cls: type[Any], config: Config, built: list[Config]) -> dict[str, int]:
    """The levers of a class; what was built in the search is added to a list."""

    def shapes(candidate: Config) -> Shapes:
        built.append(candidate)
        return {name: tuple(tensor.shape) for name, tensor in cls(candidate).state_dict().items()}

    program = graphprune.capture(cls(config).eval(), X)
    groups = AnalysisManager().get(program, ChannelGroups())

    def agrees(candidate: Config, widths: Any) -> str:
        slim = program.with_(module=rewrite(program.module, groups, first_units(groups, widths)))
        return difference(slim, graphprune.capture(cls(candidate).eval(), X).with_(tape=None), shapes(config))

    return {
        " ".join(".".join(map(str, path)) for path in lever.numbers): lever.steps
        for lever in Finder(config, shapes, groups, agrees).run()
    }


def test_a_list_of_numbers_is_changed_as_one() -> None:
    """The heads of all stages go with the width, however many stages there are."""
    config = {"width": 8, "heads": [2, 4, 8, 16], "classes": 3}
    assert _search(_Stages, config, []) == {"width heads.0 heads.1 heads.2 heads.3": 2}


def test_numbers_are_left_to_the_class_where_others_are_less_free_once_they_are_stated() -> None:
    """Four numbers would have to change together if the width of tokens were stated. The scale is a tensor made of a number."""
    config = {"width": 24, "heads": 4, "tokens": None, "pooled": 24}
    assert _search(_Pooled, config, []) == {"width pooled heads": 4}


def test_numbers_that_change_what_has_to_stay_are_tried_once() -> None:
    """Of sizes of the input, or of what the model returns; and nothing is left to try then."""

    class Wide(_Stages):
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.tops = nn.ModuleList(nn.Linear(config["width"] * 4, config[name]) for name in "abcdefgh")

        def forward(self, x: Tensor) -> Any:
            x = self.stages(self.stem(x))  # the width reaches the output
            return x, [top(x) for top in self.tops]

    built: list[Config] = []
    assert _search(Wide, {"width": 8, "heads": [2, 4], "classes": 3, **dict.fromkeys("abcdefgh", 5)}, built) == {}
    assert len(built) < 60
