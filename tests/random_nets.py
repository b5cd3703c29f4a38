"""Random networks for property tests: images, tokens and vectors through layers, branches, views and attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.zoo.case import ready

Shape = tuple[int, ...]  # without the batch axis: (C, H, W), (N, C) or (C,)
Draw = Callable[[Any], Any]


@dataclass(frozen=True)
class Step:
    """One operation: which values it reads, its layers, and what it does with both."""

    name: str
    sources: tuple[int, ...]
    layers: nn.ModuleList
    apply: Callable[..., Any]


class RandomNet(nn.Module):
    """Runs its steps in order; the heads make the outputs."""

    def __init__(self, steps: Sequence[Step], outputs: Sequence[int]) -> None:
        super().__init__()
        self.steps = steps
        self.outputs = outputs
        self.layers = nn.ModuleList([step.layers for step in steps])

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step, layers in zip(self.steps, self.layers, strict=True):
            assert isinstance(layers, nn.ModuleList)
            made = step.apply(*layers, *[values[i] for i in step.sources])
            values.extend(made if isinstance(made, tuple) else (made,))
        return tuple(values[i] for i in self.outputs)

    def extra_repr(self) -> str:
        """The steps, for the report of a failing example."""
        return "\n".join(f"{step.name} {step.sources} {list(step.layers)}" for step in self.steps) + f"\n-> {self.outputs}"


Made = tuple[list[nn.Module], Callable[..., Any]]
Maker = Callable[[Draw, Shape], Made | None]
UNARY: dict[str, Maker] = {}
LAYERS = ["convolution", "convolution", "grouped_convolution", "linear", "linear", "attention", "normalisation", "to_tokens"]
WIDTHS = st.sampled_from([2, 3, 4, 6, 8, 12])


def unary(maker: Maker) -> Maker:
    """Register a step that reads one value; it makes None where the shape does not suit."""
    UNARY[maker.__name__] = maker
    return maker


def _divisor(draw: Draw, number: int) -> int | None:
    found = [d for d in (2, 3, 4) if number % d == 0 and number > d]
    return draw(st.sampled_from(found)) if found else None


def _is_image(shape: Shape) -> bool:
    return len(shape) == 3


@unary
def convolution(draw: Draw, shape: Shape) -> Made | None:
    if not _is_image(shape):
        return None
    kernel, stride = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2] if shape[1] > 2 else [1]))
    layer = nn.Conv2d(shape[0], draw(WIDTHS), kernel, stride, kernel // 2, bias=draw(st.booleans()))
    return [layer], lambda f, x: f(x)


@unary
def grouped_convolution(draw: Draw, shape: Shape) -> Made | None:
    groups = _divisor(draw, shape[0]) if _is_image(shape) else None
    if groups is None:
        return None
    outputs = groups * draw(st.sampled_from([1, 2, 3]))
    kind = draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]))
    return [kind(shape[0], outputs, 3, padding=1, groups=groups)], lambda f, x: f(x)


@unary
def depthwise_convolution(draw: Draw, shape: Shape) -> Made | None:
    if not _is_image(shape) or shape[0] == 1:
        return None
    layer = nn.Conv2d(shape[0], shape[0] * draw(st.sampled_from([1, 2])), 3, padding=1, groups=shape[0])
    return [layer], lambda f, x: f(x)


@unary
def transposed_convolution(draw: Draw, shape: Shape) -> Made | None:
    return ([nn.ConvTranspose2d(shape[0], draw(WIDTHS), 3, padding=1)], lambda f, x: f(x)) if _is_image(shape) else None


@unary
def linear(draw: Draw, shape: Shape) -> Made | None:
    return None if _is_image(shape) else ([nn.Linear(shape[-1], draw(WIDTHS), bias=draw(st.booleans()))], lambda f, x: f(x))


@unary
def normalisation(draw: Draw, shape: Shape) -> Made | None:
    if len(shape) == 2:
        return [draw(st.sampled_from([nn.LayerNorm, nn.RMSNorm]))(shape[1])], lambda f, x: f(x)
    if len(shape) == 1:
        return (
            ([nn.BatchNorm1d(shape[0])], lambda f, x: f(x))
            if draw(st.booleans())
            else ([nn.LayerNorm(shape[0])], lambda f, x: f(x))
        )
    kinds = [nn.BatchNorm2d(shape[0]), nn.GroupNorm(1, shape[0]), nn.GroupNorm(shape[0], shape[0])]
    groups = _divisor(draw, shape[0])
    kinds += [nn.GroupNorm(groups, shape[0])] if groups else []
    kinds += [nn.InstanceNorm2d(shape[0], affine=True)] if shape[1] * shape[2] > 1 else []
    return [draw(st.sampled_from(kinds))], lambda f, x: f(x)


@unary
def activation(draw: Draw, shape: Shape) -> Made | None:
    return [], draw(
        st.sampled_from([F.relu, F.silu, torch.sigmoid, F.gelu, F.hardswish, lambda x: x.clone().relu_(), lambda x: -x * 0.5])
    )


@unary
def pool(draw: Draw, shape: Shape) -> Made | None:
    if not _is_image(shape) or shape[1] < 4:
        return None
    return [], draw(
        st.sampled_from([lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2), lambda x: F.adaptive_avg_pool2d(x, 2)])
    )


@unary
def upsampling(draw: Draw, shape: Shape) -> Made | None:
    return ([], lambda x: F.interpolate(x, scale_factor=2)) if _is_image(shape) and shape[1] <= 4 else None


@unary
def shuffle(draw: Draw, shape: Shape) -> Made | None:
    groups = _divisor(draw, shape[0]) if _is_image(shape) else None
    if groups is None:
        return None

    def by_views(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)

    return [], draw(st.sampled_from([by_views, lambda x: F.channel_shuffle(x, groups)]))


@unary
def parts(draw: Draw, shape: Shape) -> Made | None:
    """Chunks, splits and slices along the channels."""
    axis = 1 if _is_image(shape) or len(shape) == 1 else 2
    width = shape[axis - 1]
    if width < 4:
        return None
    cut = draw(st.integers(1, width - 1))
    ways: list[Callable[[Tensor], Any]] = [
        lambda x: _both(x.split([cut, width - cut], axis)),
        lambda x: x.narrow(axis, 0, cut),
        lambda x: torch.flip(x, [axis]),
        lambda x: (x[:, :cut], x[:, cut:]) if axis == 1 else (x[..., :cut], x[..., cut:]),
    ]
    ways += [lambda x: _both(x.chunk(2, dim=axis))] if width % 2 == 0 else []
    return [], draw(st.sampled_from(ways))


def _both(parts: Any) -> tuple[Tensor, Tensor]:
    return parts[0], parts[1]


@unary
def channel_padding(draw: Draw, shape: Shape) -> Made | None:
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    return ([], lambda x: F.pad(x, (0, 0, 0, 0, before, after))) if _is_image(shape) else None


@unary
def squeeze_excite(draw: Draw, shape: Shape) -> Made | None:
    if not _is_image(shape):
        return None
    down, up = nn.Conv2d(shape[0], 4, 1), nn.Conv2d(4, shape[0], 1)
    return [down, up], lambda f, g, x: x * g(F.relu(f(x.mean((2, 3), keepdim=True)))).sigmoid()


@unary
def spatial_gate(draw: Draw, shape: Shape) -> Made | None:
    if not _is_image(shape):
        return None
    if draw(st.booleans()):
        return [nn.Conv2d(shape[0], 1, 1)], lambda f, x: x * f(x).sigmoid()
    return [nn.Conv2d(2, 1, 1)], lambda f, x: x * f(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


@unary
def channels_last_block(draw: Draw, shape: Shape) -> Made | None:
    if not _is_image(shape):
        return None
    layers: list[nn.Module] = [nn.LayerNorm(shape[0]), nn.Linear(shape[0], 6), nn.Linear(6, shape[0])]
    return layers, lambda n, f, g, x: x + g(F.gelu(f(n(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)


@unary
def attention(draw: Draw, shape: Shape) -> Made | None:
    if len(shape) != 2:
        return None
    heads, dim = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([2, 4]))
    scale = draw(st.sampled_from([None, 0.5]))
    if draw(st.booleans()):
        separate = [nn.Linear(shape[1], heads * dim) for _ in range(3)]

        def spelled(f: Any, g: Any, h: Any, p: Any, x: Tensor) -> Any:
            b, n, _ = x.shape
            q, k, v = (layer(x).view(b, n, heads, dim).transpose(1, 2) for layer in (f, g, h))
            weights = (q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)).softmax(-1)
            return x + p((weights @ v).transpose(1, 2).flatten(2))

        return [*separate, nn.Linear(heads * dim, shape[1])], spelled

    def fused(f: Any, p: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = f(x).reshape(b, n, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return x + p(y.transpose(1, 2).reshape(b, n, heads * dim))

    return [nn.Linear(shape[1], 3 * heads * dim), nn.Linear(heads * dim, shape[1])], fused


@unary
def to_tokens(draw: Draw, shape: Shape) -> Made | None:
    return ([], lambda x: x.flatten(2).transpose(1, 2)) if _is_image(shape) else None


@unary
def to_vector(draw: Draw, shape: Shape) -> Made | None:
    if len(shape) == 2:
        return [], draw(st.sampled_from([lambda x: x.mean(1), lambda x: x[:, 0], lambda x: x.amax(1)]))
    if len(shape) == 1:
        return None
    small = shape[0] * shape[1] * shape[2] <= 400
    return [], draw(
        st.sampled_from([lambda x: x.mean((2, 3)), *([lambda x: x.flatten(1), lambda x: x.view(x.shape[0], -1)] if small else [])])
    )


@unary
def to_image(draw: Draw, shape: Shape) -> Made | None:
    return ([nn.Linear(shape[0], 16)], lambda f, x: f(x).view(-1, 4, 2, 2)) if len(shape) == 1 else None


BINARY: dict[str, Callable[[Shape, Shape], Callable[[Tensor, Tensor], Tensor] | None]] = {
    "add": lambda a, b: torch.add if a == b else None,
    "mul": lambda a, b: torch.mul if a == b else None,
    "max": lambda a, b: torch.maximum if a == b else None,
    "stack": lambda a, b: (lambda x, y: torch.stack([x, y], 1).sum(1)) if a == b else None,
    "cat": lambda a, b: (lambda x, y: torch.cat([x, y], 1)) if len(a) == len(b) != 2 and a[1:] == b[1:] else None,
    "cat last": lambda a, b: (lambda x, y: torch.cat([x, y], -1)) if len(a) == len(b) == 2 and a[0] == b[0] else None,
    "gate": lambda a, b: (lambda x, y: x * y[:, :, None, None]) if len(a) == 3 and b == a[:1] else None,
}


def _shapes(step: Step, values: Sequence[Tensor]) -> list[Tensor]:
    made = step.apply(*step.layers, *[values[i] for i in step.sources])
    return list(made) if isinstance(made, tuple) else [made]


def _step(draw: Draw, values: Sequence[Tensor]) -> Step | None:
    """A step that suits some of the values; later ones are more likely."""
    shapes = [tuple(v.shape[1:]) for v in values]
    if len(values) > 2 and draw(st.integers(0, 2)) == 0:
        pairs = [
            (name, make, i, j)
            for name, rule in BINARY.items()
            for i in range(1, len(values))
            for j in range(1, len(values))
            if (i != j or name == "cat") and (make := rule(shapes[i], shapes[j])) is not None
        ]
        if pairs:
            name, make, i, j = draw(st.sampled_from(pairs))
            return Step(name, (i, j), nn.ModuleList(), make)
    source = max(draw(st.integers(1, len(values) - 1)), draw(st.integers(1, len(values) - 1)))
    name = draw(st.sampled_from([*sorted(UNARY), *LAYERS]))
    made = UNARY[name](draw, shapes[source])
    return None if made is None else Step(name, (source,), nn.ModuleList(made[0]), made[1])


@st.composite
def networks(draw: Draw, most: int = 12) -> RandomNet:
    """A network of up to ``most`` steps on 8 x 8 images of three channels, with one or two heads."""
    values = [torch.zeros(2, 3, 8, 8)]
    steps = [Step("stem", (0,), nn.ModuleList([nn.Conv2d(3, draw(st.sampled_from([6, 8, 12])), 3, padding=1)]), lambda f, x: f(x))]
    values += _shapes(steps[0], values)
    for _ in range(draw(st.integers(1, most))):
        step = _step(draw, values)
        if step is not None:
            made = _shapes(step, values)
            if all(0 < tensor.numel() <= 4000 for tensor in made):
                steps.append(step)
                values += made
    outputs = []
    used = {source for step in steps for source in step.sources}
    ends = [i for i in range(1, len(values)) if i not in used][-2:]
    for end in ends:
        shape = values[end].shape
        head = nn.Conv2d(shape[1], 2, 1) if len(shape) == 4 else nn.Linear(shape[-1], 2)
        steps.append(Step("head", (end,), nn.ModuleList([head]), lambda f, x: f(x)))
        values += _shapes(steps[-1], values)
        outputs.append(len(values) - 1)
    net = RandomNet(steps, outputs)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    ready(net)
    return net
