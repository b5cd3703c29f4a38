"""Ridge regression on rows that come batch by batch, for several groups at once."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from graphprune.statistic import Totals, gathered

_FACTOR: Final = 10.0  # by which the damping grows where rounding leaves a matrix indefinite


class SecondMoments:
    """``sum_r (row_r - mean) (row_r - mean)^T`` of rows (groups, rows, elements) that come batch by batch.

    Products are taken in the rows' dtype, float32 at least, and summed in float64. Rows are first shifted by about their mean, so
    that no digits cancel. diagonal: of each element with itself alone.
    """

    def __init__(self, diagonal: bool = False) -> None:
        self.count = 0
        self.diagonal = diagonal

    def add(self, rows: Tensor) -> Tensor:
        """Take in some rows; returns them shifted."""
        rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
        if not self.count:
            self.shift = rows.mean(1, keepdim=True)
            shape = rows.shape[::2] if self.diagonal else (*rows.shape[::2], rows.shape[2])
            self.squares = rows.new_zeros(shape, dtype=torch.float64)  # of shifted rows, as the sums are
            self.sum = rows.new_zeros(rows.shape[::2], dtype=torch.float64)
        rows = rows - self.shift
        self.count += rows.shape[1]
        self.sum += rows.sum(1)
        self.squares += rows.square().sum(1) if self.diagonal else rows.mT @ rows
        return rows

    def centred(self) -> Tensor:
        """The moments, float64 of shape (groups, elements, elements), or (groups, elements) on the diagonal."""
        assert self.count, "no rows were added"
        return self.squares - self._products(self.sum / self.count, self.sum)

    def merge(self) -> None:
        """Take in the rows of all processes of ``torch.distributed``; each has some."""
        shifts = gathered(self.shift.cpu())
        if len(shifts) == 1:
            return
        by = (self.shift - shifts[0].to(self.shift)).squeeze(1).double()
        across = self._products(self.sum, by)
        self.squares += across + (across if self.diagonal else across.mT) + self.count * self._products(by, by)
        self.sum += self.count * by
        totals = Totals({"squares": self.squares, "sum": self.sum, "count": torch.tensor(float(self.count))})
        totals.all_reduce()
        self.shift, self.count = shifts[0].to(self.shift), int(totals.sums["count"])
        self.squares, self.sum = (totals.sums[name].to(self.shift.device) for name in ("squares", "sum"))

    def _products(self, one: Tensor, other: Tensor) -> Tensor:
        return one * other if self.diagonal else one[:, :, None] * other[:, None]


class LeastSquares:
    """``argmin over D, c of sum_r ||y_r - rows_r D - c||^2 + damping * mean(diag H) * ||D||^2``, with H the rows' second moments.

    rows: (groups, rows, inputs); y: (groups, rows, outputs).
    """

    def __init__(self) -> None:
        self._rows, self._y = SecondMoments(), SecondMoments(diagonal=True)
        self._products: Tensor | None = None

    @property
    def count(self) -> int:
        """The number of rows."""
        return self._rows.count

    def add(self, rows: Tensor, y: Tensor) -> None:
        """Take in some rows."""
        rows, y = self._rows.add(rows), self._y.add(y)
        products = (rows.mT @ y).double()
        self._products = products if self._products is None else self._products.add_(products)

    def solve(self, damping: float, intercept: bool) -> tuple[Tensor, Tensor]:
        """D, float64 of shape (groups, inputs, outputs), and c, (groups, outputs), which is 0 without an intercept."""
        h, b, x, y = self._moments(intercept)
        d = torch.cholesky_solve(b, damped_factor(h, damping))
        return d, y - torch.einsum("gk,gko->go", x, d) if intercept else torch.zeros_like(y)

    def error(self, d: Tensor, c: Tensor) -> Tensor:
        """``sum_r (y_r - rows_r D - c)^2`` of each output, float64 of shape (groups, outputs)."""
        # With shifted rows u and v, y - rows D - c = v - u D - e.
        e = c + torch.einsum("gk,gko->go", self._rows.shift[:, 0].double(), d) - self._y.shift[:, 0].double()
        assert self._products is not None
        fit = torch.einsum("gko,gko->go", d, self._rows.squares @ d - 2 * self._products) + self._y.squares
        error: Tensor = fit - 2 * e * (self._y.sum - torch.einsum("gk,gko->go", self._rows.sum, d)) + self.count * e.square()
        return error

    def _moments(self, intercept: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``sum rows rows^T`` and ``sum rows y^T``, centred where there is an intercept; and the means of rows and of y."""
        assert self._products is not None, "no rows were added"
        x, y = self._rows.sum / self.count, self._y.sum / self.count
        h, b = self._rows.centred(), self._products - self.count * x[:, :, None] * y[:, None]
        x, y = (mean + moments.shift[:, 0].double() for mean, moments in ((x, self._rows), (y, self._y)))
        if not intercept:
            h = h + self.count * x[:, :, None] * x[:, None]
            b = b + self.count * x[:, :, None] * y[:, None]
        return h, b, x, y


def damped_factor(h: Tensor, damping: float) -> Tensor:
    """The Cholesky factor of ``h + damping * mean(diag h) * I``, for each of (groups, inputs, inputs).

    More damping where rounding leaves that indefinite, in steps of 10; the identity for a matrix of zeros.
    """
    scale = h.diagonal(dim1=1, dim2=2).mean(1)
    while True:
        damped = h.clone()
        damped.diagonal(dim1=1, dim2=2).add_(torch.where(scale > 0, damping * scale, 1.0).unsqueeze(1))
        found = torch.linalg.cholesky_ex(damped)
        if not bool(found.info.any()):
            return torch.as_tensor(found.L)
        damping = max(damping, float(torch.finfo(h.dtype).eps)) * _FACTOR
