"""Pipelines of graphprune as passes of torch.fx, for pass lists and Dynamo backends that others write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from graphprune.errors import UsageError
from graphprune.ir.program import Program
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.pipeline.text import parse_pipeline
from graphprune.tracing import capture


@dataclass(eq=False)
class FxPass(PassBase):
    """Some passes of graphprune as one pass of torch.fx: it takes an ``fx.GraphModule`` and returns a ``PassResult``.

    passes: as in :func:`graphprune.run_pipeline`, with a rewrite or without (``"channels,score"``, to look at the program).
    example_inputs: of the graph module. program: what the passes have made of the last graph, with its plan, its scores and the
    proof; None before.

    The graph that it is given is not changed. Its tensors must be attributes of the module, as torch.fx and graphprune make them;
    :func:`graphprune.compile_backend` is for the graphs of Dynamo, where they are arguments. Raises what capture and the passes
    raise, and UsageError for a graph that traces in parts only, when it is called.

    >>> import torch
    >>> from torch.fx.passes.infra.pass_manager import PassManager
    >>> graph = fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)))
    >>> halve = FxPass("score,select{channels=50%},rewrite,verify", torch.zeros(1, 8))
    >>> result = PassManager([halve])(graph)
    >>> result.modified, result.graph_module.get_submodule("0").out_features
    (True, 16)
    """

    passes: str | Sequence[Pass]
    example_inputs: Any = field(repr=False)
    program: Program | None = field(default=None, init=False, repr=False)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Run the passes. ``modified`` says whether the graph is another one."""
        steps = parse_pipeline(self.passes) if isinstance(self.passes, str) else list(self.passes)
        before = capture(graph_module, self.example_inputs, source="torch.fx")
        if before.scopes:
            raise UsageError(
                f"The graph traces in parts only ({before.scopes[0].path}), which no pass of torch.fx can put together."
            )
        self.program = PassManager(steps).run(before)
        modified = self.program.module is not before.module
        return PassResult(self.program.module if modified else graph_module, modified)
