"""Shared by all tests: one torch thread, a fixed seed, and global settings left as they were found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _quiet_and_repeatable() -> Iterator[None]:
    """Each test starts from the same seed and a single thread, and may not leave other global settings behind."""
    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    left = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    assert left == (dtype, grad), "the test, or what it called, changed a global setting of torch"
