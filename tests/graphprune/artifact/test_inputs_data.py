"""Example inputs in a file: shapes and dtypes, and no more of their contents than the graph needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.artifact import read_artifact, write_artifact
from graphprune.ir.program import Inputs
from graphprune.tracing import capture


def test_contents_of_inputs_are_kept_only_where_a_graph_decides_by_them(tmp_path: Path) -> None:
    class Deciding(nn.Module):
        def __init__(self, decides: bool) -> None:
            super().__init__()
            self.layer, self.decides = nn.Linear(4, 4), decides

        def forward(self, x: torch.Tensor, mask: torch.Tensor, many: torch.Tensor) -> Any:
            shift = 1.0 if self.decides and mask.all() else 2.0
            return self.layer(x) + shift + many.sum()

    given = Inputs((torch.ones(2, 4), torch.tensor([True, False]), torch.ones(2**17, dtype=torch.int64)))
    for decides in (False, True):
        module = capture(Deciding(decides).eval(), given).module
        write_artifact(tmp_path / "a.safetensors", module, inputs=given)
        x, mask, many = read_artifact(tmp_path / "a.safetensors").inputs.args
        assert mask.tolist() == [decides, False] and not x.any() and many.shape == (2**17,) and not many.any()
