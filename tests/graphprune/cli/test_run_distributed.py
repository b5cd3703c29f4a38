"""``torchrun -m graphprune run`` in two processes: one result, one voice, one plan; a lost process leaves a run that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform != "linux", reason="needs gloo and /proc")

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "graphprune")
RUN = (
    *("run", "iterative", "graphprune.cli.digits:small_cnn", "--data", "digits", "--training", "digits", "--epochs", "2"),
    *("--set", "trained=false", "--set", "data.samples=64", "--plot", "none"),
)


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*LAUNCH, *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("distributed")
    code, out, err = _ended(_start(folder, *RUN, "--out", "run", "--json"))
    assert code == 0, err
    (folder / "out.json").write_text(out)
    return folder


def test_processes_make_one_result_and_one_of_them_speaks(whole: Path) -> None:
    data = json.loads((whole / "out.json").read_text())  # one JSON text, not two
    assert [row["status"] for row in data["rounds"]] == ["dense", "final"]
    assert data["slim"]["macs"] <= data["dense"]["macs"] / 2 and data["slim"]["accuracy"]["test"] > 0.5
    assert {path.name for path in (whole / "run").iterdir()} == {
        *("recipe.toml", "journal.jsonl", "rounds.jsonl", "result.json", "plan.json", "slim.safetensors", "snapshots"),
    }


def test_a_lost_process_ends_the_run_with_a_reason_and_the_same_command_goes_on(whole: Path, tmp_path: Path) -> None:
    process = _start(tmp_path, *RUN, "--out", "run")
    journal = tmp_path / "run" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.02)
    _kill_rank(process, 1)
    code, _, err = _ended(process)
    assert code != 0
    assert "Another process of this run went away" in err or "interrupted" in err  # torchrun ends the others, too
    assert "run/recipe.toml" in err or "run the same command again" in err
    assert not (tmp_path / "run" / "result.json").exists()
    done = journal.read_bytes()
    code, _, err = _ended(_start(tmp_path, *RUN, "--out", "run"))
    assert code == 0, err
    assert journal.read_bytes().startswith(done)
    first, second = (load_file(folder / "run" / "slim.safetensors") for folder in (whole, tmp_path))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert (whole / "run" / "plan.json").read_bytes() == (tmp_path / "run" / "plan.json").read_bytes()


def test_a_sharded_run_ends_with_the_same_plan(whole: Path, tmp_path: Path) -> None:
    code, out, err = _ended(_start(tmp_path, *RUN, "--set", "training.shard=true", "--out", "run", "--json"))
    assert code == 0, err
    assert json.loads(out)["slim"]["accuracy"]["test"] > 0.5
    assert (whole / "run" / "plan.json").read_bytes() == (tmp_path / "run" / "plan.json").read_bytes()


def _kill_rank(process: subprocess.Popen[str], rank: int) -> None:
    """Kill the child of a launcher that has this rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranked = [pid for pid in children if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()]
    assert len(ranked) == 1
    os.kill(int(ranked[0]), signal.SIGKILL)
