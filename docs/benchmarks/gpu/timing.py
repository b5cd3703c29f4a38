"""Times on a GPU, and the two ceilings: how fast memory is read, and how fast matrices are multiplied."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.testing import do_bench

CACHE = 2**28  # bytes: several times the second-level cache


_READ = 2**32  # bytes: what the read ceiling is measured on, so that the start of a graph weighs no more in one than in the other
_CALLS = 64  # in a graph for each input, at most


def device_seconds(call: Callable[..., Any], inputs: list[tuple[Any, ...]], replays: int = 20) -> float:
    """Median time of one call on the device, without the gaps between launches: a graph of calls on different inputs, replayed."""
    nbytes = sum(tensor.nbytes for arguments in inputs for tensor in arguments)
    inputs = inputs * max(1, min(_CALLS, _READ // nbytes))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call(*inputs[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in inputs:
            call(*arguments)
    graph.replay()
    times = []
    for _ in range(replays):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3 / len(inputs))
    return statistics.median(times)


def called_seconds(call: Callable[..., Any], arguments: tuple[Any, ...], calls: int = 50) -> float:
    """Median over five runs of the time of one call among many in a row, by the clock: launches and Python included."""
    times = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call(*arguments)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times[1:])


def event_seconds(call: Callable[[], Any], rep: int = 100) -> float:
    """Median time of one call between two events, the cache flushed before each."""
    return float(do_bench(call, warmup=10, rep=rep, return_mode="median")) / 1e3


def peak_bytes(call: Callable[[], Any]) -> int:
    """Memory that a call takes at most, beyond what is there already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@triton.jit
def _read_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """Maxima of BLOCK * STEPS values each: as little work as reading allows."""
    first = tl.program_id(0).to(tl.int64) * BLOCK * STEPS
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    for step in tl.static_range(STEPS):
        largest = tl.maximum(largest, tl.load(x_ptr + first + step * BLOCK + tl.arange(0, BLOCK)))
    tl.store(out_ptr + tl.program_id(0), tl.max(largest, axis=0))


def ceilings() -> dict[str, float]:
    """Bytes per second read and copied, and operations per second of matrix products, on random data."""
    found = bandwidths()
    for name, dtype, tf32 in (("float16", torch.float16, False), ("tf32", torch.float32, True), ("float32", torch.float32, False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        found[f"matmul_{name}"] = 2 * 8192**3 / device_seconds(torch.matmul, [(a, a.clone())], replays=8)
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def bandwidths() -> dict[str, float]:
    """Bytes per second, read and copied; the best of several ways."""
    x = torch.randn(2**30, device="cuda")
    other, out = torch.empty_like(x), torch.empty(2**30 // (4096 * 4), device="cuda")

    def read(x: Tensor) -> None:
        _read_kernel[(len(out),)](x, out, BLOCK=4096, STEPS=4, num_warps=8)

    def multiply(x: Tensor) -> None:
        torch.mul(x, 1.0, out=other)

    reads = [device_seconds(call, [(x,)]) for call in (read, torch.sum, torch.amax)]
    copies = [device_seconds(multiply, [(x,)]), event_seconds(lambda: other.copy_(x))]
    return {"read_bytes": x.nbytes / min(reads), "copy_bytes": 2 * x.nbytes / min(copies)}
