"""Programs of ``torch.export``: a ``.pt2`` file that torch loads without the model's code."""

from __future__ import annotations

import io

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from graphprune.errors import UsageError, first_line
from graphprune.exporting.checking import Exported, Job, check, run_here
from graphprune.files import write_whole
from graphprune.quiet import quiet


def write_program(job: Job) -> Exported:
    """Write a program. The plan goes with it as the extra file ``plan.json``."""
    stream = io.BytesIO()  # in memory first: torch aborts the process on a full disk
    torch.export.save(exported(job), stream, extra_files={} if job.plan is None else {"plan.json": job.plan})
    stream.seek(0)
    loaded = torch.export.load(stream).module()
    found = check(job, run_here(lambda given: loaded(*given.args, **given.kwargs)))
    write_whole(job.path, stream.getvalue())
    return found


def exported(job: Job) -> ExportedProgram:
    """The model as a program. Raises UsageError where torch.export cannot follow it."""
    free = Dim.DYNAMIC  # of any range that the model takes; a size that it fixes is an error
    shapes = {
        name: {axis: free for axis in (0, *job.axes.get(name, ()))} if isinstance(value, Tensor) else None
        for name, value in job.by_name().items()
    }
    args, kwargs = job.inputs.args, dict(job.inputs.kwargs)
    try:
        with quiet():
            return torch.export.export(job.module, args, kwargs, dynamic_shapes=shapes if job.dynamic else None)
    except Exception as error:  # torch.export raises many kinds
        remedy = (
            "Try --static (dynamic=False), for the sizes of the example alone." if job.dynamic else "Write a .safetensors file."
        )
        if job.axes:
            remedy = f"Leave out axes (--dynamic), or {remedy[0].lower()}{remedy[1:]}"
        raise UsageError(f"torch.export cannot follow this model: {first_line(error)}. {remedy}") from error
