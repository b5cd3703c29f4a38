"""The Triton kernels themselves, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.interpret
@pytest.mark.parametrize("kernels", ["attention", "similarity"])
def test_kernels_in_the_interpreter_agree_with_the_references(kernels: str) -> None:
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8) and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("Triton's interpreter before 3.8 takes arrays of one element for numbers, which NumPy 2.4 refuses")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.kernels.interpreted", kernels]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.interpret
def test_the_package_works_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import torch; from graphprune.kernels import activation_attention as a, "
    code += "channel_similarity as c; x = torch.ones(2, 3); print(a.activation_attention(x).sum, c.channel_similarity([x]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "tensor([2., 2., 2.])" in run.stdout, run.stderr
