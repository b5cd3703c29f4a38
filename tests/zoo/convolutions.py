"""Structures of convolutions: grouped, depthwise, transposed, shuffled, in one and three dimensions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, conv, image, net, pooled, vector


def _between(middle: nn.Module, inputs: int, outputs: int) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        return pooled(self.head, self.b(F.relu(self.middle(F.relu(self.a(x))))))

    return net(forward, a=conv(3, inputs), middle=middle, b=conv(outputs, 5), head=nn.Linear(5, 3))


@case
def grouped_within() -> Case:
    """The same positions of each of 4 groups: 3 inputs and 2 outputs of each."""
    return Case(_between(conv(12, 8, groups=4), 12, 8), image(), {"a": 3, "middle": 2, "b": 5})


@case
def grouped_whole() -> Case:
    model = _between(conv(12, 8, groups=4), 12, 8)
    frozen = {("middle.weight", 1): "groups go whole"}
    return Case(model, image(), {"a": 4, "b": 5}, frozen, policy={"conv_groups": "whole"})


@case
def one_output_per_group() -> Case:
    return Case(_between(conv(12, 4, groups=4), 12, 4), image(), {"a": 4, "b": 5}, {("middle.weight", 1): "groups go whole"})


@case
def depthwise() -> Case:
    return Case(_between(conv(6, 6, groups=6), 6, 6), image(), {"a": 6, "b": 5})


@case
def depthwise_with_multiplier() -> Case:
    return Case(_between(conv(6, 18, groups=6), 6, 18), image(), {"a": 6, "b": 5})


@case
def depthwise_transposed() -> Case:
    middle = nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6)
    return Case(_between(middle, 6, 6), image(), {"a": 6, "b": 5})


@case
def transposed() -> Case:
    return Case(
        _between(nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1, padding=1), 6, 8), image(), {"a": 6, "middle": 8, "b": 5}
    )


@case
def transposed_grouped_within() -> Case:
    model = _between(nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4), 12, 8)
    return Case(model, image(), {"a": 3, "middle": 2, "b": 5})


@case
def transposed_grouped_whole() -> Case:
    model = _between(nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4), 12, 8)
    return Case(model, image(), {"a": 4, "b": 5}, policy={"conv_groups": "whole"})


@case
def grouped_on_the_image() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x))

    model = net(forward, a=conv(3, 9, groups=3), b=conv(9, 2))
    # Three groups of one input each can only go whole, and the image cannot.
    return Case(model, image(), {}, {("a.weight", 0): "cannot shrink"})


@case
def one_dimension() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = F.max_pool1d(F.relu(self.norm(self.a(x))), 2)
        return self.head(torch.flatten(self.b(y), 1))

    model = net(forward, a=nn.Conv1d(3, 6, 3), norm=nn.BatchNorm1d(6), b=nn.Conv1d(6, 4, 3, groups=2), head=nn.Linear(4 * 5, 3))
    return Case(model, vector(3, 16), {"a": 3, "b": 2})


@case
def three_dimensions() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.pool(F.relu(self.norm(self.a(x))))
        return self.head(self.b(y).amax((2, 3, 4)))

    model = net(
        forward, a=nn.Conv3d(2, 5, 3), norm=nn.BatchNorm3d(5), pool=nn.AvgPool3d(2), b=nn.Conv3d(5, 4, 1), head=nn.Linear(4, 3)
    )
    return Case(model, vector(2, 6, 6, 6), {"a": 5, "b": 4})


@case
def pooled_and_unpooled() -> Case:
    """A decoder puts values where the encoder's largest were, as in SegNet: both have the same channels."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        low, places = F.max_pool2d(y, [2, 2], return_indices=True)
        return self.c(F.max_unpool2d(self.b(low), places, [2, 2], output_size=y.size()))

    return Case(net(forward, a=conv(3, 6), b=conv(6, 6, padding=1), c=conv(6, 2)), image(size=9), {"a": 6})


@case
def pooled_and_unpooled_in_volumes() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        low, places = F.max_pool3d(self.a(x), 2, return_indices=True)
        return self.c(F.max_unpool3d(self.b(low), places, [2, 2, 2]))

    model = net(forward, a=nn.Conv3d(2, 5, 1), b=nn.Conv3d(5, 5, 1), c=nn.Conv3d(5, 2, 1))
    return Case(model, vector(2, 4, 4, 4), {"a": 5})


@case
def unpooled_beside_the_image() -> Case:
    """Places of the image's channels, which cannot go, and neither can what is put there."""

    def forward(self: Any, x: Tensor) -> Any:
        low, places = F.max_pool2d(x, 2, return_indices=True)
        return self.b(F.max_unpool2d(self.a(low), places, [2, 2]))

    return Case(net(forward, a=conv(3, 3, 1), b=conv(3, 4)), image(), {}, {("a.weight", 0): "unpooled with a tensor"})


@case
def functional_convolution() -> Case:
    """Weights that belong to no layer, and groups as an argument."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.conv2d(x, self.first, self.bias, padding=1)
        y = F.conv2d(y, self.depth, None, 1, 1, 1, 6)
        return F.conv2d(y, self.last)

    model = net(
        forward,
        first=nn.Parameter(torch.randn(6, 3, 3, 3)),
        bias=nn.Parameter(torch.randn(6)),
        depth=nn.Parameter(torch.randn(6, 1, 3, 3)),
        last=nn.Parameter(torch.randn(2, 6, 1, 1)),
    )
    return Case(model, image(), {"first": 6})


@case
def shuffled_by_views() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        return self.c(F.relu(self.b(y)))

    return Case(net(forward, a=conv(3, 8), b=conv(8, 6), c=conv(6, 2)), image(), {"a": 8, "b": 6})


@case
def channels_in_another_order() -> Case:
    """By buffers, as in invertible networks: the convolution behind reads them where they are now."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))[:, self.order]
        return self.c(F.relu(self.b(y).index_select(1, self.order)))

    model = net(forward, a=conv(3, 6), b=conv(6, 6), c=conv(6, 2))
    model.register_buffer("order", torch.tensor([2, 0, 5, 1, 4, 3]))
    return Case(model, image(), {"a": 6, "b": 6})


@case
def channels_named_by_lists() -> Case:
    """In another order, some of them, one of them twice, beside other indices, and heads of heads x positions."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        y, z = y[:, [2, 0, 5, 1, 4, 3]], F.relu(self.b(y[:, self.some, 1:-1]))
        heads = self.heads(x.mean((2, 3))).view(-1, 4, 3).index_select(index=self.order, dim=1)
        heads = heads[:, [0, 1, 0, 2, 3]].sum(2)
        return self.c(y), self.d(z[:, (0, -1, 0), :, None].squeeze(3)), self.e(heads)

    model = net(forward, a=conv(3, 6), b=conv(4, 5), c=conv(6, 2), d=conv(3, 2), heads=nn.Linear(3, 12), e=nn.Linear(5, 2))
    model.register_buffer("some", torch.tensor([5, 1, 2, 5]))
    model.register_buffer("order", torch.tensor([3, 1, 0, 2]))
    return Case(model, image(), {"a": 3, "a#2": 2, "a#3": 1, "b": 1, "b#2": 3, "b#3": 1, "heads": 3, "heads#2": 1})


@case
def shuffled_by_module() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.c(F.relu(self.b(self.shuffle(self.a(x)))))

    return Case(net(forward, a=conv(3, 9), shuffle=nn.ChannelShuffle(3), b=conv(9, 6), c=conv(6, 2)), image(), {"a": 9, "b": 6})


@case
def shuffle_of_what_was_reduced_over_space() -> Case:
    """A layer's outputs viewed as an image, whose channels alone can go once their largest values are taken."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x).view(-1, 6, 2, 2)
        largest = self.c(y.amax((2, 3)))
        return largest, self.b(F.channel_shuffle(y, 2))

    return Case(net(forward, a=nn.Linear(5, 24), b=conv(6, 2), c=nn.Linear(6, 2)), vector(5), {"a": 6})


@case
def shuffle_between_grouped() -> Case:
    """ShuffleNet's first unit: the shuffle mixes the groups of one convolution for the next one."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(self.stem(x)))
        n, c, h, w = y.size()
        y = y.reshape(n, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)
        return pooled(self.head, F.relu(self.b(y)))

    model = net(forward, stem=conv(3, 8), a=conv(8, 8, groups=2), b=conv(8, 8, groups=2), head=nn.Linear(8, 3))
    # Positions p and p + 4 of a go together; after the shuffle they are neighbours, and the halves of b tie them again:
    # sources (0 4 1 5 | 2 6 3 7) give p ~ p + 2 as well.
    return Case(model, image(), {"stem": 4, "a": 2, "b": 4})


@case
def shuffle_unit_with_halves() -> Case:
    """ShuffleNetV2: one half passes, the other is convolved, then both are mixed; twice."""

    def unit(self: Any, x: Tensor, branch: nn.Module) -> Any:
        left, right = x.chunk(2, dim=1)
        y = torch.cat((left, branch(right)), dim=1)
        b, c, h, w = y.shape
        return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        y = unit(self, y, self.b)
        y = unit(self, y, self.c)
        return self.d(y)

    model = net(forward, a=conv(3, 8), b=conv(4, 4), c=conv(4, 4), d=conv(8, 2))
    return Case(model, image(), {"a": 2, "a#2": 2, "a#3": 4, "b": 2, "b#2": 2, "c": 4})


@case
def pixel_shuffle() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.relu(self.up(self.a(x))))

    return Case(net(forward, a=conv(3, 20), up=nn.PixelShuffle(2), b=conv(5, 2)), image(), {"a": 5})


@case
def pixel_unshuffle() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.pixel_unshuffle(F.relu(self.a(x)), 2))

    return Case(net(forward, a=conv(3, 5), b=conv(20, 4)), image(), {"a": 5})


@case
def up_and_down_sampling() -> Case:
    """A small U-Net."""

    def forward(self: Any, x: Tensor) -> Any:
        top = F.relu(self.a(x))
        low = F.relu(self.b(F.max_pool2d(top, 2)))
        up = F.interpolate(low, scale_factor=2.0, mode="nearest")
        return self.c(torch.cat([top, up], 1))

    return Case(net(forward, a=conv(3, 4), b=conv(4, 6), c=conv(10, 2)), image(), {"a": 4, "b": 6})


@case
def squeeze_excite() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = F.silu(self.a(x))
        scale = self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1))))
        return self.b(y * torch.sigmoid(scale))

    model = net(forward, a=conv(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), b=conv(8, 3))
    return Case(model, image(), {"a": 8, "down": 4})


@case
def squeeze_excite_by_linear() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        b, c, _, _ = y.size()
        scale = self.gate(y.mean((2, 3))).view(b, c, 1, 1)
        return self.b(y * scale.expand_as(y))

    gate = nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 8), nn.Hardsigmoid())
    return Case(net(forward, a=conv(3, 8), gate=gate, b=conv(8, 3)), image(), {"a": 8, "gate.0": 4})


@case
def convolution_to_linear() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = F.max_pool2d(F.relu(self.a(x)), 2)
        y = y.view(y.size(0), -1)
        return self.tail(F.relu(self.head(y)))

    return Case(net(forward, a=conv(3, 6), head=nn.Linear(96, 10), tail=nn.Linear(10, 2)), image(), {"a": 6, "head": 10})


@case
def linear_to_transposed_convolution() -> Case:
    """A decoder: the linear layer's units become channels of 4 x 4."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x).view(-1, self.up.in_channels, 4, 4)
        return self.head(torch.flatten(F.relu(self.b(F.relu(self.up(y)))), 1))

    model = net(
        forward, a=nn.Linear(5, 96), up=nn.ConvTranspose2d(6, 4, 2, 2), b=nn.ConvTranspose2d(4, 3, 1), head=nn.Linear(192, 2)
    )
    return Case(model, vector(5), {"a": 6, "up": 4, "b": 3})


@case
def shuffle_of_a_whole_group() -> Case:
    """A plan may leave a shuffled axis as it is: here it cannot shrink, and the axis beside it can."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        b, c, h, w = y.shape
        y = y.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.c(F.relu(self.b(x))) + y

    return Case(net(forward, a=conv(3, 6), b=conv(3, 8), c=conv(8, 6)), image(), {"b": 8}, {("a.weight", 0): "output"})


@case
def shuffle_of_repeated_channels() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(F.channel_shuffle(torch.cat([y, y], 1), 4))

    model = net(forward, a=conv(3, 6), b=conv(12, 2))
    found = analyse_groups(model)
    return Case(model, image(), found)


def analyse_groups(model: nn.Module) -> dict[str, int]:
    """Ties are free to be as they must be here: only exactness is asked for."""
    from tests.checking import analyse

    groups = analyse(model, image()(2)).groups.prunable
    return {group.name: group.size for group in groups}


@case
def shuffle_of_a_view_that_splits_channels_from_places() -> Case:
    """What is shuffled varies along channels and places at once, so that the shuffle stays, and its groups shrink alike."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.channel_shuffle(self.a(x.mean((2, 3))).view(-1, 6, 2, 2), 3)
        return self.b(y)

    return Case(net(forward, a=nn.Linear(3, 24), b=conv(6, 2)), image(), {"a": 2})


@case
def two_shuffles_in_a_row() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = F.channel_shuffle(F.channel_shuffle(self.a(x), 2), 4)
        b, c, h, w = y.shape
        y = y.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.b(y)

    return Case(net(forward, a=conv(3, 8), b=conv(8, 2)), image(), {"a": 8})


@case
def shuffle_of_one_channel_each() -> Case:
    """As many groups as channels: nothing moves, and the number of groups must follow all the same."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.channel_shuffle(self.a(x), 4)) + self.b(self.shuffle(self.a(x)))

    return Case(net(forward, a=conv(3, 4), shuffle=nn.ChannelShuffle(4), b=conv(4, 2)), image(), {"a": 4})
