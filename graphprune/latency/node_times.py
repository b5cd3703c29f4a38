"""One model timed node by node. The times of a layer at its lengths are what other widths and models are predicted from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any, Final

import torch
from torch import fx
from torch.fx.node import Target

_CALLS: Final = ("call_module", "call_function", "call_method")
_WARM_UP: Final = 2


class _Timing(fx.Interpreter):
    """Runs a graph, and measures each call of it by ``measure``."""

    def __init__(self, module: fx.GraphModule, measure: Callable[[str, Callable[[], Any]], Any]) -> None:
        super().__init__(module)
        self._measure = measure

    def run_node(self, node: fx.Node) -> Any:
        """The node's value; arguments are looked up before the clock runs."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.op not in _CALLS:
            return getattr(self, node.op)(node.target, args, kwargs)
        return self._measure(node.name, self._call(node.op, node.target, args, kwargs))

    def _call(self, op: str, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        if op == "call_module":
            function: Any = self.fetch_attr(str(target))
        elif op == "call_method":
            function, args = getattr(args[0], str(target)), args[1:]
        else:
            function = target
        return lambda: function(*args, **kwargs)


def cpu_node_times(
    module: fx.GraphModule, arguments: Sequence[Any], runs: int, now: Callable[[], float] = perf_counter
) -> dict[str, float]:
    """Median milliseconds of each call, less what measuring nothing takes. now: reads the clock, in seconds."""
    seconds: dict[str, list[float]] = {}

    def measure(name: str, call: Callable[[], Any]) -> Any:
        begin = now()
        result = call()
        seconds.setdefault(name, []).append(now() - begin)
        return result

    for _ in range(_WARM_UP):
        _Timing(module, measure).run(*arguments)
    seconds.clear()
    for _ in range(runs):
        _Timing(module, measure).run(*arguments)
    nothing: list[float] = []
    for _ in range(99):
        begin = now()
        _nothing()
        nothing.append(now() - begin)
    least = median(nothing)
    return {name: max(0.0, median(times) - least) * 1000 for name, times in seconds.items()}


def _nothing() -> None:
    """What the measurement of no work calls."""


def cuda_node_times(module: fx.GraphModule, arguments: Sequence[Any], runs: int) -> dict[str, float]:
    """Milliseconds of each call's kernels, replayed as a CUDA graph on the inputs that it got."""
    found: dict[str, float] = {}

    def measure(name: str, call: Callable[[], Any]) -> Any:
        result = call()  # first, since a call that works in place changes what the replays read
        found[name] = _event_ms(replayed(call), max(20, runs))
        return result

    _Timing(module, measure).run(*arguments)
    return found


def _event_ms(call: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(runs):
            call()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / runs)
    return median(times)


def replayed(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call captured as a CUDA graph, which takes Python and launches out of the time; itself where that fails."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:  # what synchronises or copies to the host cannot be captured
        torch.cuda.synchronize()
        return call
    return graph.replay
