"""Latencies that are known: tables and clocks whose times are computed, so that no test depends on a real clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from graphprune.latency.clock import Subject
from graphprune.latency.environment import Environment
from graphprune.latency.sampling import pending
from graphprune.latency.table import LatencyTable, Length, NodeInfo, Sample, Settings
from graphprune.latency.timing import Timing

HERE = Environment(device="cpu", name="planted", dtype="float32", layout="contiguous", torch="2", threads=1)


def exactly(ms: float) -> Timing:
    """A time without any spread."""
    return Timing(median_ms=ms, low_ms=ms, high_ms=ms, runs=1)


def stair(length: float, block: int) -> float:
    """The length rounded up to a multiple of the block."""
    return float(np.ceil(length / block) * block)


def conv_ms(out: int, inward: int, block: int = 8) -> float:
    """The planted time of a convolution: it works in blocks of output channels."""
    return 0.01 + 0.001 * stair(out, block) + 0.0002 * stair(out, block) * inward


@dataclass
class PlantedClock:
    """A clock of convolutions, which cost :func:`conv_ms`; everything else costs a little for each element of its weights.

    overhead: of the whole model. seen: the widths of the convolutions of each model that was timed. fail_after: models
    after which the device is gone.
    """

    overhead: float = 0.5
    fail_after: int | None = None
    seen: list[Sequence[int]] = field(default_factory=list)

    def whole(self, subjects: Sequence[Subject]) -> list[Timing]:
        """Overhead and the sum of the nodes."""
        for subject in subjects:
            if self.fail_after is not None and len(self.seen) >= self.fail_after:
                raise RuntimeError("CUDA error: device is gone")
            self.seen.append([m.out_channels for m in subject.module.modules() if isinstance(m, nn.Conv2d)])
        return [exactly(self.overhead + sum(self.nodes(subject).values())) for subject in subjects]

    def nodes(self, subject: Subject) -> dict[str, float]:
        """Milliseconds of every layer."""
        calls = [node for node in subject.module.graph.nodes if node.op == "call_module"]
        return {node.name: self._layer(subject.module, node) for node in calls}

    def _layer(self, module: fx.GraphModule, node: fx.Node) -> float:
        layer = module.get_submodule(str(node.target))
        if isinstance(layer, nn.Conv2d):
            return conv_ms(layer.out_channels, layer.in_channels)
        return 0.001 * sum(parameter.numel() for parameter in layer.parameters())


@dataclass(frozen=True)
class Chain:
    """The latency of a chain of layers whose widths are the groups': a term for each, of its own width and the one before.

    factors: on the terms, the first of which is what is outside of the layers. block: of output channels. sizes: full widths.
    It serves as a model that predicts, and as the truth that this is wrong about.
    """

    sizes: tuple[int, ...]
    factors: tuple[float, ...]
    block: int = 1
    name: str = "latency"
    unit: str = "ms"
    rows: None = None

    @property
    def terms(self) -> Sequence[tuple[int, ...]]:
        """Nothing, the first group, and pairs of neighbours."""
        return [(), (0,), *((group - 1, group) for group in range(1, len(self.sizes)))]

    def parts(self, widths: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Milliseconds of the terms for widths of shape (..., groups); each is 1 at full width but for its factor."""
        given = np.asarray(widths, dtype=np.float64)
        left = np.ceil(given / self.block) * self.block / np.array(self.sizes)
        before = np.concatenate([np.ones((*left.shape[:-1], 1)), left[..., :-1]], axis=-1)
        terms = np.concatenate([np.ones((*left.shape[:-1], 1)), 0.2 * left + 0.8 * left * before], axis=-1)
        return np.asarray(terms * np.array(self.factors))

    def __call__(self, widths: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Milliseconds for widths of shape (..., groups)."""
        return np.asarray(self.parts(widths).sum(axis=-1))


def empty_table(groups: dict[str, int], *, nodes: dict[str, NodeInfo] | None = None, **settings: object) -> LatencyTable:
    """A table of a model with these groups, in which nothing was measured yet."""
    chosen = Settings.model_validate(settings)
    return LatencyTable(environment=HERE, settings=chosen, model={}, inputs="", groups=groups, nodes=nodes or {})


def chain(sizes: Sequence[int]) -> dict[str, NodeInfo]:
    """Layers of one family in a row, each with its group's width as output and the last one's as input."""
    alone = [Length(constant=0, by_group={group: 1}) for group in range(len(sizes))]
    first = NodeInfo(family="first", lengths=(alone[0],))
    return {"n0": first} | {f"n{i}": NodeInfo(family="conv", lengths=(alone[i], alone[i - 1])) for i in range(1, len(sizes))}


def filled(
    table: LatencyTable, whole: Callable[[Sequence[int]], float], nodes: Callable[[Sequence[int]], dict[str, float]] = lambda w: {}
) -> LatencyTable:
    """The table after all that its settings ask for was measured, by planted times."""
    while wanted := pending(table):
        table = table.plus(
            [
                Sample(widths=one.widths, whole=exactly(whole(one.widths)), nodes=nodes(one.widths), held_out=one.held_out)
                for one in wanted
            ]
        )
    return table
