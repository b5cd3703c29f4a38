"""Ridge regression on rows that come batch by batch, for several groups at once."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_FACTOR: Final = 10.0  # by which the damping grows where rounding leaves a matrix indefinite


class LeastSquares:
    """``argmin over D, c of sum_r ||y_r - rows_r D - c||^2 + damping * mean(diag H) * ||D||^2``, with H the rows' second moments.

    rows: (groups, rows, inputs); y: (groups, rows, outputs). Products are taken in the rows' dtype, float32 at least, and summed
    in float64. Rows and y are first shifted by about their mean, so that no digits cancel where H is centred.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shifts: tuple[Tensor, Tensor] | None = None

    def add(self, rows: Tensor, y: Tensor) -> None:
        """Take in some rows."""
        if rows.dtype not in (torch.float32, torch.float64):
            rows, y = rows.float(), y.float()
        if self._shifts is None:
            self._shifts = rows.mean(1, keepdim=True), y.mean(1, keepdim=True)
            groups, inputs, outputs, fresh = len(rows), rows.shape[2], y.shape[2], rows.new_zeros((), dtype=torch.float64)
            self._h, self._b = fresh.new_zeros(groups, inputs, inputs), fresh.new_zeros(groups, inputs, outputs)
            self._x, self._y = fresh.new_zeros(groups, inputs), fresh.new_zeros(groups, outputs)
            self._square = fresh.new_zeros(groups, outputs)
        rows, y = rows - self._shifts[0], y - self._shifts[1]
        self.count += rows.shape[1]
        self._h += rows.mT @ rows
        self._b += rows.mT @ y
        self._x += rows.sum(1)
        self._y += y.sum(1)
        self._square += y.square().sum(1)

    def solve(self, damping: float, intercept: bool) -> tuple[Tensor, Tensor]:
        """D, float64 of shape (groups, inputs, outputs), and c, (groups, outputs), which is 0 without an intercept."""
        h, b, x, y = self.moments(intercept)
        d = torch.cholesky_solve(b, damped_factor(h, damping))
        return d, y - torch.einsum("gk,gko->go", x, d) if intercept else torch.zeros_like(y)

    def error(self, d: Tensor, c: Tensor) -> Tensor:
        """``sum_r (y_r - rows_r D - c)^2`` of each output, float64 of shape (groups, outputs)."""
        assert self._shifts is not None
        # With shifted rows u and v, y - rows D - c = v - u D - e.
        e = c + torch.einsum("gk,gko->go", self._shifts[0][:, 0].double(), d) - self._shifts[1][:, 0].double()
        fit = torch.einsum("gko,gko->go", d, self._h @ d - 2 * self._b) + self._square
        error: Tensor = fit - 2 * e * (self._y - torch.einsum("gk,gko->go", self._x, d)) + self.count * e.square()
        return error

    def spread(self) -> Tensor:
        """``sum_r (y_r - mean)^2`` of each output, float64 of shape (groups, outputs)."""
        return (self._square - self._y.square() / self.count).clamp_min(0)

    def moments(self, intercept: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``sum rows rows^T`` and ``sum rows y^T``, centred where there is an intercept; and the means of rows and of y."""
        assert self._shifts is not None, "no rows were added"
        u, v = (shift[:, 0].double() for shift in self._shifts)
        x, y = self._x / self.count, self._y / self.count
        h = self._h - self.count * x[:, :, None] * x[:, None]
        b = self._b - self.count * x[:, :, None] * y[:, None]
        x, y = x + u, y + v
        if not intercept:
            h = h + self.count * x[:, :, None] * x[:, None]
            b = b + self.count * x[:, :, None] * y[:, None]
        return h, b, x, y


def damped_factor(h: Tensor, damping: float) -> Tensor:
    """The Cholesky factor of ``h + damping * mean(diag h) * I``, for each of (groups, inputs, inputs).

    More damping where rounding leaves that indefinite, in steps of 10; the identity for a matrix of zeros.
    """
    scale = h.diagonal(dim1=1, dim2=2).mean(1)
    identity = torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
    while True:
        ridge = torch.where(scale > 0, damping * scale, 1.0)
        found = torch.linalg.cholesky_ex(h + ridge[:, None, None] * identity)
        if not bool(found.info.any()):
            return torch.as_tensor(found.L)
        damping = max(damping, float(torch.finfo(h.dtype).eps)) * _FACTOR
