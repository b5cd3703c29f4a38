"""The scripts for other libraries run as they stand, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = re.compile(r"<!-- needs ([\w, ]+) -->\n<!-- no-run -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPTS = {
    f"{page.stem} {number}, {match[1]}": match[2]
    for page in sorted((ROOT / "docs").glob("*.md"))
    for number, match in enumerate(_SCRIPT.finditer(page.read_text(encoding="utf-8")))
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    missing = [needed for needed in name.split(", ")[1:] if find_spec(needed) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    # The package alone: the folder kernels beside it would hide the package of that name, which transformers asks for.
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "graphprune").symlink_to(ROOT / "graphprune")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS[name]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_there_are_scripts_and_what_fails_in_one_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [name.partition(", ")[2] for name in SCRIPTS]
    assert [found.count(needs) for needs in ("timm", "transformers, accelerate", "lightning")] == [1, 2, 2]
    monkeypatch.setitem(SCRIPTS, "page 0, torch", "import graphprune\nassert 1 == 2")
    with pytest.raises(AssertionError, match="assert 1 == 2"):
        test_a_script_runs_as_it_stands("page 0, torch", tmp_path)
