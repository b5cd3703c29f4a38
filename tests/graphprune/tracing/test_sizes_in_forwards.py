"""Sizes in forwards: however a forward computes with them, the captured and the pruned model take other sizes as it does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graphprune.tracing.forwards import Forward, check, double
from tests.zoo.case import conv, net

CASES: dict[str, Forward] = {}


def images(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A case of two convolutions with the forward between them, at other batch sizes and resolutions."""
    CASES[forward.__name__] = Forward(
        lambda self, x: self.b(forward(self.a(x))),
        lambda: {"a": conv(3, 6), "b": conv(6, 2)},
        double(2, 3, 8, 8),
        (double(3, 3, 8, 8), double(1, 3, 12, 16)),
    )
    return forward


def tokens(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A case of two linear layers with the forward between them, at other batch sizes and lengths."""
    CASES[forward.__name__] = Forward(
        lambda self, x: self.b(forward(self.a(x))),
        lambda: {"a": nn.Linear(4, 6), "b": nn.Linear(6, 2)},
        double(2, 9, 4),
        (double(3, 9, 4), double(1, 16, 4)),
    )
    return forward


@images
def unpacked_shape(x: Tensor) -> Any:
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2)


@images
def star_shape(x: Tensor) -> Any:
    return x.flatten(2).view(*x.shape[:2], *x.shape[2:])


@tokens
def numbers_of_numpy(x: Tensor) -> Any:
    """As codecs compute the hop of their strides: the code of the graph has no numpy."""
    hop: Any = np.prod([2, 2])
    x = F.pad(x, (0, 0, 0, math.ceil(x.shape[1] / hop) * hop - x.shape[1]))
    return x.unflatten(1, (x.shape[1] // hop, hop)).mean(np.int64(2)) * np.float64(0.5)


@tokens
def constants_of_numpy(y: Tensor) -> Any:
    return (y / np.sqrt(6) * np.float32(2)).clamp(max=np.log(1e4))


_ORDER, _WAVE = np.array([1, 0, 1]), np.linspace(0.0, 1.0, 6)


@tokens
def arrays_of_numpy(y: Tensor) -> Any:
    """As indices, and as data: they are constants of the graph."""
    return y + y[:, :2][:, _ORDER].sum(1, keepdim=True) * torch.from_numpy(_WAVE)


@tokens
def sliced_shape(x: Tensor) -> Any:
    return x.reshape(-1, x.shape[-1]).view(*x.shape[:-1], -1)


@tokens
def sliced_shape_as_a_size(x: Tensor) -> Any:
    return x + torch.zeros(x.shape[:-1] + x.shape[:0] + torch.Size([1]), dtype=x.dtype)


@tokens
def size_method(x: Tensor) -> Any:
    return x.view(x.size(0) * x.size(1), x.size(-1)).view(x.size())


@images
def numel(x: Tensor) -> Any:
    return x * (x.numel() / x.shape[0] / 100)


@images
def numel_of_a_shape(x: Tensor) -> Any:
    return x * (x.shape.numel() // x.shape[1])


@images
def numel_of_part_of_a_shape(x: Tensor) -> Any:
    return x * x.shape[2:].numel()


@tokens
def length(x: Tensor) -> Any:
    return x / len(x)


@tokens
def length_in_view(x: Tensor) -> Any:
    return x.reshape(len(x), -1).view(len(x), -1, x.shape[2])


@tokens
def prod(x: Tensor) -> Any:
    return x * math.prod(x.shape[:2])


@tokens
def sum_of_sizes(x: Tensor) -> Any:
    return x * sum(x.shape[:2])


@images
def integer_division(x: Tensor) -> Any:
    return F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2))


@images
def remainder(x: Tensor) -> Any:
    return F.pad(x, (0, (5 - x.shape[3] % 5) % 5, 0, -x.shape[2] % 5))


@images
def division_with_remainder(x: Tensor) -> Any:
    half, rest = divmod(x.shape[2], 3)
    return F.pad(x, (0, half, 0, rest))


@images
def int_of_a_product(x: Tensor) -> Any:
    return F.interpolate(x, size=(int(x.shape[2] * 0.5), int(x.shape[3] * 0.5)))


@images
def int_of_a_size(x: Tensor) -> Any:
    return x.reshape(int(x.shape[0]), -1, int(x.size(2)), int(x.shape[3])) * int(x.shape[2])


@tokens
def int_of_a_root(x: Tensor) -> Any:
    side = int(x.shape[1] ** 0.5)
    return x.transpose(1, 2).reshape(x.shape[0], -1, side, side).flatten(2).transpose(1, 2)


@tokens
def int_of_math_sqrt(x: Tensor) -> Any:
    side = int(math.sqrt(x.shape[1]))
    return x.view(x.shape[0], side, side, -1).transpose(1, 2).flatten(1, 2)


@tokens
def math_sqrt(x: Tensor) -> Any:
    return x / math.sqrt(x.shape[1])


@tokens
def math_sqrt_of_a_quotient(x: Tensor) -> Any:
    return x / math.sqrt(x.shape[1] / 2)


@tokens
def logarithm(x: Tensor) -> Any:
    return x * math.log(x.shape[1]) + math.log2(x.shape[1] / 3)


@images
def ceiling_and_floor(x: Tensor) -> Any:
    return F.interpolate(x, size=(math.ceil(x.shape[2] / 3), math.floor(x.shape[3] / 3)))


@images
def rounding(x: Tensor) -> Any:
    return F.interpolate(x, size=(round(x.shape[2] * 0.7), round(x.shape[3] * 0.3)))


@tokens
def float_of_a_size(x: Tensor) -> Any:
    return x / float(x.shape[1])


@tokens
def power_of_a_size(x: Tensor) -> Any:
    return x * x.shape[1] ** -0.5


@tokens
def smaller(x: Tensor) -> Any:
    return x[:, : min(x.shape[1], 12)]


@tokens
def larger(x: Tensor) -> Any:
    return F.pad(x, (0, 0, 0, max(x.shape[1], 12) - x.shape[1]))


@images
def smallest_of_a_shape(x: Tensor) -> Any:
    return x * min(x.shape[2:]) + max(x.shape[0], *x.shape[2:])


@tokens
def bits(x: Tensor) -> Any:
    return x * (x.shape[1] >> 1) + (x.shape[1] & 3) + (x.shape[1] << 2) + (x.shape[1] | 1) + (x.shape[1] ^ 5)


@tokens
def signs(x: Tensor) -> Any:
    return x[:, -abs(-x.shape[1] + 1) :] * (+x.shape[0])


@tokens
def zeros_and_arange(x: Tensor) -> Any:
    mask = torch.zeros(x.shape[0], x.shape[1], 1, dtype=x.dtype)
    return x + mask + torch.arange(x.shape[1], dtype=x.dtype)[:, None]


@tokens
def new_tensors(x: Tensor) -> Any:
    y = x.new_zeros(x.shape[0], x.shape[1], 1) + x.new_full((x.shape[1], 1), 2) + x.new_ones((1, 1))
    return x + y + torch.full_like(x, 3) + torch.zeros_like(x) + torch.ones(x.shape[:2], dtype=x.dtype).unsqueeze(-1)


@tokens
def expanded(x: Tensor) -> Any:
    mask = torch.ones(1, 1, 1, dtype=x.dtype).expand(x.shape[0], x.shape[1], -1)
    return torch.cat([x, mask.expand(-1, -1, x.shape[2])], 1)


@tokens
def repeated(x: Tensor) -> Any:
    return x + torch.arange(3.0, dtype=x.dtype).mean().view(1, 1, 1).repeat(x.shape[0], x.shape[1], 1)


@tokens
def last_index(x: Tensor) -> Any:
    return x[:, x.shape[1] - 1] + x[torch.arange(x.shape[0]), -1]


@tokens
def causal_mask(x: Tensor) -> Any:
    n = x.shape[1]
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    scores = (x @ x.transpose(1, 2)).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ x


@tokens
def split_in_halves(x: Tensor) -> Any:
    left, right = x.split([x.shape[1] // 2, x.shape[1] - x.shape[1] // 2], 1)
    return torch.cat([right, left], 1)


@tokens
def rolled(x: Tensor) -> Any:
    return x.roll(x.shape[1] // 2, 1).flip(1).narrow(1, 1, x.shape[1] - 1)


@tokens
def formatted(x: Tensor) -> Any:
    name = f"{x.shape[1]}x{x.shape[2]:>4} {x.shape} %d %s" % (x.shape[0], x.size())
    return x * (len(name) > 3)


@tokens
def asserted(x: Tensor) -> Any:
    assert x.dim() == 3 and x.shape[2] == 6, f"wrong shape {x.shape}"
    torch._assert(x.shape[1] > 1, "too short")
    if x.shape[0] < 1 or x.ndim != 3 or not x.is_floating_point():
        raise ValueError(x.shape)
    return x


@tokens
def kept_in_containers(x: Tensor) -> Any:
    sizes: dict[str, Any] = {"n": x.shape[0], "rest": list(x.shape[1:])}
    return x.reshape(-1, 6).reshape(sizes["n"], *sizes["rest"])


@images
def torch_size(x: Tensor) -> Any:
    return x.flatten(2).reshape(torch.Size([x.shape[0], x.shape[1], x.shape[2], x.shape[3]]))


@images
def shape_as_a_list(x: Tensor) -> Any:
    shape = list(x.shape)
    shape[1] = 1
    return x + torch.zeros(shape, dtype=x.dtype)


@images
def window_partition(x: Tensor) -> Any:
    n, c, h, w = x.size()
    x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).contiguous().view(-1, 4, 4, c)
    x = x * torch.arange(4, dtype=x.dtype).view(4, 1, 1)
    count = int(x.shape[0] / (h * w / 4 / 4))
    return x.view(count, h // 4, w // 4, 4, 4, -1).permute(0, 5, 1, 3, 2, 4).reshape(count, -1, h, w)


@images
def size_of_another_tensor(x: Tensor) -> Any:
    y = F.max_pool2d(x, 2)
    return x + F.interpolate(y, size=x.shape[2:]) + F.interpolate(y, size=x.size()[-2:], mode="bilinear")


@images
def grid(x: Tensor) -> Any:
    ys, xs = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
    return x + torch.stack([ys, xs], 0).sum(0)


@images
def linspace(x: Tensor) -> Any:
    return x + torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)


@tokens
def fixed_embedding_table(x: Tensor) -> Any:
    table = torch.arange(100, dtype=x.dtype).view(100, 1) / 7
    return x + table[: x.shape[1]]


@tokens
def interpolated_table(x: Tensor) -> Any:
    table = torch.arange(10, dtype=x.dtype).view(1, 1, 10)
    return x + F.interpolate(table, size=x.shape[1], mode="linear").transpose(1, 2)


@tokens
def float_times_a_size(x: Tensor) -> Any:
    return x * (0.5 * x.shape[1]) + 1.0 / x.shape[0] - (2.5 - x.shape[1]) % 1.5


@tokens
def sizes_as_data(x: Tensor) -> Any:
    sizes = torch.tensor(x.shape[:2])
    return x * sizes.prod() + torch.tensor([x.shape[1], 3]).sum() + torch.as_tensor(x.shape[1]) + torch.tensor(float(x.shape[0]))


@pytest.mark.parametrize("name", CASES)
def test_other_sizes(name: str) -> None:
    case = CASES[name]
    check(case.model(), case.inputs, *case.others, groups=case.groups)


def test_settings_of_modules_times_sizes() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        sizes = [int(self.ratio * size) for size in y.shape[2:]]
        return self.b(F.interpolate(y, size=sizes) * (self.table["scale"] * x.shape[0]))

    model = net(forward, a=conv(3, 6), b=conv(6, 2), ratio=0.5, table={"scale": 0.25})
    check(model, double(2, 3, 8, 8), double(1, 3, 12, 16))
