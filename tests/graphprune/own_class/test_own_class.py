"""Slim models of the original's own class: its code runs the slim layers, or the layers stay as they are, with the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.errors import ArtifactError, RewriteError

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pruned(model: nn.Module, inputs: Any = IMAGE, **how: Any) -> Any:
    """The result of taking half of every group; the class stays."""
    usual: dict[str, Any] = {"target": "channels=50%", "ranking": "local", "keep_class": True}
    return graphprune.prune(model.eval(), inputs, **(usual | how))


def reasons(result: Any) -> list[str]:
    """Why what is frozen is."""
    return [group.reason.text for group in result.groups.frozen if group.reason is not None]


class Net(nn.Module):
    """A residual net with a method of its own, and a list of layers that is no module list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.names = ["stem", "body"]

    def features(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        return x + self.body(x)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).mean((2, 3)))

    def loss(self, x: Tensor, y: Tensor) -> Any:
        return F.cross_entropy(self(x), y)


def test_the_slim_model_is_of_the_class_with_its_methods() -> None:
    """It computes what the slim graph computes, at other sizes too, and its own methods work."""
    model = Net()
    result = pruned(model)
    slim = result.model
    assert type(slim) is Net and slim.stem.out_channels == 4 and slim.head.in_features == 4
    assert model.stem.out_channels == 8  # the original is not changed
    other = torch.randn(5, 3, 8, 8)
    assert torch.equal(slim(other), result.graph(other))
    slim.loss(IMAGE, torch.tensor([0, 1])).backward()
    assert slim.features(IMAGE).shape[1] == 4


def test_it_shares_its_layers_with_the_graph(tmp_path: Path) -> None:
    """What is trained is what is saved; a file loads as a graph, and into the class."""
    model = Net()
    result = pruned(model)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.5)
    assert torch.equal(result.model(IMAGE), result.graph(IMAGE))
    graphprune.save(result, tmp_path / "slim.safetensors")
    own = graphprune.load(tmp_path / "slim.safetensors", model)
    assert type(own) is Net
    assert torch.equal(own(IMAGE), result.model(IMAGE))
    assert torch.equal(graphprune.load(tmp_path / "slim.safetensors")(IMAGE), result.model(IMAGE))


def test_a_file_of_a_model_that_keeps_its_class_goes_with_that_model_only(tmp_path: Path) -> None:
    """Another model is refused; a file that keeps no class is a graph whatever is given."""
    graphprune.save(pruned(Net()), tmp_path / "slim.safetensors")
    with pytest.raises(ArtifactError, match="does not go with this Sequential"):
        graphprune.load(tmp_path / "slim.safetensors", nn.Sequential(nn.Linear(2, 2)))
    graphprune.save(pruned(Net(), keep_class=False), tmp_path / "graph.safetensors")
    assert isinstance(graphprune.load(tmp_path / "graph.safetensors", Net()), torch.fx.GraphModule)


class States(nn.Module):
    """Its code states the width of one layer, and not that of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6 * 256, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.second(self.first(x))
        return self.head(x.reshape(x.shape[0], 6 * 256))


def test_a_width_that_the_code_states_stays_with_the_line() -> None:
    """The rest is pruned. Without keep_class both are."""
    slim = pruned(States())
    assert (slim.model.first.out_channels, slim.model.second.out_channels) == (4, 6)
    (reason,) = [text for text in reasons(slim) if "own code" in text]
    assert "reshape" in reason and "test_own_class.py:" in reason
    free = pruned(States(), keep_class=False)
    assert free.graph.get_submodule("second").out_channels == 3


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


def test_recurrent_layers_run_in_train_mode() -> None:
    """Their class checks its input by a number of its own."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm, self.head = nn.Linear(4, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.lstm(self.first(x))[0])

    result = pruned(Recurrent(), torch.randn(2, 5, 4))
    slim = result.model
    assert (slim.lstm.input_size, slim.lstm.hidden_size, slim.head.in_features) == (4, 3, 3)
    slim.train()(torch.randn(3, 7, 4)).sum().backward()


class Asserts(nn.Module):
    """Its code checks a width of its own in Python, which no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if x.shape[-1] != self.width:
            raise ValueError(f"expected {self.width} features")
        return self.head(self.second(x))


def test_a_check_in_python_keeps_its_width() -> None:
    """The code would raise; the layer after the check is pruned."""
    result = pruned(Asserts(), torch.randn(2, 4))
    assert (result.model.first.out_features, result.model.second.out_features) == (8, 4)
    assert any("expected 8 features" in text for text in reasons(result))


class Scaled(nn.Module):
    """Its code computes with a width, silently."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.head(self.second(x / math.sqrt(x.shape[-1])))


def test_a_number_that_a_width_enters_keeps_it() -> None:
    """The graph pins the number; the code could not."""
    result = pruned(Scaled(), torch.randn(2, 4))
    assert (result.model.first.out_features, result.model.second.out_features) == (8, 4)
    assert any("truediv" in text for text in reasons(result))


class Boxed(Scaled):
    """As a tensor, which no operator shows the value of."""

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.head(self.second(x / torch.sqrt(torch.tensor(x.shape[-1]))))


class Noted(Scaled):
    """As a constant, of a number that Python has made plain."""

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.head(self.second(x + torch.tensor([float(str(x.shape[-1]))])))


@pytest.mark.parametrize("kind", [Boxed, Noted])
def test_a_number_in_a_tensor_keeps_its_width(kind: type[nn.Module]) -> None:
    """The scale of torchvision's RAFT is such a one: the operators are the same, and the numbers would not be."""
    result = pruned(kind(), torch.randn(2, 4))
    given = torch.randn(3, 4)
    assert (result.model.first.out_features, result.model.second.out_features) == (8, 4)
    assert torch.equal(result.model(given), result.graph(given))
    plan = pruned(kind(), torch.randn(2, 4), keep_class=False).plan
    with pytest.raises(RewriteError, match="cannot follow this plan"):
        graphprune.apply_plan(kind().eval(), torch.randn(2, 4), plan, keep_class=True)


class Auxiliary(nn.Module):
    """A head that only train mode has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head, self.aux = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        out = self.head(self.second(x))
        return (out, self.aux(x)) if self.training else out


def test_what_only_train_mode_reads_stays_wide() -> None:
    """The auxiliary head goes on to work when the slim model is trained."""
    result = pruned(Auxiliary(), torch.randn(2, 4))
    slim = result.model.train()
    assert (slim.first.out_features, slim.second.out_features) == (8, 4)
    out, aux = slim(torch.randn(2, 4))
    (out.sum() + aux.sum()).backward()
    assert any("in train mode" in text for text in reasons(result))


class Masking(nn.Module):
    """Train mode looks at data, and writes a parameter of its own into a hidden layer: as wav2vec 2.0 masks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.masked = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.training:
            mask = torch.rand(len(x)) < 0.5 + float(x.sum() * 0)
            x[mask] = self.masked
        return self.head(self.second(x))


def test_train_mode_that_looks_at_data_is_tried_on_data() -> None:
    """The user's random numbers are those that they would have been."""
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model = Masking()
    torch.manual_seed(3)
    slim = pruned(model, torch.ones(6, 4)).model.train()
    assert torch.equal(torch.rand(4), expected)
    assert (slim.first.out_features, slim.second.out_features) == (8, 4)
    slim(torch.randn(6, 4)).sum().backward()


class Blind(Masking):
    """The same without a look at data: on the meta device any shape of what is written would do."""

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.training:
            x[torch.rand(len(x), device=x.device) < 0.5] = self.masked
        return self.head(self.second(x))


def test_what_train_mode_writes_through_a_mask_has_to_fit() -> None:
    """Whether the mask that is drawn selects something or not."""
    slim = pruned(Blind(), torch.ones(6, 4)).model.train()
    assert (slim.first.out_features, slim.second.out_features) == (8, 4)
    slim(torch.randn(6, 4)).sum().backward()


def test_tied_and_bare_parameters_are_shared() -> None:
    """A parameter under two names, and one that the code reads itself, are those of the graph, tied as before."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = nn.Embedding(10, 8), nn.Linear(8, 8)
            self.shift = nn.Parameter(torch.randn(8))
            self.readout = nn.Linear(8, 10, bias=False)
            self.readout.weight = self.table.weight

        def forward(self, x: Tensor) -> Any:
            return self.readout(self.mix(self.table(x)) + self.shift + self.table(x))

    result = pruned(Tied(), torch.tensor([[1, 2, 3]]))
    slim = result.model
    assert slim.readout.weight is slim.table.weight
    assert slim.shift.shape == (4,)
    assert torch.equal(slim(torch.tensor([[4, 5]])), result.graph(torch.tensor([[4, 5]])))


def test_a_plan_that_the_code_cannot_follow_is_refused() -> None:
    """A plan made without it may cut what the code states."""
    plan = pruned(States(), keep_class=False).plan
    with pytest.raises(RewriteError, match="The code of States cannot follow this plan"):
        graphprune.apply_plan(States().eval(), IMAGE, plan, keep_class=True)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    """With what to do."""

    class Alone(Net):
        def __deepcopy__(self, memo: dict[int, Any]) -> Alone:
            raise TypeError("there is only one")

    with pytest.raises(RewriteError, match=r"cannot be copied .TypeError: there is only one.*Leave out keep_class"):
        pruned(Alone())


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


def test_scopes_keep_their_classes(tmp_path: Path) -> None:
    """A model that does not trace as a whole: the classes of its parts stay, too."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.out = Net(), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Any:
            y = self.net(x)
            return self.out(y) if y.sum() > 0 else -self.out(y)

    model = Whole().eval()
    result = pruned(model)
    assert type(result.model) is Whole and type(result.model.net) is Net and result.model.net.stem.out_channels == 4
    graphprune.save(result, tmp_path / "slim.safetensors")
    assert torch.equal(graphprune.load(tmp_path / "slim.safetensors", model)(IMAGE), result.model(IMAGE))


class Agent(nn.Module):
    """Returns an action that it draws, in eval mode too, and how likely that was."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor = nn.Linear(6, 16), nn.Linear(16, 64)

    def forward(self, x: Tensor) -> Any:
        found = torch.distributions.Categorical(logits=self.actor(self.body(x).relu()))
        action = found.sample()
        return action, found.log_prob(action)


def test_what_draws_in_eval_mode_is_compared_by_the_same_draws() -> None:
    model = Agent()
    state = torch.get_rng_state()
    found = pruned(model, torch.ones(4, 6))
    assert type(found.model) is Agent and found.report.widths == {"body": (16, 8)}
    assert torch.equal(torch.get_rng_state(), state)
