"""Attributes and configs that state widths follow them, or keep them as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.errors import RewriteError
from graphprune.own_class.attributes import set_attributes
from tests.graphprune.own_class.keeping import IMAGE, pruned, reasons


class Heads(nn.Module):
    """Attention whose code reads its numbers of heads and of channels from attributes, one of them of several places."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.inner, self.label = 3, 4, 12, 3
        self.qkv, self.out, self.head = nn.Linear(6, 36), nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, self.inner)
        return self.head(self.out(x).mean(1)) + self.label


def test_attributes_that_state_widths_follow(tmp_path: Path) -> None:
    """Whole heads go, though the code states how many there are; what has the same value by chance stays. Files hold them."""
    result = pruned(Heads(), torch.randn(2, 5, 6))
    slim = result.model
    assert (slim.heads, slim.size, slim.label) == (1, 4, 3)
    assert slim.inner == slim.out.in_features == 4
    other = torch.randn(3, 7, 6)
    assert torch.equal(slim(other), result.graph(other))
    graphprune.save(result, tmp_path / "slim.safetensors")
    own: Any = graphprune.load(tmp_path / "slim.safetensors", Heads())
    assert own.heads == 1
    assert torch.equal(own(other), slim(other))


@dataclass
class Config:
    """What modules share."""

    heads: int = 4
    width: int = 16
    layers: int = 4


class Configured(nn.Module):
    """Attention that reads its number of heads from a config; the code of its second layer may need another."""

    def __init__(self, config: Any, heads: int = 4) -> None:
        super().__init__()
        self.config = config
        self.qkv, self.out = nn.Linear(6, 12 * heads), nn.Linear(4 * heads, 6)

    def forward(self, x: Tensor) -> Any:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("config", [Config(), SimpleNamespace(heads=4, width=16, layers=4)])
def test_a_config_of_the_copy_follows(config: Any, tmp_path: Path) -> None:
    """The attribute that the line names, and none of the same value; the user's own config stays as it is. Files hold it."""
    result = pruned(Configured(config), torch.randn(2, 5, 6))
    slim = result.model
    assert (slim.config.heads, slim.config.layers, slim.out.in_features) == (2, 4, 8)
    assert config.heads == 4
    other = torch.randn(3, 7, 6)
    assert torch.equal(slim(other), result.graph(other))
    graphprune.save(result, tmp_path / "slim.safetensors")
    own: Any = graphprune.load(tmp_path / "slim.safetensors", Configured(config))
    assert own.config.heads == 2 and config.heads == 4
    assert torch.equal(own(other), slim(other))


def test_a_config_that_stands_for_several_widths_keeps_them() -> None:
    """Two layers that share it, and lose different heads: both stay, with the reason. One with a config of its own does not."""
    config = Config()
    result = pruned(nn.Sequential(Configured(config), Configured(config), Configured(Config())), torch.randn(2, 5, 6))
    assert [layer.out.in_features for layer in result.model] == [16, 16, 8]
    assert any("config.heads, which stands for several widths" in reason for reason in reasons(result))


def test_a_config_that_is_not_copied_with_the_model_is_not_changed() -> None:
    """One for all models of the process, say."""

    class Single(Config):
        def __deepcopy__(self, memo: dict[int, Any]) -> Single:
            return self

    config = Single()
    with pytest.raises(RewriteError, match=r"'config\.heads' in what is not copied"):
        pruned(Configured(config), torch.randn(2, 5, 6))
    assert config.heads == 4


class Misled(nn.Module):
    """An attribute that has to be two widths at once: of a layer that is pruned, and of one that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.first, self.second, self.third, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.shift = nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x).reshape(2, self.width) + self.shift
        return self.head(self.third(self.second(x.relu()).reshape(2, self.width)))


def test_an_attribute_of_two_widths_keeps_one_of_them() -> None:
    """Two layers whose widths are one attribute cannot shrink apart; the result computes what its graph computes."""
    result = pruned(Misled(), torch.randn(2, 4), target="params=80%", ranking="global")
    slim = result.model
    assert slim.first.out_features == slim.width or slim.second.out_features == slim.width
    given = torch.randn(2, 4)
    assert torch.equal(slim(given), result.graph(given))
    assert sum("does not follow it" in text for text in reasons(result)) >= 1


class Chunks(nn.Module):
    """Split in halves by the code, as in C2f blocks, gated units and the like."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        a, b = self.wide(x).chunk(2, 1)
        return self.out(torch.cat([a[:, :, ::2], b[:, :, ::2]], 2))


class Halves(Chunks):
    """The halves go different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        a, b = self.wide(x).chunk(2, 1)
        return self.out(a) - self.other(b.relu())


def test_halves_stay_halves() -> None:
    """The two parts of a chunk lose as many channels each, whatever is selected; the plan says so."""
    result = pruned(Halves(), target="params=60%", ranking="global")
    assert result.model.wide.out_channels < 16
    assert result.model.out.in_channels == result.model.other.in_channels == result.model.wide.out_channels / 2
    assert "parts@chunk" in result.plan.policy
    again: Any = graphprune.apply_plan(Halves().eval(), IMAGE, result.plan, keep_class=True)
    assert again.model.wide.out_channels == result.model.wide.out_channels
    assert pruned(Chunks()).model.wide.out_channels == 8


class Parts(nn.Module):
    """It takes a tensor apart by attributes: a list of sizes, one size for all parts, and the bound of a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.third, self.bound = [6, 10], 4, 7
        self.lists, self.thirds, self.sliced = nn.Linear(4, 16), nn.Linear(4, 12), nn.Linear(4, 12)
        self.outs = nn.ModuleList(nn.Linear(size, 2) for size in (6, 10, 4, 4, 4, 7, 5))

    def forward(self, x: Tensor) -> Any:
        sliced = self.sliced(x)
        parts = [*self.lists(x).split(self.sizes, dim=-1), *torch.split(self.thirds(x), self.third, -1)]
        parts += [sliced[:, : self.bound], sliced[:, self.bound :]]
        return sum(out(part.tanh()) for out, part in zip(self.outs, parts, strict=True))


def test_sizes_of_parts_and_bounds_of_slices_follow() -> None:
    """Each part loses its own channels, where the code says how many each has; parts of one size as many each."""
    result = pruned(Parts(), torch.randn(3, 4), target="params=50%", ranking="global")
    slim = result.model
    widths = [layer.in_features for layer in slim.outs]
    assert (slim.sizes, slim.third, slim.bound) == (widths[:2], widths[2], widths[5])
    assert widths[2] == widths[3] == widths[4]
    assert not any("own code" in reason for reason in reasons(result))
    other = torch.randn(2, 4)
    assert torch.equal(slim(other), result.graph(other))


class Borrows(nn.Module):
    """Its heads make as many channels as came in, and its code goes by that; then a second block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(6, 16), nn.Sequential(Borrowing(), Borrowing()), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.blocks(self.stem(x)).mean(1))


class Borrowing(nn.Module):
    """Attention as timm writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj, self.wide, self.back = 4, *map(nn.Linear, (16, 16, 16, 32), (48, 16, 32, 16))

    def forward(self, x: Tensor) -> Any:
        n, length, c = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, c))
        return x + self.back(self.wide(x).relu())


def test_what_takes_its_width_from_another_loses_as_much() -> None:
    """Heads go with as many channels of the stream; the rest is as free as ever. The plan says so."""
    result = pruned(Borrows(), torch.randn(2, 5, 6))
    block: Any = result.model.blocks[0]
    assert (result.model.stem.out_features, block.heads, block.qkv.out_features, block.wide.out_features) == (8, 2, 24, 16)
    assert not any("own code" in reason for reason in reasons(result))
    assert "sizes@reshape" in result.plan.policy
    other = torch.randn(3, 7, 6)
    assert torch.equal(result.model(other), result.graph(other))


class Shuffled(Borrowing):
    """It puts its heads behind their channels in the end, as NesT does."""

    def forward(self, x: Tensor) -> Any:
        n, length, c = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1).reshape(n, length, c))


def test_channels_that_are_tied_are_not_tied_again_in_another_order() -> None:
    """All would be one unit. That there are as many is enough."""
    result = pruned(nn.Sequential(nn.Linear(6, 16), Shuffled(), nn.Linear(16, 2)), torch.randn(2, 5, 6))
    assert (result.model[0].out_features, result.model[1].heads) == (8, 2)
    other = torch.randn(3, 7, 6)
    assert torch.equal(result.model(other), result.graph(other))


class Batched(nn.Module):
    """Its heads join the batch: a size that its code computes from an attribute and from the batch, as SAM does."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.head = 4, nn.Linear(6, 48), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Any:
        n, length, _ = x.shape
        x = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = x.reshape(3, n * self.heads, length, -1).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).view(n, self.heads, length, -1)
        return self.head(x.permute(0, 2, 1, 3).reshape(n, length, -1))


def test_sizes_that_the_code_computes_from_attributes_follow() -> None:
    """The attribute is found where it stands alone."""
    result = pruned(Batched(), torch.randn(2, 5, 6))
    assert (result.model.heads, result.model.head.in_features) == (2, 8)
    other = torch.randn(3, 7, 6)
    assert torch.equal(result.model(other), result.graph(other))


class Indexed(nn.Module):
    """A table of biases that the code indexes by a buffer, as levit does: its numbers are no widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(9))
        self.where: Tensor
        self.register_buffer("where", torch.tensor([8, 3]), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.first(x)) + self.bias[self.where].sum()


def test_buffers_of_indices_hold_them_in_trials() -> None:
    """Any other numbers could be out of range."""
    assert pruned(Indexed(), torch.randn(2, 4)).model.first.out_features == 4


class Halved(nn.Module):
    """Its code splits by half of an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.parts = 16, 2
        self.wide, self.left, self.right = nn.Linear(4, 16), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        left, right = self.wide(x).split(self.width // self.parts, dim=-1)
        return self.left(left) * self.right(right.relu())


def test_an_attribute_of_which_the_code_takes_a_part_follows() -> None:
    """The parts are of one size, and so many make the attribute."""
    slim = pruned(Halved(), torch.randn(3, 4)).model
    assert (slim.width, slim.parts, slim.wide.out_features) == (8, 2, 8)


class Standardised(nn.Conv2d):
    """A layer with code of its own, which does not read how many channels it has."""

    def forward(self, x: Tensor) -> Any:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias, self.stride, self.padding)


def test_layers_with_code_of_their_own_say_how_wide_they_are() -> None:
    """As those of torch do; a number that never was that of the weight stays."""
    model: Any = nn.Sequential(Standardised(3, 8, 1), nn.BatchNorm2d(8), Standardised(8, 6, 1), nn.Conv2d(6, 2, 1))
    model[0].in_channels = 99
    slim = pruned(model).model
    assert [(layer.in_channels, layer.out_channels) for layer in (slim[0], slim[2])] == [(99, 4), (4, 3)]
    assert (model[0].out_channels, model[2].in_channels) == (8, 8)


def test_the_code_of_a_scope_reads_its_own_attributes() -> None:
    """Where a model does not trace as a whole, those of its parts follow."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.net = 3, Heads()

        def forward(self, x: Tensor) -> Any:
            return self.net(x) if x.sum() > self.heads else -self.net(x)

    slim = pruned(Whole(), torch.ones(2, 5, 6)).model
    assert (slim.heads, slim.net.heads) == (3, 1)


def test_what_a_config_leaves_to_its_class_can_be_stated() -> None:
    """In what a module holds alone: an attribute of the module itself that is no number stays so."""
    config = Config()
    config.__dict__["inner"] = None
    model: Any = Configured(Config())
    model.config, model.nothing = config, None
    set_attributes(model, {"": {"config.inner": 6, "config.heads": 2, "config.size": 8}}, Configured(Config()))
    assert vars(config) == {**vars(Config()), "inner": 6, "heads": 2, "size": 8}
    for name, value in (("nothing", 3), ("config.inner", [1]), ("config.missing.size", 3)):
        with pytest.raises(RewriteError, match="has no width"):
            set_attributes(model, {"": {name: value}}, Configured(Config()))


class Repeated(nn.Module):
    """Attention with heads in the batch, as DeBERTa's: the code finds the batch from that and the number of heads."""

    def __init__(self, divisor: int = 0) -> None:
        super().__init__()
        self.heads, self.divisor = 4, divisor
        self.q, self.k, self.out, self.bias = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 6), nn.Parameter(torch.randn(5, 6))
        self.mlp = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))

    def split(self, x: Tensor) -> Any:
        x = x.view(x.size(0), x.size(1), self.heads, -1)
        return x.permute(0, 2, 1, 3).contiguous().view(-1, x.size(1), x.size(-1))

    def forward(self, x: Tensor) -> Any:
        q, k = self.split(self.q(x)), self.split(self.k(x))
        places = self.split(self.k(self.bias).unsqueeze(0))
        if self.divisor:
            return self.attend(q, k + places.repeat(q.size(0) // 4, 1, 1))
        return self.attend(q, k + places.repeat(q.size(0) // self.heads, 1, 1))

    def attend(self, q: Tensor, k: Tensor) -> Any:
        x = (q @ k.transpose(-1, -2)).softmax(-1) @ k
        x = x.view(-1, self.heads, x.size(-2), x.size(-1)).permute(0, 2, 1, 3).flatten(2)
        return self.mlp(self.out(x))


def test_a_number_that_code_computes_by_an_attribute_comes_out_the_same() -> None:
    """A batch of all heads by the number of heads is the batch. Code that states the number of heads keeps them all."""
    result = pruned(Repeated(), torch.randn(2, 5, 6))
    other = torch.randn(3, 5, 6)
    assert result.model.heads == 2 and torch.equal(result.model(other), result.graph(other))
    kept = pruned(Repeated(divisor=4), torch.randn(2, 5, 6))
    assert kept.model.heads == 4 and any("states this width in repeat" in reason for reason in reasons(kept))
