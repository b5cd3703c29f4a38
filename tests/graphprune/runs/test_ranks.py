"""Processes of a run agree, or say that they do not; the first one's value counts; a lost one is known by the error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from graphprune.runs import ranks

SCRIPT = """
import sys
import torch.distributed as dist
from graphprune.errors import RunError
from graphprune.runs import ranks

dist.init_process_group("gloo", init_method=sys.argv[1], rank=ranks.launched(), world_size=2)
assert ranks.rank() == ranks.launched()
assert ranks.shared(f"of {ranks.rank()}") == "of 0"
ranks.agreed("the same", "this")
try:
    ranks.agreed(f"plan of {ranks.rank()}", "what to remove")
except RunError as error:
    assert "do not agree on what to remove" in str(error)
else:
    raise AssertionError("two plans went through as one")
assert not ranks.lost(RuntimeError("shapes do not fit"))
ranks.together()
if ranks.rank() == 1:
    ranks.leave()
    sys.exit()
try:
    ranks.shared(1)
    ranks.together()
except RuntimeError as error:
    assert ranks.lost(error), error
else:
    raise AssertionError("a lost process was not missed")
ranks.leave()
assert ranks.rank() == 0
"""


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
def test_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    place = f"file://{tmp_path}/store"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), place], env=os.environ | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


def test_a_single_process_agrees_with_itself_and_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert (ranks.launched(), ranks.rank(), ranks.shared("mine")) == (0, 0, "mine")
    ranks.agreed("one", "this")
    ranks.together()
    ranks.leave()
    assert not ranks.lost(RuntimeError("Connection closed by peer"))
