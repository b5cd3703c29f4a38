"""Calibration where memory is short: from the start again, on batches half as large."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from graphprune.errors import MemoryShortError

T = TypeVar("T")


def within_memory(run: Callable[[int | None], T], why_whole: Callable[[], str]) -> T:
    """The result of ``run(size)``, on batches of at most ``size`` samples: whole ones first, then half as many each time that
    memory is out.

    run: measures everything anew, so that nothing of an attempt that failed counts. why_whole: a sentence where a batch must not be
        split, else nothing; asked once, with the memory of the first attempt given back.

    Raises MemoryShortError where a batch must stay whole, or even one sample is too much.
    """
    size: int | None = None
    first = 0
    while True:
        try:
            return run(size)
        except MemoryShortError as error:
            short = error.with_traceback(None)
        short.__cause__ = short.__context__ = None  # their frames hold activations
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        first = first or short.samples
        refused = "One sample is too much." if short.samples < 2 else why_whole() if size is None else ""
        if refused:
            tried = f" Batches of {first} samples were tried first." if first > short.samples else ""
            raise MemoryShortError(f"{str(short).partition(chr(10))[0]} {refused}{tried}", short.samples)
        size = short.samples // 2
