"""The driver of a profile: makes slim models at the widths that are wanted, times them, and keeps the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.channels.groups import Groups, Kept
from graphprune.errors import DeviceError, UsageError, first_line
from graphprune.ir.program import Inputs, Program, placeholder_values
from graphprune.latency.clock import Clock, Subject
from graphprune.latency.environment import Environment
from graphprune.latency.sampling import DESIGNS, Wanted, expected_samples, pending
from graphprune.latency.table import LatencyTable, Sample, Settings
from graphprune.passes.latency.layers import node_infos
from graphprune.passes.rewrite.rewrite import rewrite
from graphprune.plans.plan import fingerprint

_TOGETHER: Final = 4  # models that are timed by turns, and hence in memory at the same time


def profile_latency(
    program: Program,
    groups: Groups,
    environment: Environment,
    clock: Clock,
    settings: Settings | None = None,
    *,
    known: LatencyTable | None = None,
    save: Callable[[LatencyTable], None] = lambda table: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyTable:
    """Measure a model's latency at the widths that the settings ask for.

    known: the table of a run that was interrupted, to go on from. save: called with the table after each few samples.
    progress: called with the number of samples done, and of all there will be at most.

    Raises LatencyError where ``known`` is of something else, UsageError for a model without prunable groups, and DeviceError
    where the device fails; what was measured before has been saved.
    """
    if not groups.prunable:
        raise UsageError("The model has no prunable group, so that its latency depends on no width; see `graphprune inspect`.")
    maker = Maker(program, groups, environment)
    table = empty_table(program, groups, environment, settings or Settings())
    if known is not None:
        known.check_continues(table)
        table = known
    try:
        if not table.nodes:
            table = table.model_copy(update={"nodes": maker.nodes()})
        wanted = pending(table)
        while wanted:
            for begin in range(0, len(wanted), _TOGETHER):
                table = table.plus(_measure(wanted[begin : begin + _TOGETHER], maker, clock, table.settings.mode == "layers"))
                save(table)
                progress(len(table.samples), expected_samples(table))
            wanted = DESIGNS[table.settings.mode](table)
    except RuntimeError as error:
        if environment.device == "cpu":
            raise
        raise DeviceError(
            f"The device failed while measuring ({first_line(error)}). {len(table.samples)} samples are kept: see to the "
            "device, or give a smaller batch, and run the command again."
        ) from error
    return table


def empty_table(program: Program, groups: Groups, environment: Environment, settings: Settings) -> LatencyTable:
    """The table of a run that has measured nothing yet."""
    return LatencyTable(
        environment=environment,
        settings=settings,
        model=fingerprint(program.module),
        inputs=described(program.inputs),
        groups={group.name: group.size for group in groups.prunable},
    )


def described(inputs: Inputs) -> str:
    """Inputs in one line, with the tensors of nested ones, which :meth:`Inputs.describe` leaves out for most containers."""
    text = inputs.describe()
    nested = any(isinstance(item, dict) for item in (*inputs.args, *inputs.kwargs.values()))
    leaves = Inputs(tuple(tree_leaves((inputs.args, dict(inputs.kwargs)))))
    return f"{text}: {leaves.describe()}" if nested else text


def _measure(wanted: Sequence[Wanted], maker: Maker, clock: Clock, layers: bool) -> list[Sample]:
    subjects = [maker.subject(one.widths) for one in wanted]
    timings = clock.whole(subjects)
    times = [maker.by_origin(one.module, clock.nodes(one)) if layers else {} for one in subjects]
    return [
        Sample(widths=one.widths, whole=timing, nodes=nodes, held_out=one.held_out)
        for one, timing, nodes in zip(wanted, timings, times, strict=True)
    ]


class Maker:
    """Makes the slim models to time: which units stay makes no difference to the time, so the first ones do."""

    def __init__(self, program: Program, groups: Groups, environment: Environment) -> None:
        self._program = program
        self._groups = groups
        self._device = torch.device(environment.device)
        self._known = {node.name for node in program.module.graph.nodes}
        last = environment.layout == "channels_last"
        generator = torch.Generator().manual_seed(0)

        def ready(item: Any) -> Any:
            if not isinstance(item, torch.Tensor):
                return item
            if item.is_meta:
                item = _drawn(item, generator)
            return item.to(self._device, memory_format=torch.channels_last if last and item.dim() == 4 else torch.preserve_format)

        self.arguments = tuple(tree_map(ready, value) for value in placeholder_values(program.module.graph, program.inputs))

    def subject(self, widths: Sequence[int]) -> Subject:
        """The model at these widths, in eval mode on the device. Raises RewriteError where a node cannot follow."""
        keep = np.ones(self._groups.unit_count, dtype=bool)
        for group, width in zip(self._groups.prunable, widths, strict=True):
            keep[group.units[width:]] = False
        module = rewrite(self._program.module, self._groups, Kept(self._groups, keep))
        return Subject(module.eval().to(self._device), self.arguments)

    def nodes(self) -> dict[str, Any]:
        """What each layer is, and the lengths that its time depends on."""
        full = self._groups.widths.tolist()
        return node_infos(self.subject(full).module, self.subject([1] * len(full)).module, self.arguments, self._groups)

    def by_origin(self, module: fx.GraphModule, times: dict[str, float]) -> dict[str, float]:
        """Times by the original's nodes; what the rewriter put in counts for the node that it serves."""
        sources = {
            node.name: node.name if node.name in self._known else getattr(node.meta.get("graphprune"), "source", "")
            for node in module.graph.nodes
        }
        found: dict[str, float] = {}
        for name, ms in times.items():
            if sources[name]:
                found[sources[name]] = found.get(sources[name], 0.0) + ms
        return found


def _drawn(item: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if item.is_floating_point():
        return torch.randn(item.shape, generator=generator).to(item.dtype)
    return torch.zeros(item.shape, dtype=item.dtype)
