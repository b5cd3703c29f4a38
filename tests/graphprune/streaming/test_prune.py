"""Checkpoints pruned as streams: the same weights as in memory, nothing half-done, and little memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import graphprune
from graphprune.cli import main
from graphprune.errors import PlanError, UsageError
from graphprune.streaming import apply_plan_to_checkpoint, prune_checkpoint
from graphprune.streaming.shards import check_space
from tests.graphprune.streaming.nets import INPUTS, Net, on_meta, run_python, save_sharded

TARGET = "channels=50%"


@pytest.fixture
def net(tmp_path: Path) -> Net:
    """A model whose checkpoint is in the folder ``full``."""
    model = Net().eval()
    with torch.no_grad():
        model.shift.normal_()
    save_sharded(model, tmp_path / "full")
    return model


def _read(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "how",
    [
        *({"criterion": name} for name in ("l2", "l1", "lamp", "bn-scale", "random", "fpgm", "sp-lamp", "euclidean", "cosine")),
        *({"criterion": f"{name}(scope=group)"} for name in ("fpgm", "euclidean", "cosine")),
        {"criterion": "0.5*l1+0.5*l2", "ranking": "global"},
        {"criterion": "sp-lamp(aggregation=members)", "share": "params", "ranking": "isomorphic"},
        {"select": "knapsack", "round_to": 4, "normalise": "mean"},
        {"select": "threshold", "min_channels": 5, "reduction": "max"},
        {"max_ratio": 0.6, "exclude": ["blocks.1.*"], "policy": {"statistics": "freeze"}},
    ],
    ids=str,
)
def test_the_stream_is_pruned_as_the_model_in_memory_is(net: Net, tmp_path: Path, how: dict[str, Any]) -> None:
    report = prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET, **how)
    expected = graphprune.prune(net, INPUTS, target=TARGET, **{"ranking": "global" if "select" in how else "local", **how})
    assert report.plan.kept == expected.plan.kept and report.widths == expected.report.widths
    written, state = _read(tmp_path / "slim"), expected.model.state_dict()
    assert written.keys() == state.keys() - {"head.weight"}  # the checkpoint leaves out a name of the tied tensor
    assert all(torch.equal(tensor, state[name]) for name, tensor in written.items())
    assert report.proof.verification is not None and report.proof.verification.passed and report.proof.left_out == 2


def test_what_stays_of_some_layers_is_said_as_in_memory(net: Net, tmp_path: Path) -> None:
    keep = {"blocks.0.up": "50%"}
    report = prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", keep=keep)
    assert report.plan.kept == graphprune.prune(net, INPUTS, keep=keep).plan.kept
    assert [name for name, (old, new) in report.widths.items() if new < old] == ["blocks.0.up"] and report.plan.target == {}
    with_target = prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "both", target=TARGET, keep=keep)
    assert with_target.widths["blocks.0.up"] == report.widths["blocks.0.up"] and with_target.plan.achieved["channels"] <= 0.5
    with pytest.raises(UsageError, match="of other options"):
        prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", keep={"blocks.0.up": "25%"})


def test_half_precision_is_scored_as_in_memory(tmp_path: Path) -> None:
    net = Net(tied=False).eval().to(torch.bfloat16)
    save_sharded(net, tmp_path / "full")
    prune_checkpoint(on_meta(tied=False).to(torch.bfloat16), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)
    state = graphprune.prune(net, INPUTS, target=TARGET, ranking="local").model.state_dict()
    written = _read(tmp_path / "slim")
    assert written.keys() == state.keys() and all(torch.equal(tensor, state[name]) for name, tensor in written.items())


def test_weights_that_the_graph_computes_are_compared_as_in_memory(tmp_path: Path) -> None:
    """Weight normalisation: filters are what the graph makes of two parameters of the checkpoint."""

    def normalised(net: Net) -> Net:
        for block in net.blocks:
            weight_norm(block.get_submodule("up"))
        return net

    net = normalised(Net(tied=False).eval())
    save_sharded(net, tmp_path / "full")
    how: dict[str, Any] = {"target": TARGET, "criterion": "fpgm", "ranking": "local"}
    plan = prune_checkpoint(normalised(on_meta(tied=False)), INPUTS, tmp_path / "full", tmp_path / "slim", **how).plan
    expected = graphprune.prune(net, INPUTS, **how).plan
    assert plan.scores == expected.scores and plan.kept == expected.kept


def test_the_output_is_a_checkpoint_of_the_slim_graph(net: Net, tmp_path: Path) -> None:
    """The index names every tensor, and the plan makes the graph that the weights load into."""
    prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)
    index = json.loads((tmp_path / "slim" / "model.safetensors.index.json").read_text())
    original = json.loads((tmp_path / "full" / "model.safetensors.index.json").read_text())
    written = _read(tmp_path / "slim")
    assert index["weight_map"] == original["weight_map"]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())
    slim = graphprune.apply_plan(Net().eval(), INPUTS, tmp_path / "slim" / "plan.json").model
    slim.load_state_dict(written, strict=False)
    expected = graphprune.prune(net, INPUTS, target=TARGET, ranking="local").model
    ids = torch.randint(0, 40, (3, 5))
    assert torch.equal(slim(ids), expected(ids))


def test_the_command_takes_a_model_without_a_config(net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "tests.graphprune.streaming.nets:Net"
    where = ("prune-checkpoint", str(tmp_path / "full"), "--model", model, "-o", str(tmp_path / "slim"), "--target", TARGET)
    assert main(where) == 2 and "Give them with --input" in capsys.readouterr().err
    assert main([*where, "--input", "2x6:int64"]) == 0
    assert "3 files of weights" in capsys.readouterr().out
    state = graphprune.prune(net, INPUTS, target=TARGET, ranking="local").model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in _read(tmp_path / "slim").items())


def test_a_plan_from_elsewhere_is_carried_out(net: Net, tmp_path: Path) -> None:
    """The slices are those of the model in memory, and a plan of another model is refused before anything is written."""
    plan = graphprune.prune(net, INPUTS, target=TARGET, criterion="random", seed=3).plan
    plan.save(tmp_path / "plan.json")
    where = (tmp_path / "full", tmp_path / "slim")
    report = apply_plan_to_checkpoint(on_meta(), INPUTS, *where, tmp_path / "plan.json")
    state = graphprune.apply_plan(net, INPUTS, plan).model.state_dict()
    assert report.plan == plan and report.proof.verification is not None and report.proof.verification.passed
    assert all(torch.equal(tensor, state[name]) for name, tensor in _read(tmp_path / "slim").items())
    assert apply_plan_to_checkpoint(on_meta(), INPUTS, *where, plan).resumed == 3
    with pytest.raises(UsageError, match="the run of another checkpoint or of other options"):
        prune_checkpoint(on_meta(), INPUTS, *where, target=TARGET)
    other = graphprune.prune(Net(hidden=16).eval(), INPUTS, target=TARGET).plan
    with pytest.raises(PlanError):
        apply_plan_to_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "no", other)
    assert not (tmp_path / "no").exists()


def test_the_command_takes_and_gives_plans(net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ("prune-checkpoint", str(tmp_path / "full"), "--model", "tests.graphprune.streaming.nets:Net", "--input", "2x6:int64")
    first, plan = tmp_path / "first", tmp_path / "plan.json"
    how = ("--target", TARGET, "--select", "greedy", "--round-to", "4", "--criterion", "fpgm")
    assert main([*start, "-o", str(first), *how, "--plan", str(plan)]) == 0
    assert plan.read_text() == (first / "plan.json").read_text()
    assert {size % 4 for size in _widths(plan)} == {0}
    second = (*start, "-o", str(tmp_path / "second"), "--from-plan", str(plan))
    assert main([*second, "--round-to", "4"]) == 2 and "--from-plan replaces --round-to" in capsys.readouterr().err
    assert main(second) == 0
    one, other = _read(first), _read(tmp_path / "second")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _widths(plan: Path) -> list[int]:
    return [len(kept) for axes in graphprune.Plan.load(plan).kept.values() for kept in axes.values()]


def test_a_single_file_stays_one(net: Net, tmp_path: Path) -> None:
    save_sharded(net, tmp_path / "one", shards=1)
    (tmp_path / "one" / "model.safetensors.index.json").unlink()
    (tmp_path / "one" / "requirements.txt").write_text("what lies beside a file is not taken along")
    file = (tmp_path / "one" / "model-00001-of-00001.safetensors").rename(tmp_path / "one" / "weights.safetensors")
    report = prune_checkpoint(on_meta(), INPUTS, file, tmp_path / "slim", target=TARGET)
    assert report.shards == ("weights.safetensors",)
    assert {path.name for path in (tmp_path / "slim").iterdir()} == {"weights.safetensors", "plan.json", "graphprune.json"}


def test_planning_alone_writes_no_weights_and_a_later_run_takes_the_plan(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = (INPUTS, tmp_path / "full", tmp_path / "slim")
    planned = prune_checkpoint(on_meta(), *where, target=TARGET, plan_only=True)
    assert set(_files(tmp_path / "slim")) == {"plan.json", "graphprune.json"} and planned.shards == ()
    monkeypatch.setattr("graphprune.ir.weights.Weights.__getitem__", None)  # nothing is scored again
    report = prune_checkpoint(on_meta(), *where, target=TARGET)
    assert report.plan == planned.plan and len(report.shards) == 3 and report.resumed == 0


def test_a_killed_run_goes_on_and_leaves_the_same_files(net: Net, tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from graphprune.streaming import prune_checkpoint
from tests.graphprune.streaming.nets import INPUTS, on_meta
def progress(what, done, total):
    if what == "Writing" and len(list(Path("slim").glob("model-*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
os.chdir({str(tmp_path)!r})
prune_checkpoint(on_meta(), INPUTS, "full", "slim", target={TARGET!r}, progress=progress)
"""
    assert run_python(code, check=False).returncode == -signal.SIGKILL
    left = _files(tmp_path / "slim")
    assert [name for name in left if name.endswith(".tmp")], "it was killed while it wrote a file"
    assert "model.safetensors.index.json" not in left
    report = prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)
    assert report.resumed == 1
    prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "whole", target=TARGET)
    assert _files(tmp_path / "slim") == _files(tmp_path / "whole")


def test_a_shard_of_another_plan_or_length_is_written_again(net: Net, tmp_path: Path) -> None:
    where = (INPUTS, tmp_path / "full", tmp_path / "slim")
    prune_checkpoint(on_meta(), *where, target=TARGET)
    whole = _files(tmp_path / "slim")
    other = tmp_path / "other"
    prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", other, target=TARGET, seed=1, criterion="random")
    first, second, _ = sorted((tmp_path / "slim").glob("model-*"))
    shutil.copy(other / first.name, first)
    os.truncate(second, second.stat().st_size - 1)
    assert prune_checkpoint(on_meta(), *where, target=TARGET).resumed == 1
    assert _files(tmp_path / "slim") == whole


def test_a_folder_with_something_else_is_refused(net: Net, tmp_path: Path) -> None:
    where = (INPUTS, tmp_path / "full", tmp_path / "slim")
    with pytest.raises(UsageError, match="it is not empty, and holds no unfinished run"):
        prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "full", target=TARGET)
    prune_checkpoint(on_meta(), *where, target=TARGET, plan_only=True)
    (tmp_path / "slim" / "plan.json").unlink()  # as if ended before it was written
    prune_checkpoint(on_meta(), *where, target=TARGET, plan_only=True)
    assert (tmp_path / "slim" / "plan.json").exists()
    with pytest.raises(UsageError, match="the run of another checkpoint or of other options"):
        prune_checkpoint(on_meta(), *where, target="channels=75%")
    with pytest.raises(UsageError, match="does not exist"):
        prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "no" / "slim", target=TARGET)


def test_a_full_disk_is_refused_before_anything_is_written(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(tmp_path, 1)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UsageError, match="free space"):
        prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)
    assert not (tmp_path / "slim").exists()


def test_a_disk_that_fills_up_leaves_no_part_of_a_file(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        return real(*args)

    from graphprune.streaming import shards

    real = shards._bytes
    monkeypatch.setattr(shards, "_bytes", full)
    with pytest.raises(UsageError, match="No space left"):
        prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)
    assert set(_files(tmp_path / "slim")) <= {"plan.json", "graphprune.json", "model-00001-of-00003.safetensors"}
    monkeypatch.undo()
    prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)
    assert len(_read(tmp_path / "slim")) == len(_read(tmp_path / "full"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"criterion": "0.5*l2+0.5*activation-similarity", "data": [INPUTS]},
            "activation-similarity compares weights or activations of",
        ),
        ({"criterion": "attention"}, "needs calibration data"),
        ({"criterion": "attention", "data": "synthetic"}, "Synthetic data are made by gradients"),
        ({"target": "latency=1ms"}, "latency target"),
        ({"exclude": ["nothing.*"]}, "matches no parameter"),
    ],
)
def test_what_cannot_be_streamed_is_refused(net: Net, tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", **how)
    assert not (tmp_path / "slim").exists()


def test_weights_that_are_not_finite_are_named(net: Net, tmp_path: Path) -> None:
    with torch.no_grad():
        net.blocks[1].get_parameter("up.weight")[0, 0] = torch.nan
    save_sharded(net, tmp_path / "full")
    with pytest.raises(UsageError, match=r"blocks\.1\.up\.weight holds NaN"):
        prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)


def test_a_large_copy_is_not_built_and_the_report_says_so(net: Net, tmp_path: Path) -> None:
    report = prune_checkpoint(on_meta(), INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET, proof_bytes=100)
    assert report.proof.verification is None and "the limit is" in report.proof.describe()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "which Sequential does not have"),
        (on_meta(width=32), r"is float32\[16\] in the checkpoint .* and float32\[32\] in Net"),
        (on_meta().to(torch.float16), r"and float16\[16\] in Net"),
        (on_meta(depth=5), r"lacks blocks\.4\.norm\.weight of Net"),
        (on_meta(tied=False), r"lacks head\.weight of Net"),
    ],
)
def test_another_model_is_refused_before_anything_is_written(net: Net, tmp_path: Path, model: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune_checkpoint(model, INPUTS, tmp_path / "full", tmp_path / "slim", target=TARGET)
    assert not (tmp_path / "slim").exists()


@pytest.mark.parametrize(("criterion", "depth", "room"), [("l2", 24, 120), ("taylor", 16, 160), ("taylor(form=weight)", 16, 160)])
def test_memory_is_bounded_by_a_few_tensors(tmp_path: Path, criterion: str, depth: int, room: int) -> None:
    """600 or 400 MB of weights in 2 files, the largest tensor of 12.6 MB, in a process which may have 120 MB more than it has once
    the libraries are there, or with the weights of a few layers 160; loading a file as a whole fails in it."""
    code = f"""
import os, resource, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from graphprune.calibration import Calibration
from graphprune.streaming import prune_checkpoint
from tests.graphprune.streaming.nets import INPUTS, Net, on_meta, save_sharded
os.chdir({str(tmp_path)!r})
torch.set_num_threads(1)
how = dict(width=1024, hidden=3072, depth={depth}, tokens=512, tied=False)
data = Calibration([INPUTS + 1], loss=lambda logits, target: logits.square().mean())
pruned = dict(target={TARGET!r}, criterion={criterion!r}, data=data, verify=False)
save_sharded(Net(), Path("warm"), 2)
prune_checkpoint(on_meta(), INPUTS, "warm", "slim-warm", **pruned)
pid = os.fork()
if not pid:
    model = on_meta(**how).to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.uniform_(-1, 1)
    save_sharded(model, Path("full"), 2)
    os._exit(0)
assert not os.waitpid(pid, 0)[1]
has = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (has + {room} * 2**20,) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prune_checkpoint(on_meta(**how), INPUTS, "full", "slim", **pruned)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
try:
    load_file("full/model-00001-of-00002.safetensors")
    fits = 1
except Exception:
    fits = 0
print(sum(path.stat().st_size for path in Path("full").glob("*.safetensors")) >> 20, grown, fits)
"""
    size, grown, fits = map(int, run_python(code).stdout.split()[-3:])
    shutil.rmtree(tmp_path)
    assert size >= 24 * depth and not fits
    assert grown < room - 20


def test_second_moments_of_a_few_layers_are_in_memory(tmp_path: Path) -> None:
    """Of 24 layers of 512 inputs, 2.1 MB for each matrix of a layer, in a process that may have 80 MB more than it has. The model
    in memory does not fit: it keeps the moments of all."""
    code = f"""
import resource, torch
import graphprune
from pathlib import Path
from graphprune.streaming import prune_checkpoint
from tests.graphprune.streaming.nets import INPUTS, Net, on_meta, save_sharded
torch.set_num_threads(1)
folder = Path({str(tmp_path)!r})
how = dict(width=16, hidden=512, depth=24, tied=False)
pruned = dict(target={TARGET!r}, criterion="obs", data=[torch.arange(600).view(100, 6) % 40], verify=False, ranking="local")
model = Net(**how).eval()
save_sharded(model, folder / "full", 2)
graphprune.prune(Net().eval(), INPUTS, **pruned)
has = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (has + 80 * 2**20,) * 2)
report = prune_checkpoint(on_meta(**how), INPUTS, folder / "full", folder / "slim", **pruned)
try:
    graphprune.prune(model, INPUTS, **pruned)
    print("fits")
except graphprune.GraphpruneError:
    print(len(report.shards), "short")
"""
    assert run_python(code).stdout.split() == ["2", "short"]
