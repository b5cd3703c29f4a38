"""prune, apply and verify through the command line: what they write, print, and prove."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import graphprune
from graphprune.artifact import read_artifact, write_artifact
from graphprune.cli.digits import small_cnn
from graphprune.pipeline.text import parse_pipeline

Cli = Callable[..., Any]

SOURCE = "graphprune.cli.digits:small_cnn"
INPUT = ("--input", "1x1x8x8")


def test_prune_writes_a_smaller_model_that_loads_elsewhere(cli: Cli, weights: Path) -> None:
    ran = cli("prune", SOURCE, *INPUT, "--weights", weights, "--target", "macs=50%", "-o", "slim.safetensors")
    assert ran.code == 0, ran.err
    slim = graphprune.load("slim.safetensors")
    assert slim(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert sum(p.numel() for p in slim.parameters()) < 0.6 * sum(p.numel() for p in small_cnn().parameters())
    for label in ("parameters", "MACs (multiply-accumulates)", "FLOPs (2 per MAC)", "size on disk", "peak activations"):
        assert label in ran.out
    assert "Verified against the masked original" in ran.out and "tolerance 1e-04" in ran.out
    assert 'graphprune.load("slim.safetensors")' in ran.out
    assert ran.err == ""


def test_json_is_all_that_standard_output_holds_and_agrees_with_the_files(cli: Cli, folder: Path, weights: Path) -> None:
    """Even when the user's own code prints while it is imported and built."""
    (folder / "chatty.py").write_text(
        "from graphprune.cli.digits import small_cnn\nprint('hello')\ndef net():\n    print('building')\n    return small_cnn()\n"
    )
    arguments = ("--weights", weights, "--target", "params=40%", "--criterion", "l1", "-o", "slim.safetensors", "--plan", "p.json")
    ran = cli("prune", "chatty:net", *INPUT, *arguments, "--json", "--time-passes")
    assert ran.code == 0, ran.err
    data = ran.data
    slim = graphprune.load("slim.safetensors")
    assert data["after"]["parameters"] == sum(p.numel() for p in slim.parameters())
    assert data["after"]["flops"] == 2 * data["after"]["macs"]
    assert data["after"]["disk_bytes"] == (folder / "slim.safetensors").stat().st_size
    assert data["after"]["parameters"] <= 0.4 * data["before"]["parameters"]
    assert data["verification"]["passed"] and data["verification"]["error"] < 1e-4
    assert {one["name"] for one in data["timing"]["passes"]} == {"channels", "score", "select", "rewrite", "verify"}
    plan = graphprune.Plan.load("p.json")
    assert plan.target == {"params": "40%"} and "l1" in plan.scores
    assert read_artifact("slim.safetensors").provenance["source"] == "chatty:net"


def test_a_model_keeps_its_class(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file loads into the class, with what prune and apply print; the width that its code states is whole."""
    (folder / "own.py").write_text(
        "from torch import nn\n"
        "class Own(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)\n"
        "    def forward(self, x):\n"
        "        return self.c(self.b(self.a(x)).reshape(-1, 6))\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    own = importlib.import_module("own")
    for command in (("prune", "--target", "params=80%", "--plan", "p.json"), ("apply", "p.json")):
        name, *rest = command
        ran = cli(name, "own:Own", *rest, "--input", "2x4", "--keep-class", "-o", "slim.safetensors")
        assert ran.code == 0, ran.err
        assert 'slim = graphprune.load("slim.safetensors", original)' in ran.out
        slim: Any = graphprune.load("slim.safetensors", own.Own())
        assert type(slim) is own.Own and slim.a.out_features < 8 and slim.b.out_features == 6
        given = torch.randn(3, 4)
        assert torch.equal(slim(given), graphprune.load("slim.safetensors")(given))


def test_several_targets_are_all_met(cli: Cli) -> None:
    ran = cli("prune", SOURCE, *INPUT, "--target", "macs=60%", "--target", "params=45%", "-o", "slim.safetensors", "--json")
    assert ran.data["achieved"]["macs"] <= 0.6 and ran.data["achieved"]["params"] <= 0.45


def test_layers_are_given_widths_by_name(cli: Cli) -> None:
    ran = cli("prune", SOURCE, *INPUT, "--keep", "*=100%", "--keep", "block.conv1=25%", "-o", "slim.safetensors", "--json")
    slim, whole = graphprune.load("slim.safetensors"), small_cnn()
    assert ran.code == 0, ran.err
    changed = {name for name, p in slim.named_parameters() if p.shape != whole.get_parameter(name).shape}
    assert slim.get_parameter("block.conv1.weight").shape[0] * 4 == whole.get_parameter("block.conv1.weight").shape[0]
    assert changed == {"block.conv1.weight", "block.bn1.weight", "block.bn1.bias", "block.conv2.weight"}
    assert ran.data["keep"] == {"*": "100%", "block.conv1": "25%"} and ran.data["target"] == {}
    for wrong in ("block.conv1", "block.conv1=", "=50%"):
        assert "does not say what stays of what" in cli("prune", SOURCE, *INPUT, "--keep", wrong, "-o", "slim.safetensors").err
    later = ("--keep", "block.conv1=1", "--keep", "*=100%", "--keep", "block.conv1=25%")
    assert cli("prune", SOURCE, *INPUT, *later, "-o", "later.json", "--json").data["widths"] == ran.data["widths"]
    again = cli("apply", SOURCE, "slim.safetensors", *INPUT, "-o", "again.safetensors").out
    assert "Kept as asked: *=100%, block.conv1=25%." in again


def test_options_reach_the_passes(cli: Cli) -> None:
    options = (
        "--round-to",
        "8",
        "--ranking",
        "local",
        "--reduction",
        "sum",
        "--normalise",
        "gaussian",
        "--exclude",
        "narrow",
        "--seed",
        "4",
    )
    ran = cli("prune", SOURCE, *INPUT, "--target", "channels=50%", *options, "-o", "slim.safetensors", "--json")
    assert ran.code == 0, ran.err
    assert all(kept % 8 == 0 for _, kept in ran.data["widths"].values())
    assert "narrow" not in ran.data["widths"]
    for text in ("round_to=8", "ranking=local", "reduction=sum", "normalise=gaussian", "exclude=[narrow]", "seed=4"):
        assert text in ran.data["pipeline"]


def test_a_text_pipeline_replaces_the_options(cli: Cli) -> None:
    ran = cli(
        "prune", SOURCE, *INPUT, "--pipeline", "score{criterion=random},select{macs=70%},rewrite", "-o", "s.safetensors", "--json"
    )
    assert ran.code == 0, ran.err
    assert parse_pipeline(ran.data["pipeline"]) == parse_pipeline("score{criterion=random},select{macs=70%},rewrite")
    assert ran.data["verification"] is None


def test_no_verify_says_so(cli: Cli) -> None:
    assert "Not verified" in cli("prune", SOURCE, *INPUT, "--no-verify", "-o", "slim.safetensors").out


def test_pt2_output_loads_with_torch_alone(cli: Cli) -> None:
    ran = cli("prune", SOURCE, *INPUT, "-o", "slim.pt2")
    assert ran.code == 0, ran.err
    assert 'torch.export.load("slim.pt2").module()' in ran.out
    assert torch.export.load("slim.pt2").module()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_quiet_prints_nothing(cli: Cli) -> None:
    ran = cli("prune", SOURCE, *INPUT, "-o", "slim.safetensors", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize("training", [True, False])
def test_the_slim_model_keeps_the_mode_and_frozen_parameters(cli: Cli, folder: Path, training: bool) -> None:
    """A frozen model is pruned all the same; its parameters stay frozen."""
    (folder / f"modes_{training}.py").write_text(
        f"from graphprune.cli.digits import small_cnn\ndef net():\n    return small_cnn().train({training}).requires_grad_(False)\n"
    )
    assert cli("prune", f"modes_{training}:net", *INPUT, "-o", "slim.safetensors").code == 0
    slim = graphprune.load("slim.safetensors")
    assert {module.training for module in slim.modules()} == {training}
    assert not any(parameter.requires_grad for parameter in slim.parameters())
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in small_cnn().parameters())


def test_apply_repeats_a_plan_bit_for_bit(cli: Cli, weights: Path) -> None:
    model = (SOURCE, *INPUT, "--weights", weights)
    assert cli("prune", *model, "-o", "first.safetensors", "--plan", "plan.json").code == 0
    first = load_file("first.safetensors")
    for holder in ("plan.json", "first.safetensors"):
        ran = cli("apply", SOURCE, holder, *INPUT, "--weights", weights, "-o", "second.safetensors")
        assert ran.code == 0, ran.err
        second = load_file("second.safetensors")
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_apply_refuses_the_plan_of_another_model(cli: Cli, folder: Path) -> None:
    cli("prune", SOURCE, *INPUT, "-o", "first.safetensors", "--plan", "plan.json")
    (folder / "other.py").write_text("import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(8, 8))\n")
    ran = cli("apply", "other:net", "plan.json", "--input", "1x8", "-o", "second.safetensors")
    assert ran.code == 2 and "does not fit this model" in ran.err
    assert not Path("second.safetensors").exists()


def test_apply_does_not_write_over_its_plan(cli: Cli) -> None:
    cli("prune", SOURCE, *INPUT, "-o", "first.safetensors", "--plan", "plan.pt2")
    before = Path("plan.pt2").read_bytes()
    ran = cli("apply", SOURCE, "plan.pt2", *INPUT, "-o", "plan.pt2")
    assert ran.code == 2 and "is an input of this command" in ran.err
    assert Path("plan.pt2").read_bytes() == before


def test_verify_proves_the_artifact_with_the_input_it_was_pruned_at(cli: Cli, weights: Path) -> None:
    cli("prune", SOURCE, *INPUT, "--weights", weights, "-o", "slim.safetensors")
    ran = cli("verify", SOURCE, "slim.safetensors", "--weights", weights)
    assert ran.code == 0, ran.err
    assert "Verified against the masked original" in ran.out


def test_verify_exits_1_for_a_weight_that_is_not_the_originals(cli: Cli, weights: Path) -> None:
    """And accepts it with --trained, which compares structure."""
    cli("prune", SOURCE, *INPUT, "--weights", weights, "-o", "slim.safetensors")
    slim = read_artifact("slim.safetensors")
    with torch.no_grad():
        slim.module.get_parameter("head.weight")[0, 0] += 1
    write_artifact("slim.safetensors", slim.module, plan=slim.plan, inputs=slim.inputs)
    ran = cli("verify", SOURCE, "slim.safetensors", "--weights", weights, "--json")
    assert ran.code == 1 and "head.weight" in ran.err
    assert ran.data["verification"]["passed"] is False and ran.data["verification"]["error"] is None
    assert cli("verify", SOURCE, "slim.safetensors", "--weights", weights, "--trained").code == 0


def test_verify_needs_a_plan_from_somewhere(cli: Cli, weights: Path) -> None:
    cli("prune", SOURCE, *INPUT, "--weights", weights, "-o", "slim.safetensors", "--plan", "plan.json")
    slim = read_artifact("slim.safetensors")
    write_artifact("slim.safetensors", slim.module, inputs=slim.inputs)
    ran = cli("verify", SOURCE, "slim.safetensors", "--weights", weights)
    assert ran.code == 2 and "holds no plan" in ran.err
    assert cli("verify", SOURCE, "slim.safetensors", "--weights", weights, "--plan", "plan.json").code == 0


def test_a_slim_model_can_be_pruned_again(cli: Cli) -> None:
    cli("prune", SOURCE, *INPUT, "-o", "first.safetensors")
    ran = cli("prune", "first.safetensors", "--target", "macs=60%", "-o", "second.safetensors", "--json")
    assert ran.code == 0, ran.err
    assert ran.data["verification"]["passed"]
    assert ran.data["after"]["macs"] <= 0.6 * ran.data["before"]["macs"]


def test_accuracy_is_that_of_the_models_on_the_scaled_images(cli: Cli, folder: Path, weights: Path) -> None:
    """Bytes are divided by 255, then the mean and deviation are taken; the model's input follows from the images."""
    x = np.random.default_rng(0).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)
    y = np.arange(200) % 10
    np.savez(folder / "data.npz", x=x, y=y, x_test=x[:150], y_test=y[:150])
    scale = ("--data", "data.npz", "--mean", "0.5", "--std", "0.25")
    ran = cli("prune", SOURCE, "--weights", weights, *scale, "-o", "slim.safetensors", "--json")
    assert ran.code == 0, ran.err
    original = small_cnn().eval()
    original.load_state_dict(load_file(weights))
    batch = (torch.from_numpy(x[:150]).float() / 255 - 0.5) / 0.25
    expected = [
        float((m(batch).argmax(1).numpy() == y[:150]).mean()) for m in (original, graphprune.load("slim.safetensors").eval())
    ]
    accuracy = ran.data["accuracy"]
    assert accuracy["images"] == 150
    assert [accuracy["before"], accuracy["after"]] == pytest.approx(expected, abs=1e-12)
    again = cli("verify", SOURCE, "slim.safetensors", "--weights", weights, *scale, "--json")
    assert again.data["accuracy"] == accuracy
    assert "Top-1 accuracy on 150 images" in cli("verify", SOURCE, "slim.safetensors", "--weights", weights, *scale).out


def test_segmentation_has_no_top1_accuracy(cli: Cli, folder: Path) -> None:
    (folder / "dense.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 2, 3))\n"
    )
    np.savez(folder / "data.npz", x=np.zeros((4, 1, 8, 8), dtype=np.uint8), y=np.zeros(4, dtype=np.int64))
    ran = cli("prune", "dense:net", "--data", "data.npz", "-o", "slim.safetensors")
    assert ran.code == 2 and "(images, classes), and the model's is [4, 2, 4, 4]" in ran.err


def test_the_graph_is_printed_and_dumped_where_it_is_wanted(cli: Cli, folder: Path) -> None:
    ran = cli("prune", SOURCE, *INPUT, "-o", "slim.safetensors", "--json", "--print-after", "changed", "--dump-dir", "dump")
    assert ran.code == 0 and "after rewrite" in ran.err and "after score" not in ran.err
    names = {path.name for path in (folder / "dump").iterdir()}
    assert {"000_input.py", "004_rewrite.py", "005_verify.json"} <= names
    plan = json.loads((folder / "dump" / "005_verify.json").read_text())
    assert plan["kept"]


def test_a_pass_that_fails_leaves_a_reproducer(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> graphprune.Verification:
        return graphprune.Verification(1.0, 1e-4, 3, 0, "Node head differs.")

    monkeypatch.setattr("graphprune.passes.verification.verify.compare", wrong)
    ran = cli("prune", SOURCE, *INPUT, "-o", "slim.safetensors", "--dump-dir", "dump")
    assert ran.code == 1 and ran.err.startswith("graphprune: error: Node head differs.\nReproducer: ")
    assert (folder / "dump" / "005_verify" / "program.safetensors").is_file()
    assert not (folder / "slim.safetensors").exists()


def test_what_became_of_the_groups_is_said_in_a_line(cli: Cli) -> None:
    """Of a target that asks for nothing, too: a table of 100 % is easily taken for a failure."""
    ran = cli("prune", SOURCE, *INPUT, "--target", "channels=50%", "--ranking", "local", "-o", "slim.safetensors")
    assert "4 of 4 groups are narrower (-v lists them)." in ran.out
    ran = cli("prune", SOURCE, *INPUT, "--target", "macs=100%", "-o", "slim.safetensors")
    assert ran.code == 0 and "Nothing was removed: every channel stays." in ran.out


def test_pt2_output_says_that_its_sizes_are_fixed(cli: Cli) -> None:
    ran = cli("prune", SOURCE, *INPUT, "-o", "slim.pt2")
    assert "the example's sizes" in ran.out
    with pytest.raises(AssertionError, match="Guard failed"):
        torch.export.load("slim.pt2").module()(torch.zeros(2, 1, 8, 8))


def test_a_format_of_export_is_led_there(cli: Cli) -> None:
    ran = cli("prune", SOURCE, *INPUT, "-o", "slim.onnx")
    assert ran.code == 2 and "`graphprune export`" in ran.err and not Path("slim.onnx").exists()
