"""Structures of concatenations, splits, residual additions and shared modules."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, conv, image, net, pooled, vector


@case
def plain_chain() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return pooled(self.head, F.relu(self.b(F.relu(self.norm(self.a(x))))))

    model = net(forward, a=conv(3, 8), norm=nn.BatchNorm2d(8), b=conv(8, 6), head=nn.Linear(6, 4))
    frozen = {
        ("a.weight", 1): "convolved over channels that cannot shrink",
        ("a.weight", 2): "kernel",
        ("head.weight", 0): "output",
    }
    return Case(model, image(), {"a": 8, "b": 6}, frozen)


@case
def same_tensor_concatenated_twice() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(torch.cat([y, y], 1))

    return Case(net(forward, a=conv(3, 5), b=conv(10, 4)), image(), {"a": 5})


@case
def input_concatenated_with_features() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(torch.cat([x, self.a(x)], 1))

    return Case(net(forward, a=conv(3, 6), b=conv(9, 4)), image(), {"a": 6}, {("b.weight", 1): "concatenated beside"})


@case
def features_concatenated_before_input() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.c(torch.cat([self.a(x), x, self.b(x)], dim=-3))

    return Case(net(forward, a=conv(3, 6), b=conv(3, 4), c=conv(13, 4)), image(), {"a": 6, "b": 4})


@case
def chunk_used_twice() -> Case:
    """C2f of YOLOv8: one half feeds a block and the concatenation."""

    def forward(self: Any, x: Tensor) -> Any:
        left, right = self.a(x).chunk(2, 1)
        return self.b(torch.cat([left, right, self.m(right)], 1))

    return Case(net(forward, a=conv(3, 8), m=conv(4, 4), b=conv(12, 5)), image(), {"a": 4, "a#2": 4, "m": 4})


@case
def chunk_residual() -> Case:
    """The chunk that is discovered first by a backward walk is not the first one."""

    def forward(self: Any, x: Tensor) -> Any:
        first, second = torch.split(self.a(x), [4, 4], 1)
        return self.c(self.b(torch.cat([first, self.side(x)], 1)) + second)

    model = net(forward, a=conv(3, 8), side=conv(3, 3), b=conv(7, 4), c=conv(4, 5))
    # The first half of a, and its second half with b.
    return Case(model, image(), {"a": 4, "side": 3, "a#2": 4})


@case
def split_in_three_unequal_parts() -> Case:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one, two, three = self.a(x).split((3, 4, 6), dim=1)
        return self.x(one), self.y(two), self.z(three)

    model = net(forward, a=conv(3, 13), x=conv(3, 2), y=conv(4, 2), z=conv(6, 2))
    return Case(model, image(), {"a": 3, "a#2": 4, "a#3": 6})


@case
def one_block_on_two_chunks() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        one, two = self.a(x).chunk(2, dim=1)
        return self.c(self.block(one) + self.block(two))

    return Case(net(forward, a=conv(3, 8), block=conv(4, 6), c=conv(6, 3)), image(), {"a": 4, "block": 6})


@case
def module_called_twice_in_a_row() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.again(F.relu(self.again(self.a(x)))))

    return Case(net(forward, a=conv(3, 6), again=conv(6, 6), b=conv(6, 3)), image(), {"a": 6})


@case
def residual_addition_in_place() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.relu(self.a(x))
        z = self.b(y)
        z += y
        z.relu_()
        return pooled(self.head, z)

    model = net(forward, a=conv(3, 6), relu=nn.ReLU(inplace=True), b=conv(6, 6), head=nn.Linear(6, 3))
    return Case(model, image(), {"a": 6})


@case
def option_a_shortcut() -> Case:
    """The CIFAR ResNets' down-sampling without parameters: slices with a step, and zero channels on both sides."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        z = self.norm(self.b(y)) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return pooled(self.head, F.relu(z))

    model = net(forward, a=conv(3, 4), b=conv(4, 8, stride=2), norm=nn.BatchNorm2d(8), head=nn.Linear(8, 3))
    return Case(model, image(), {"a": 4, "b": 4})


@case
def two_option_a_shortcuts_in_a_row() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        x = F.relu(self.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
        x = F.relu(self.c(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3), "constant", 0))
        return pooled(self.head, x)

    model = net(forward, a=conv(3, 4), b=conv(4, 6, stride=2), c=conv(6, 12, stride=2), head=nn.Linear(12, 3))
    return Case(model, image(), {"a": 4, "b": 2, "c": 6})


@case
def dense_block() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        features = [self.a(x)]
        for layer in (self.b, self.c):
            features.append(layer(torch.cat(features, 1)))
        return self.d(torch.concat(features, 1))

    return Case(net(forward, a=conv(3, 4), b=conv(4, 3), c=conv(7, 3), d=conv(10, 2)), image(), {"a": 4, "b": 3, "c": 3})


@case
def concatenation_along_space() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.c(torch.cat([self.a(x), self.b(x)], 2))

    return Case(net(forward, a=conv(3, 6), b=conv(3, 6), c=conv(6, 2)), image(), {"a": 6})


@case
def stacked_and_summed() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.c(torch.stack([self.a(x), self.b(x)], 1).sum(1))

    return Case(net(forward, a=conv(3, 6), b=conv(3, 6), c=conv(6, 2)), image(), {"a": 6})


@case
def stacked_and_flattened() -> Case:
    """Channels of two branches interleaved."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.c(torch.stack((self.a(x), self.b(x)), dim=2).flatten(1, 2))

    return Case(net(forward, a=conv(3, 6), b=conv(3, 6), c=conv(12, 2)), image(), {"a": 6})


@case
def fixed_bounds() -> Case:
    """Integers of the source code in slices, views and splits."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        left, right = y[:, :3], y[:, 3:]
        z = torch.cat([self.b(left), self.c(right)], 1)
        w = z.narrow(1, 1, 6)
        return self.head(w.view(-1, 6 * 64))

    model = net(forward, a=conv(3, 8), b=conv(3, 4), c=conv(5, 4), head=nn.Linear(384, 3))
    frozen = {("a.weight", 1): "cannot shrink"}
    # The narrow leaves out the first channel of b and the last of c, which are units with fewer slices than the others.
    return Case(model, image(), {"a": 3, "a#2": 5, "b": 1, "b#2": 3, "c": 3, "c#2": 1}, frozen)


@case
def several_inputs_and_outputs() -> Case:
    def forward(self: Any, left: Tensor, right: Tensor) -> dict[str, Any]:
        a, b = self.a(left), self.b(right)
        both = F.relu(a + b)
        return {"sum": self.c(both), "parts": (self.d(torch.cat([a, b], 1)), [b.mean()])}

    model = net(forward, a=nn.Linear(4, 7), b=nn.Linear(5, 7), c=nn.Linear(7, 2), d=nn.Linear(14, 3))
    first, second = vector(4), vector(5)
    return Case(model, lambda n: {"left": first(n), "right": second(n)}, {"a": 7}, zeros=False)


@case
def tied_weights() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return F.linear(F.relu(self.a(x)), self.a.weight.t()) + F.relu(self.b(x))

    a, b = nn.Linear(5, 8), nn.Linear(5, 5)
    return Case(net(forward, a=a, b=b), vector(5), {"a": 8}, {("a.weight", 1): "cannot shrink"})


@case
def tied_modules_weights() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.out(self.b(F.relu(self.a(self.first(x)))))

    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = a.weight
    return Case(net(forward, first=nn.Linear(3, 6), a=a, b=b, out=nn.Linear(6, 2)), vector(3), {"first": 6})


@case
def unused_parameters() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x))

    model = net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2), idle=nn.Linear(6, 6), scale=nn.Parameter(torch.ones(6)))
    return Case(model, vector(3), {"a": 6})


@case
def frozen_parameters() -> Case:
    """A model that needs no gradients is pruned all the same."""
    case = plain_chain()
    case.model.requires_grad_(False)
    return case


@case
def widths_of_one() -> Case:
    """A convolution with one output is no depthwise one, and cannot shrink."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.c(torch.cat([self.one(x), self.b(self.a(x))], 1)) * self.gate(self.a(x)).sigmoid()

    model = net(forward, a=conv(3, 5), one=conv(3, 1), b=conv(5, 4), c=conv(5, 3), gate=conv(5, 1))
    return Case(model, image(), {"a": 5, "b": 4})


@case
def nested_containers() -> Case:
    block = nn.ModuleList([nn.Sequential(conv(3, 5), nn.ReLU()), nn.Sequential(conv(5, 5), nn.ReLU6())])

    def forward(self: Any, x: Tensor) -> Any:
        for layer in self.blocks:
            x = layer(x)
        return self.heads["main"](x)

    return Case(net(forward, blocks=block, heads=nn.ModuleDict({"main": conv(5, 2)})), image(), {"blocks.0.0": 5, "blocks.1.0": 5})


@case
def one_channel_slices() -> Case:
    """A slice or a part of a single channel cannot shrink; the others can."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        left, right = self.d(x).split([1, 4], 1)
        return self.b(y[:, :1]) + self.c(y) + self.b(left) + self.e(right)

    model = net(forward, a=conv(3, 4), b=conv(1, 2), c=conv(4, 2), d=conv(3, 5), e=conv(4, 2))
    return Case(model, image(), {"a": 3, "d": 4}, {("a.weight", 0): "", ("d.weight", 0): ""})
