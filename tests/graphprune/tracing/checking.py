"""Functions that look at the values of what a layer gives, as forwards do. (pytest rewrites the assertions of test files.)"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def if_raise(h: Tensor) -> None:
    if torch.isnan(h).any():
        raise ValueError(f"not a number in {tuple(h.shape)}")


def assert_(h: Tensor) -> None:
    assert (h < 1e9).all(), "too large"


def assert_not(h: Tensor) -> None:
    assert not h.isinf().any()


def item(h: Tensor) -> None:
    if not torch.isfinite(h).all().item():
        raise FloatingPointError


def is_equal(h: Tensor) -> None:
    if torch.equal(h, h + 1) or torch.allclose(h, h - 1):
        raise RuntimeError("equal")


def several(h: Tensor) -> None:
    assert h.shape[1] == 8 and (h < 1e9).all() and not (h < -1e9).any(), "out of bounds"


def under_with(h: Tensor) -> None:
    with torch.no_grad():
        assert (h < 1e9).all()


def in_a_loop(h: Tensor) -> None:
    for row in h.unbind(1):
        if row.isnan().any():
            raise ValueError


def of_torch(h: Tensor) -> None:
    torch._check_tensor_all(h < 1e9, lambda: "too large")


def branch(h: Tensor) -> None:
    if (h > 0).any():
        h.data.zero_()


def caught(h: Tensor) -> None:
    try:
        assert (h > 0).all()
    except AssertionError:
        h.data.zero_()


def caught_further_out(h: Tensor) -> None:
    try:
        under_finally(h)
    except AssertionError:
        h.data.zero_()


def under_finally(h: Tensor) -> None:
    try:
        assert_(h)
    finally:
        len(h)


def raised_again(h: Tensor) -> None:
    try:
        assert_(h)
    except AssertionError as error:
        raise ValueError("too large") from error


def left_in_finally(h: Tensor) -> Any:
    try:
        assert_(h)
    finally:
        if h.shape[0] > 3:
            return h.data.zero_()  # noqa: B012


def raised_again_or_not(h: Tensor) -> None:
    try:
        try:
            assert_(h)
        finally:
            len(h)
    except AssertionError:
        if h.shape[0] == 3:
            raise
        h.data.zero_()


def of_torch_caught(h: Tensor) -> None:
    try:
        of_torch(h)
    except RuntimeError:
        h.data.zero_()


def number(h: Tensor) -> Any:
    return torch.zeros(int(h.abs().max().item()) + 1)


def number_caught(h: Tensor) -> None:
    try:
        float(h.max())
    except (RuntimeError, NotImplementedError):
        h.data.zero_()
