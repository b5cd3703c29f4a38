"""Packages of AOTInductor run in a process that knows neither graphprune nor the model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import UsageError
from graphprune.exporting import aot, export_model

NO_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is None
X = torch.randn(3, 4)

LOAD = """
import os, sys, torch
os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
sys.modules["graphprune"] = None
model = torch._inductor.aoti_load_package(sys.argv[1])
x = torch.load(sys.argv[2], weights_only=True)
torch.save([model(x), model(x[:1])], sys.argv[3])
try:
    model(torch.zeros(2, 5))
except RuntimeError as error:
    print(error, file=sys.stderr)  # torch up to 2.11 says why on stderr alone
else:
    raise AssertionError("it takes inputs of another width")
"""


@pytest.mark.skipif(NO_COMPILER, reason="needs a C++ compiler")
def test_a_package_runs_at_any_batch_in_a_fresh_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    result = graphprune.prune(model, torch.zeros(1, 4), target="channels=50%")
    said = export_model(result.graph, result.inputs, tmp_path / "slim.pt2", format="aot")
    assert said.batches == (1, 2, 3) and said.ms is not None and said.ms > 0
    assert [path.name for path in tmp_path.iterdir()] == ["slim.pt2"]
    torch.save(X, tmp_path / "x.pt")
    command = [sys.executable, "-c", LOAD, "slim.pt2", "x.pt", "y.pt"]
    ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "unmatched dim value" in ran.stderr
    wanted = result.graph.eval()
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), [wanted(X).detach(), wanted(X[:1]).detach()])


def test_it_says_that_it_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    program = graphprune.capture(nn.Linear(4, 2), torch.zeros(1, 4))
    # Not by monkeypatch, which takes what is nested in a configuration away afterwards.
    settings = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with settings, pytest.raises(UsageError, match=r"needs a C\+\+ compiler"):
        export_model(program.module, program.inputs, tmp_path / "m.pt2", format="aot")
    assert list(tmp_path.iterdir()) == []


def test_what_inductor_cannot_compile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(program: object, **options: object) -> None:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(aot, "aoti_compile_and_package", failing)
    monkeypatch.setattr(aot, "_need_compiler", lambda: None)
    program = graphprune.capture(nn.Linear(4, 2), torch.zeros(1, 4))
    with pytest.raises(UsageError, match="cannot compile this model: no kernel for this"):
        export_model(program.module, program.inputs, tmp_path / "m.pt2", format="aot")
    assert list(tmp_path.iterdir()) == []
