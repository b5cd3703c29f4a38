"""What the tests of kernels share: tolerances, references in float64 written as plain as can be, layouts and poison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

# Relative to the sum of absolute terms. Half precision is widened before the arithmetic, so its rounding is float32's.
RTOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}
# Of distances, relative to the length of the longest row: 11 bits for the values, if not told otherwise as good as float32.
RTOL_HIGH = 1e-3
HALVES_AND_SINGLE = (torch.float32, torch.float16, torch.bfloat16)

SUMS = ("sum", "abs_sum", "square_sum", "fourth_sum", "taylor_abs")


def attention(a: Tensor, g: Tensor | None = None, tau: float | None = None) -> dict[str, Tensor]:
    """Statistics of ``[N, C, *spatial]`` in float64, one channel at a time; ``scale:NAME`` is the sum of absolute terms."""
    found: dict[str, list[Tensor]] = {}

    def note(name: str, value: Tensor) -> None:
        found.setdefault(name, []).append(value)

    for channel in range(a.shape[1]):
        x = a[:, channel].double()
        note("sum", x.sum())
        note("scale:sum", x.abs().sum())
        for power, name in ((1, "abs_sum"), (2, "square_sum"), (4, "fourth_sum")):
            note(name, (x.abs() ** power).sum())
        note("abs_max", x.abs().max() if x.numel() else x.new_zeros(()))
        note("nonzero", (x != 0).sum())
        if g is not None:
            # Rounded as the kernels do it: two halves make a product that float32 holds, two floats do not.
            term = (a[:, channel].to(_wide(a)) * g[:, channel].to(_wide(a))).double()
            note("taylor", term.flatten(1).sum(1) if term.ndim > 1 else term)
            note("scale:taylor", term.abs().flatten(1).sum(1) if term.ndim > 1 else term.abs())
            note("taylor_abs", term.abs().sum())
            if tau is not None:
                note("indicator", (term.abs() > tau).sum(0))
    result = {name: torch.stack(values) for name, values in found.items()}
    return {name: value.T if name.endswith("taylor") else value for name, value in result.items()}


def assert_attention(found: tuple[Tensor | None, ...], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Counts and maxima exactly, sums within the tolerance of the dtype."""
    names = ("sum", "abs_sum", "square_sum", "fourth_sum", "abs_max", "nonzero", "taylor", "taylor_abs", "indicator")
    for name, value in zip(names, found, strict=True):
        if name not in expected:
            assert value is None, name
            continue
        assert value is not None, name
        wanted = expected[name]
        assert value.shape == wanted.shape, name
        if name in ("nonzero", "indicator", "abs_max"):
            assert torch.equal(value.double(), wanted.double()), name
        else:
            scale = expected.get(f"scale:{name}", wanted)
            assert bool(((value.double() - wanted).abs() <= RTOL[dtype] * scale).all()), name


def distances(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean and cosine distances ``[N, N]`` in float64, one pair at a time; inf and nan on the diagonal."""
    rows = matrix.double().flatten(1)
    euclidean, cosine = rows.new_full((len(rows), len(rows)), torch.inf), rows.new_full((len(rows), len(rows)), torch.nan)
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            if i != j:
                both = float(x.norm() * y.norm())
                euclidean[i, j] = (x - y).norm()
                cosine[i, j] = 1 - float(x @ y) / both if both else 1.0
    return euclidean, cosine


def assert_similarity(
    found: tuple[Tensor, ...], euclidean: Tensor, cosine: Tensor, scale: float, dtype: torch.dtype, rtol: float | None = None
) -> None:
    """Results of one matrix against ``distances``; scale is the length of its longest row."""
    mean, mean_cosine, neighbour, nearest = (value.to(euclidean.device) for value in found)
    others = len(euclidean) - 1
    loose, exact = rtol or RTOL[dtype], RTOL[dtype]
    finite = torch.where(euclidean.isinf(), 0.0, euclidean)
    assert bool(((mean.double() - finite.sum(1) / others).abs() <= loose * scale).all())
    assert bool(((mean_cosine.double() - cosine.nansum(1) / others).abs() <= exact * 10).all())
    assert neighbour.dtype == torch.int64 and bool((neighbour >= 0).all()) and bool((neighbour <= others).all())
    chosen = euclidean.gather(1, neighbour[:, None])[:, 0]
    assert bool((chosen - euclidean.amin(1) <= loose * scale).all()), "a row that is not nearest, nor as near"
    assert bool(((nearest.double() - chosen).abs() <= exact * scale).all()), "the distance is not that to the neighbour"


def layouts(a: Tensor) -> dict[str, Tensor]:
    """The values of ``[N, C, H, W]`` in every kind of layout."""
    n, c, h, w = a.shape
    padded = a.new_full((n, c, h + 2, w + 1), torch.nan)
    padded[:, :, 1:-1, 1:] = a
    strided = a.new_full((n, c, h, 2 * w), torch.nan)
    strided[..., ::2] = a
    rows = a.new_full((n, h + 1, w, c), torch.nan)
    rows[:, 1:] = a.permute(0, 2, 3, 1)
    return {
        "contiguous": a.contiguous(),
        "channels_last": a.contiguous(memory_format=torch.channels_last),
        "padded": padded[:, :, 1:-1, 1:],
        "strided": strided[..., ::2],
        "channels_last, padded": rows[:, 1:].permute(0, 3, 1, 2),
        "transposed": a.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    }


def _wide(a: Tensor) -> torch.dtype:
    return torch.promote_types(a.dtype, torch.float32)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN, or the lowest integer: a result that nobody wrote cannot pass."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)

        return made

    with mock.patch("torch.empty", poison(torch.empty)), mock.patch("torch.empty_like", poison(torch.empty_like)):
        yield
