"""Structures whose weights are made: mixed from a bank, normalised, unfolded; and products of other kinds than layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torchvision import ops

from tests.zoo.case import Case, case, conv, image, net, pooled, vector

# -- layers whose weights are made ------------------------------------------------------------------------------------------


@case
def convolution_from_a_bank() -> Case:
    """Dynamic convolution: each image mixes kernels of a bank; the batch is folded into groups."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        b, c, h, w = x.shape
        weights = self.route(x.mean((2, 3))).softmax(1)
        kernels = torch.mm(weights, self.bank.view(4, -1)).view(b * 5, c, 3, 3)
        y = F.conv2d(x.view(1, b * c, h, w), kernels, padding=1, groups=b)
        return self.b(y.view(b, 5, h, w))

    model = net(forward, a=conv(3, 6), route=nn.Linear(6, 4), bank=nn.Parameter(torch.randn(4, 5, 6, 3, 3)), b=conv(5, 2))
    return Case(model, image(), {"a": 6})


@case
def convolution_from_a_flat_bank() -> Case:
    """CondConv: the bank keeps its kernels flat, so that one axis holds outputs, inputs and places."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        b, c, h, w = x.shape
        kernels = torch.matmul(torch.sigmoid(self.route(x.mean((2, 3)))), self.bank).view(b * 5, 6, 3, 3)
        y = F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b)
        return self.b(y.permute([1, 0, 2, 3]).view(b, 5, y.shape[-2], y.shape[-1]))

    model = net(forward, a=conv(3, 6), route=nn.Linear(6, 4), bank=nn.Parameter(torch.randn(4, 5 * 6 * 9)), b=conv(5, 2))
    return Case(model, image(), {"route": 4, "bank": 5}, {("a.weight", 0): "in groups"})


@case
def depthwise_kernel_from_features() -> Case:
    """Involution: the kernel of each place is made of its features, one for each group of channels."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        b, c, h, w = x.shape
        kernel = self.span(F.relu(self.reduce(x))).view(b, 2, 1, 9, h, w)
        patches = F.unfold(x, 3, padding=1).view(b, 2, c // 2, 9, h, w)
        return self.b((kernel * patches).sum(3).view(b, c, h, w))

    model = net(forward, a=conv(3, 6), reduce=conv(6, 4, 1), span=conv(4, 18, 1), b=conv(6, 2))
    return Case(model, image(size=5), {"a": 2, "reduce": 4})


@case
def unfolded_and_folded() -> Case:
    """A convolution as a product of patches, and overlapping patches added up."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        patches = F.unfold(x, (2, 2), stride=2)
        y = (self.weight.flatten(1) @ patches).view(x.shape[0], 8, 4, 4)
        z = F.fold(self.up(F.relu(y)).flatten(2), (8, 8), (2, 2), stride=(2, 2))
        return self.b(z)

    model = net(forward, a=conv(3, 6), weight=nn.Parameter(torch.randn(8, 6, 2, 2)), up=conv(8, 20, 1), b=conv(5, 2))
    return Case(model, image(), {"a": 6, "weight": 8, "up": 5}, macs=False)


@case
def deformable_convolution() -> Case:
    """Offsets and weights of the taps are made by convolutions of their own, and must stay; two offsets for each tap."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        return self.b(F.relu(self.deform(x, self.offset(x), self.mask(x).sigmoid())))

    deform = ops.DeformConv2d(6, 8, 3, padding=1)
    model = net(forward, a=conv(3, 6), deform=deform, offset=conv(6, 36), mask=conv(6, 18), b=conv(8, 2))
    return Case(model, image(), {"a": 3, "deform": 8}, {("offset.weight", 0): "deformable"}, macs=False)


@case
def standardised_weights() -> Case:
    """Weight standardisation: mean and variance over the inputs of each output."""

    def forward(self: Any, x: Tensor) -> Any:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / torch.sqrt(w.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5)
        return self.b(F.relu(F.conv2d(self.a(x), w, padding=1)))

    return Case(
        net(forward, a=conv(3, 6), weight=nn.Parameter(torch.randn(5, 6, 3, 3)), b=conv(5, 2)),
        image(),
        {"weight": 5, "weight#2": 6},
    )


@case
def standardised_by_batch_norm() -> Case:
    """timm's spelling: the weight is an image of one example with a channel for each output."""

    def forward(self: Any, x: Tensor) -> Any:
        w = F.batch_norm(self.weight.reshape(1, 5, -1), None, None, weight=self.gain, training=True, momentum=0.0, eps=1e-6)
        return self.b(F.relu(F.conv2d(self.a(x), w.reshape_as(self.weight), padding=1)))

    model = net(
        forward, a=conv(3, 6), weight=nn.Parameter(torch.randn(5, 6, 3, 3)), gain=nn.Parameter(torch.rand(5) + 0.5), b=conv(5, 2)
    )
    return Case(model, image(), {"weight": 5, "weight#2": 6})


@case
def weight_norm() -> Case:
    """Direction and length of each output's weights are parameters."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))

    a, b = parametrizations.weight_norm(conv(3, 6)), parametrizations.weight_norm(conv(6, 5))
    model = net(forward, a=a, b=b, c=conv(5, 2))
    return Case(model, image(), {"a.parametrizations.weight.original1": 6, "b.parametrizations.weight.original1": 5})


@case
def weight_norm_as_a_whole() -> Case:
    """One length for all of a weight: the norm is over every axis, and loses what is removed along each."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))

    b = parametrizations.weight_norm(conv(6, 5), dim=None)  # type: ignore[arg-type]
    model = net(forward, a=conv(3, 6), b=b, c=conv(5, 2))
    return Case(model, image(), {"a": 6, "b.parametrizations.weight.original1": 5})


@case
def spectral_norm() -> Case:
    """The weight is divided by its largest singular value, as two vectors in buffers know it."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))

    model = net(forward, a=conv(3, 6), b=parametrizations.spectral_norm(conv(6, 5)), c=conv(5, 2))
    return Case(model, image(), {"a": 6, "b.parametrizations.weight.original": 5})


class _Limited(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.renorm(p=2, dim=0, maxnorm=0.5)


@case
def limited_norms() -> Case:
    """EEGNet: the weights of each output have a norm of at most so much, here those of some outputs have and of others not."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))

    b = conv(6, 5)
    with torch.no_grad():
        b.weight.mul_(torch.tensor([0.01, 3.0, 0.02, 2.0, 1.0])[:, None, None, None])
    parametrize.register_parametrization(b, "weight", _Limited())
    model = net(forward, a=conv(3, 6), b=b, c=conv(5, 2))
    return Case(model, image(), {"a": 6, "b.parametrizations.weight.original": 5})


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.transpose(0, 1)


@case
def parametrised_weight() -> Case:
    """A symmetric weight: input i goes with output i."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.c(F.relu(self.b(self.a(x))))

    b = nn.Linear(6, 6)
    parametrize.register_parametrization(b, "weight", _Doubled())
    model = net(forward, a=nn.Linear(3, 6), b=b, c=nn.Linear(6, 2))
    return Case(model, vector(3), {"a": 6})


class _ManyBranches(nn.Module):
    """RepVGG in its form for training: a 3 x 3 and a 1 x 1 convolution and, where it fits, the identity, each normalised."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1, branches: int = 1) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs else None
        self.large = nn.ModuleList(self._branch(inputs, outputs, 3, groups) for _ in range(branches))
        self.small = self._branch(inputs, outputs, 1, groups)

    @staticmethod
    def _branch(inputs: int, outputs: int, kernel: int, groups: int) -> nn.Module:
        layer = conv(inputs, outputs, kernel, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.small(x) + sum(branch(x) for branch in self.large)
        return F.relu(y if self.identity is None else y + self.identity(x))


@case
def reparameterised_block() -> Case:
    blocks = nn.Sequential(_ManyBranches(3, 6), _ManyBranches(6, 6), _ManyBranches(6, 5))

    def forward(self: Any, x: Tensor) -> Any:
        return pooled(self.head, self.blocks(x))

    return Case(net(forward, blocks=blocks, head=nn.Linear(5, 3)), image(), {"blocks.0.small.0": 6, "blocks.2.small.0": 5})


@case
def reparameterised_depthwise_block() -> Case:
    """MobileOne: several branches of depthwise convolutions, and a pointwise block."""
    blocks = nn.Sequential(_ManyBranches(3, 6), _ManyBranches(6, 6, groups=6, branches=3), _ManyBranches(6, 4))

    def forward(self: Any, x: Tensor) -> Any:
        return pooled(self.head, self.blocks(x))

    return Case(net(forward, blocks=blocks, head=nn.Linear(4, 3)), image(), {"blocks.0.small.0": 6, "blocks.2.small.0": 4})


# -- products of other kinds ------------------------------------------------------------------------------------------------


@case
def bilinear_layer() -> Case:
    def forward(self: Any, x: Tensor, y: Tensor) -> Any:
        return self.head(F.relu(self.pair(self.a(x), self.b(y))))

    model = net(forward, a=nn.Linear(4, 5), b=nn.Linear(4, 6), pair=nn.Bilinear(5, 6, 7), head=nn.Linear(7, 2))
    x, y = vector(4), vector(4)
    return Case(model, lambda n: (x(n), y(n)), {"a": 5, "b": 6, "pair": 7}, macs=False)


@case
def polynomials_of_features() -> Case:
    """A Kolmogorov-Arnold layer: each input has a basis of functions, each output a weight for each of them."""

    def forward(self: Any, x: Tensor) -> Any:
        for weight in (self.first, self.second):
            x = torch.tanh(x)
            basis = torch.stack([torch.ones_like(x), x, 2 * x * x - 1], dim=-1)
            x = torch.einsum("bid,iod->bo", basis, weight)
        return x

    model = net(forward, first=nn.Parameter(torch.randn(4, 6, 3)), second=nn.Parameter(torch.randn(6, 2, 3)))
    return Case(model, vector(4), {"first": 6})


@case
def splines_of_features() -> Case:
    """Basis functions on a grid, flattened into the inputs of one linear layer."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        basis = torch.exp(-(x.unsqueeze(-1) - self.grid).square())
        return self.spline(basis.view(x.shape[0], -1)) + self.base(F.silu(x))

    model = net(
        forward,
        a=nn.Linear(4, 6),
        grid=nn.Parameter(torch.linspace(-1, 1, 5), False),
        spline=nn.Linear(30, 2),
        base=nn.Linear(6, 2),
    )
    return Case(model, vector(4), {"a": 6})


@case
def factorised_einsum() -> Case:
    """Products of three operands, of channels-last maps, and an outer product (einsum drops axes of size 1 from its products)."""

    def forward(self: Any, x: Tensor) -> Any:
        x = torch.einsum("nhwc,cd->nhwd", x, self.a)
        x = torch.einsum("nhwc,cr,dr->nhwd", x, self.left, self.right)
        y, z = x.mean(1), x.mean(2)
        return torch.einsum("nwc,nhc,co->nhwo", y, z, self.out)

    parts = {"a": torch.randn(3, 6), "left": torch.randn(6, 4), "right": torch.randn(5, 4), "out": torch.randn(5, 2)}
    model = net(forward, **{name: nn.Parameter(value) for name, value in parts.items()})
    return Case(model, vector(4, 4, 3), {"a": 6, "left": 4, "right": 5}, macs=False)


@case
def cosine_classifier() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        x = F.normalize(self.a(x))
        return F.linear(x, F.normalize(self.weight)) * self.scale + F.cosine_similarity(x, self.b(x), dim=1)[:, None]

    parts = {"weight": nn.Parameter(torch.randn(3, 6)), "scale": nn.Parameter(torch.tensor(2.0))}
    return Case(net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 6), **parts), vector(4), {"a": 6})


@case
def low_rank_update_scaled_by_rows() -> Case:
    """DoRA: the update of a weight is what two small layers make of an identity, and rows of the sum are scaled to a length."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        identity = torch.eye(self.down.weight.shape[1], dtype=x.dtype)
        weight = self.b.weight + self.up(self.down(identity)).T
        return self.c(F.linear(x, weight) * (self.length / torch.linalg.norm(weight, dim=1)))

    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 5), "down": nn.Linear(6, 3, False), "up": nn.Linear(3, 5, False)}
    model = net(forward, **layers, length=nn.Parameter(torch.rand(5)), c=nn.Linear(5, 2))
    return Case(model, vector(4), {"a": 6, "up": 5, "down": 3}, macs=False)


@case
def square_root_of_a_covariance() -> Case:
    """Second-order pooling: a step of Newton's iteration from an identity as wide as the features."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x).flatten(2)
        n, c, places = x.shape
        covariance = torch.bmm(x, x.transpose(1, 2)) / places
        identity = 3 * torch.eye(c, c, dtype=x.dtype).view(1, c, c).repeat(n, 1, 1)
        step = 0.5 * (identity - covariance)
        return self.b(torch.bmm(covariance, step).sum(2))

    return Case(net(forward, a=conv(3, 6), b=nn.Linear(6, 2)), image(), {"a": 6})


@case
def flow_with_a_determinant() -> Case:
    """Glow and WaveGlow: an invertible layer, whose determinant is part of the loss, and a coupling that gates."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.mix(x)
        given, changed = y.chunk(2, dim=1)
        acts, n = self.inner(F.relu(self.start(given))), torch.IntTensor([8])[0]
        scale, shift = self.end(torch.tanh(acts[:, :n]) * torch.sigmoid(acts[:, n:])).chunk(2, dim=1)
        return torch.cat([given, changed * scale.exp() + shift], 1), torch.logdet(self.mix.weight.squeeze())

    mix = nn.Conv1d(4, 4, 1, bias=False)
    with torch.no_grad():
        mix.weight.copy_(torch.eye(4)[:, :, None] + 0.1 * mix.weight)
    model = net(forward, mix=mix, start=nn.Conv1d(2, 6, 1), inner=nn.Conv1d(6, 16, 1), end=nn.Conv1d(8, 4, 1))
    return Case(model, vector(4, 9), {"start": 6, "inner": 8})
