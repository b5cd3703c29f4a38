"""Two processes with half of the data each measure what one with all of them does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphprune.statistic import Totals
from tests.passes.scoring.scored import chain, images, labelled, scored

ROOT = Path(__file__).resolve().parents[3]
FORMS = ["attention(p=2)", "attention(statistic=max)", "apoz", "variance", "mean-activation", "rank", "activation-similarity"]
FORMS += ["obs(positions=1000)", "taylor", "taylor(form=weight)", "bn-taylor", "fisher", "class-aware(tau=0.001)"]
FORMS += ["0.5*l2+0.5*taylor"]

#: Seven samples of three classes, four to one process and three to the other; the last class is with the second alone.
LABELS = torch.tensor([0, 0, 1, 1, 0, 2, 2])


def data() -> tuple[Tensor, Tensor]:
    return labelled(7)[0][0], LABELS


def half(rank: int, folder: Path) -> None:
    """One of two processes: its scores go to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x, y = (part[:4] if rank == 0 else part[4:] for part in data())
    torch.save({form: scored(chain(), images(2), form, [(x, y)]) for form in FORMS}, folder / f"{rank}.pt")
    totals = Totals()  # each process saw something that the other did not
    totals.add(("all", 0), torch.tensor([1.0 + rank]))
    totals.add((f"only {rank}", 0), torch.tensor([7.0, 8.0]))
    totals.raise_to("top", torch.tensor([float(rank), -1.0 - rank]))
    if rank == 0:
        totals.raise_to("one", torch.tensor(-5.0))
    totals.all_reduce()
    torch.save([totals.sums, totals.maxima], folder / f"totals{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    found = tmp_path_factory.mktemp("processes")
    code = "import sys; from pathlib import Path; from tests.passes.calibration.test_processes import half; "
    code += "half(int(sys.argv[1]), Path(sys.argv[2]))"
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen([*command, str(rank), str(found)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return found


def read(path: Path) -> Any:
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("form", FORMS)
def test_half_of_the_data_each_gives_what_all_give(folder: Path, form: str) -> None:
    whole = scored(chain(), images(2), form, [data()])["a"]
    one, other = (read(folder / f"{rank}.pt")[form]["a"] for rank in (0, 1))
    assert (one == other).all(), "all processes decide alike"
    assert one == pytest.approx(whole, rel=1e-9)
    alone = scored(chain(), images(2), form, [tuple(part[:4] for part in data())])["a"]
    assert one != pytest.approx(alone, rel=1e-6), "half of the data would not do"


def test_what_only_one_process_saw_counts(folder: Path) -> None:
    for rank in (0, 1):
        sums, maxima = read(folder / f"totals{rank}.pt")
        assert {key: total.tolist() for key, total in sums.items()} == {
            ("all", 0): [3.0],
            ("only 0", 0): [7.0, 8.0],
            ("only 1", 0): [7.0, 8.0],
        }
        assert maxima["top"].tolist() == [1.0, -1.0] and float(maxima["one"]) == -5.0


def test_alone_nothing_is_sent() -> None:
    totals = Totals()
    totals.add("all", torch.tensor([1.0]))
    totals.all_reduce()
    assert totals.sums["all"].tolist() == [1.0]
