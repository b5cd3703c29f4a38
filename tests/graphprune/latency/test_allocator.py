"""While times are taken, freed memory stays with the process; afterwards it goes back."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# In a process of its own: what the test runner holds would lie in between.
SCRIPT = """
import sys
from pathlib import Path

import torch

from graphprune.latency.allocator import steady_allocator

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def use():
    torch.ones(50, 2**20 // 4 * 2)  # 100 MiB, freed at once

use()
before = resident()
with steady_allocator():
    use()
    within = resident()
print(within - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not Path("/proc/self/statm").exists(), reason="a matter of glibc on Linux")
def test_what_is_freed_stays_within_and_goes_back_afterwards() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    within, after = map(float, ran.stdout.split())
    assert within > 90 and after < 20
