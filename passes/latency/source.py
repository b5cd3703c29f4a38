"""From a latency table to what selection needs: a model of the latency, and measurements of the slim models that it chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphprune.channels.groups import Groups, Ints
from graphprune.errors import LatencyError
from graphprune.ir.program import Program
from graphprune.latency.clock import Clock, DeviceClock
from graphprune.latency.copies import SURE
from graphprune.latency.environment import environment_of
from graphprune.latency.model import LatencyModel
from graphprune.latency.source import Latency, Measured
from graphprune.latency.table import LatencyTable
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.latency.profile import Maker
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.plans.plan import fingerprint


def latency_from(
    program: Program, groups: Groups, table: LatencyTable, *, measure: bool = True, clock: Clock | None = None
) -> Latency:
    """The latency of a program by a table of it.

    measure: time slim models here, which must be where the table was measured, at the same inputs; else its predictions are all
    that counts. clock: that of the table's environment by default.

    Raises LatencyError naming the first difference between what the table is of and what is at hand.
    """
    model, known = LatencyModel(table), table.groups
    if not measure:
        table.check_fits(fingerprint(program.module), groups)
        return Latency(model, known)
    compiled = table.environment.compile == "compile"
    here = environment_of(program.module, table.environment.device, compile=compiled)
    table.check_fits(fingerprint(program.module), groups, here)
    if program.inputs.describe() != table.inputs:
        raise LatencyError(
            f"The latency table was measured at {table.inputs}, and the example inputs are {program.inputs.describe()}. "
            "Give inputs of that size, or measure anew with `graphprune profile`."
        )
    maker = Maker(program, groups, table.environment)
    timer = clock or DeviceClock(table.environment, effort=SURE)
    full, layers = groups.widths.tolist(), table.settings.mode == "layers"

    def times(widths: Ints) -> Measured:
        subject = maker.subject(np.asarray(widths).tolist())
        slim, whole = timer.whole([subject, maker.subject(full)])
        parts = model.parts_of(maker.by_origin(subject.module, timer.nodes(subject)) if layers else {})
        return Measured(slim.median_ms, whole.median_ms, slim.over(whole).error, parts)

    return Latency(model, known, times)


def timed(
    program: Program,
    table: LatencyTable | str | Path,
    *,
    measure: bool = True,
    analyses: AnalysisManager | None = None,
    clock: Clock | None = None,
) -> Program:
    """A program whose latency is known from a table or its file, for targets on it.

    measure, clock: as for :func:`latency_from`. analyses: results to start from and to leave behind.

    Raises LatencyError where the table is damaged, of another model, or (to measure) of another environment.
    """
    found = table if isinstance(table, LatencyTable) else LatencyTable.load(table)
    groups = (analyses or AnalysisManager()).get(program, ChannelGroups)
    return program.with_(latency=latency_from(program, groups, found, measure=measure, clock=clock))
