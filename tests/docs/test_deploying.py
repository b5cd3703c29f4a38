"""The C++ program of the page on deploying is built by the commands beside it, and computes what the slim model computes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import graphprune
from graphprune.cli.digits import small_cnn
from graphprune.exporting import export_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploying.md"


def _block(text: str, language: str) -> str:
    """The first code block in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found is not None, language
    return found[1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_package_runs_from_cpp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = graphprune.prune(small_cnn().eval(), torch.rand(2, 1, 8, 8), target="macs=50%")
    export_model(result.graph, result.inputs, tmp_path / "slim_aot.pt2", format="aot")

    section = PAGE.read_text().partition("From C++")[2]
    (tmp_path / "run.cpp").write_text(_block(section, "cpp"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["sh", "-e", "-c", _block(section, "sh")]
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr

    rows = [[float(value) for value in line.split()] for line in ran.stdout.splitlines() if not line.startswith("[")]
    with torch.no_grad():
        wanted = result.model.eval()(torch.ones(5, 1, 8, 8))
    torch.testing.assert_close(torch.tensor(rows), wanted, rtol=0, atol=1e-3)
