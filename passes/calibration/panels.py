"""Large matrices that lose one thin product after another, and of which few rows are read in between: in memory, or in files."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from graphprune.files import explained

_BLOCK: Final = 2**20  # elements that are changed at once


class Rows(Protocol):
    """A matrix whose rows are read and written."""

    shape: torch.Size

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Some rows."""

    def __setitem__(self, rows: slice, values: Tensor, /) -> None:
        """Write some rows."""


class FileRows:
    """A float64 matrix in a file of its own, which is read and written row by row.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = FileRows(Path(folder) / "a", torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double())
    ...     rows[0:1] = rows[1:2]
    ...     rows[0:2].tolist()
    [[3.0, 4.0], [3.0, 4.0]]
    """

    def __init__(self, path: Path, values: Tensor) -> None:
        self.shape, self._device, self._path = values.shape, values.device, path
        with explained(path, values.nbytes), path.open("xb") as file:
            file.truncate(values.nbytes)
        for rows in blocks(self.shape):
            self[rows] = values[rows]

    def __getitem__(self, rows: slice, /) -> Tensor:
        begin, end, _ = rows.indices(self.shape[0])
        width = self.shape[1]
        found = np.fromfile(self._path, np.float64, (end - begin) * width, offset=8 * begin * width)
        return torch.from_numpy(found).view(end - begin, width).to(self._device)

    def __setitem__(self, rows: slice, values: Tensor, /) -> None:
        with explained(self._path, values.nbytes), self._path.open("r+b") as file:
            file.seek(8 * rows.start * self.shape[1])
            file.write(values.contiguous().numpy(force=True).data)


def blocks(shape: torch.Size) -> list[slice]:
    """Some rows of a matrix after the other, of a few MB each."""
    size = max(1, _BLOCK // max(1, shape[1]))
    return [slice(begin, min(begin + size, shape[0])) for begin in range(0, shape[0], size)]


class Panels:
    """``matrix - sum of left_i @ right_i``, in float64. The products are taken off together, before they are more than ``most``
    wide: so the matrix is read and written as a whole only now and then, and thin products become one."""

    def __init__(self, matrix: Rows, most: int = 1) -> None:
        self._matrix, self.most = matrix, most
        self._left: Tensor | None = None  # (rows, most), of which the first columns are in use
        self._right: Tensor | None = None
        self._used = 0

    def __len__(self) -> int:
        """The number of rows."""
        return self._matrix.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """Rows as they are now."""
        found = self._matrix[rows]
        if not self._used:
            return found.clone()
        assert self._left is not None and self._right is not None
        return found - self._left[rows, : self._used] @ self._right[: self._used]

    def subtract(self, left: Tensor, right: Tensor) -> None:
        """Take off the product of (rows, k) and (k, columns)."""
        wide = left.shape[1]
        if self._used + wide > self.most:
            self._settle()
        if self._left is None or self._right is None:
            size = max(self.most, wide)
            self._left, self._right = left.new_empty(len(left), size), right.new_empty(size, right.shape[1])
        into = slice(self._used, self._used + wide)
        self._left[:, into], self._right[into] = left, right
        self._used += wide

    def _settle(self) -> None:
        if self._left is not None and self._right is not None:
            for rows in blocks(self._matrix.shape):
                self._matrix[rows] = self._matrix[rows] - self._left[rows, : self._used] @ self._right[: self._used]
        self._left, self._right, self._used = None, None, 0
