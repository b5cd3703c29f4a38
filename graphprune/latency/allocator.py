"""A steady allocator while models are timed on the CPU.

glibc gives memory that a model frees back to the system when it lies at the end of the heap, and the next call pays for getting it
again, page by page. Whether it does depends on what was allocated before, and makes up to half of a small model's time. So while
times are taken, what is freed stays with the process, as with the allocators that servers use.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

_TRIM_THRESHOLD: Final = -1  # bytes at the end of the heap that are kept
_MMAP_MAX: Final = -4  # allocations that get pages of their own, which go back when they are freed
_ALL: Final = 2**31 - 1
_USUAL: Final = {_TRIM_THRESHOLD: 64 << 20, _MMAP_MAX: 65536}  # what glibc comes to by itself once large tensors were freed


@contextmanager
def steady_allocator() -> Iterator[None]:
    """Within, freed memory stays with the process; afterwards it goes back. Does nothing without glibc."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, _ALL)
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library, where it is glibc."""
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
