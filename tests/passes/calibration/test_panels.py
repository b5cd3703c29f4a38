"""Matrices that lose thin products: rows are what the products leave, in memory and in files, whenever they are taken off."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graphprune.errors import UsageError
from graphprune.passes.calibration.panels import FileRows, Panels, blocks


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("most", [1, 4, 100])
@pytest.mark.parametrize("columns", [7, 0])
def test_rows_are_what_the_products_leave(tmp_path: Path, most: int, columns: int) -> None:
    start = _rand(9, columns)
    in_memory, in_file = Panels(start.clone(), most), Panels(FileRows(tmp_path / "rows", start), most)
    wanted = start.clone()
    for step in range(6):
        before = in_memory[slice(2, 5)]
        kept = before.clone()
        left, right = _rand(9, 1 + step % 2, seed=step), _rand(1 + step % 2, columns, seed=10 + step)
        wanted -= left @ right
        for panels in (in_memory, in_file):
            panels.subtract(left, right)
        assert torch.equal(before, kept), "what was read stays as it was"
        torch.testing.assert_close(in_memory[slice(1, 8)], wanted[1:8], rtol=1e-13, atol=1e-13)
        assert torch.equal(in_memory[slice(0, 9)], in_file[slice(0, 9)])


def test_blocks_are_all_rows_once() -> None:
    assert [row for rows in blocks(torch.Size((5, 2**19))) for row in range(rows.start, rows.stop)] == list(range(5))
    assert len(blocks(torch.Size((5, 2**19)))) == 3


def test_a_full_disk_is_the_users_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(UsageError, match="File too large"):
            FileRows(tmp_path / "rows", _rand(9, 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
