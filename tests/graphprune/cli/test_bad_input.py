"""Bad input ends in one message that names it and the remedy, in the right exit code, and in files left as they were."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

Refused = Callable[..., str]

SOURCE = "graphprune.cli.digits:small_cnn"
PRUNE = ("prune", SOURCE, "--input", "1x1x8x8", "-o", "slim.safetensors")


def _module(folder: Path, text: str) -> None:
    (folder / "own_models.py").write_text(f"import torch\nfrom graphprune.cli.digits import small_cnn\n{text}")


def test_wrong_input_shape_names_the_shape_and_the_layer(refused: Refused) -> None:
    message = refused("prune", SOURCE, "--input", "1x3x8x8", "-o", "slim.safetensors")
    assert "float32[1x3x8x8]" in message and "stem" in message and "Give example inputs of the shape" in message


def test_integer_input_to_a_float_model_names_the_dtype(refused: Refused) -> None:
    message = refused("prune", SOURCE, "--input", "1x1x8x8:int64", "-o", "slim.safetensors")
    assert "int64[1x1x8x8]" in message and "dtype" in message


@pytest.mark.parametrize("text", ["3xx8", "1x3x8x8:float128", "-1x3"])
def test_unreadable_input_text_is_quoted(refused: Refused, text: str) -> None:
    message = refused("prune", SOURCE, f"--input={text}", "-o", "slim.safetensors")
    assert repr(text) in message and "1x3x224x224" in message


def test_unknown_input_shape_asks_for_one(refused: Refused) -> None:
    assert "Give it with --input" in refused("prune", SOURCE, "-o", "slim.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("head.bias"), "1 missing (head.bias)"),
        (lambda tensors: tensors.update(other=torch.zeros(2)), "1 extra (other)"),
        (lambda tensors: tensors["stem.weight"].fill_(torch.nan), "stem.weight"),
        (lambda tensors: tensors.update({"head.bias": torch.zeros(11)}), "head.bias is 11 but should be 10"),
    ],
    ids=["missing", "extra", "nan", "shape"],
)
def test_weights_that_do_not_fit_are_named(
    refused: Refused, weights: Path, change: Callable[[dict[str, torch.Tensor]], object], told: str
) -> None:
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    message = refused(*PRUNE, "--weights", weights)
    assert told in message and weights.name in message and "Use " in message


def test_missing_weights_file_is_named(refused: Refused) -> None:
    assert "There is no weights file nowhere.pth" in refused(*PRUNE, "--weights", "nowhere.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_scripted_model_is_refused_with_the_remedy(refused: Refused, folder: Path) -> None:
    _module(folder, "def scripted():\n    return torch.jit.script(torch.nn.Sequential(torch.nn.Linear(8, 8)))\n")
    message = refused("prune", "own_models:scripted", "--input", "1x8", "-o", "slim.safetensors")
    assert "scripted (TorchScript)" in message and "before torch.jit.script" in message


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("macs=0%", "macs=0% must be over 0 %"),
        ("macs=0", "macs=0 must be over 0 %"),
        ("macs=120%", "at most 100 %"),
        ("channels=1.5", "over 100 %"),
        ("macs=half", "is no number"),
        ("macs", "has no '='"),
        ("speed=50%", "no target 'speed'"),
    ],
)
def test_target_that_makes_no_sense_is_refused(refused: Refused, target: str, told: str) -> None:
    assert told in refused(*PRUNE, "--target", target)


def test_target_given_twice_is_refused(refused: Refused) -> None:
    assert "--target macs is given twice" in refused(*PRUNE, "--target", "macs=50%", "--target", "macs=40%")


def test_target_out_of_reach_exits_1_and_says_how_far_it_goes(refused: Refused) -> None:
    message = refused(*PRUNE, "--target", "macs=0.01%", code=1)
    assert "macs=0.01% cannot be met" in message and "can go down to" in message and "head" in message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--criterion", "l3"), "no criterion 'l3'"),
        (("--reduction", "median"), "reduction=median"),
        (("--normalise", "softmax"), "normalise=softmax"),
        (("--ranking", "loacl"), "ranking=loacl"),
        (("--round-to", "0"), "round_to=0 of select"),
        (("--min-channels", "-1"), "min_channels=-1 of select"),
        (("--max-ratio", "2"), "max_ratio=2.0 of select"),
        (("--target", "macs=-5%"), "macs=-5% is negative"),
        (("--policy", "hads=whole"), "no policy 'hads'; did you mean 'heads'?"),
        (("--policy", "heads=wole"), "heads=wole"),
        (("--policy", "heads"), "has no '='"),
        (("--exclude", "nowhere.*"), "'nowhere.*' matches no parameter of the model. `graphprune inspect`"),
        (("--exclude", "haed"), "'haed' matches no parameter of the model; did you mean 'head'?"),
        (("--pipeline", "channels,scoer,select{macs=50%},rewrite"), "no pass 'scoer'; did you mean 'score'?"),
        (("--pipeline", "score,select{macs=50%}"), "does not rewrite the model"),
        (("--pipeline", "select{macs=50%},rewrite"), "needs scores; put 'score' before it"),
        (("--pipeline", "score,rewrite", "--criterion", "l1"), "--pipeline replaces --criterion"),
        (("--pipeline", "score,rewrite", "--no-verify"), "--pipeline replaces --no-verify"),
        (("--print-after", "scoer"), "'scoer'"),
        (("--scope", "nowhere"), "'nowhere' is no submodule of SmallCNN; check the spelling."),
        (("--scope", "blok"), "'blok' is no submodule of SmallCNN; did you mean 'block"),
        (("--seed", "x"), "--seed"),
        (("--nonsense",), "--nonsense"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_options_that_do_not_exist_are_named_with_what_does(refused: Refused, arguments: tuple[str, ...], told: str) -> None:
    assert told in refused(*PRUNE, *arguments)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("torchvision:resnet5", "resnet50"),
        ("no_such_package.models:net", "no Python module"),
        ("graphprune.cli.digits:small_cnm", "did you mean 'small_cnn'?"),
        ("missing.pt2", "There is no file missing.pt2"),
        ("resnet50", "Cannot tell what kind of model source"),
        ("slim.safetensors", "slim.safetensors"),
    ],
)
def test_unknown_source_is_told_with_what_is_near(refused: Refused, source: str, told: str) -> None:
    message = refused("prune", source, "--input", "1x1x8x8", "-o", "out.safetensors")
    assert told in message


def test_pickled_model_needs_trust(refused: Refused, folder: Path) -> None:
    (folder / "model.pth").write_bytes(b"\x80\x02.")
    assert "--trust-pickle" in refused("prune", "model.pth", "--input", "1x1x8x8", "-o", "slim.safetensors")


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("nowhere/slim.safetensors", "the folder nowhere does not exist"),
        ("slim.onnx", ".safetensors (artifact), .pt2 (exported program) or .json (plan)"),
        ("weights.safetensors", "is an input of this command"),
        ("a_folder.pt2", "it is a folder"),
    ],
)
def test_output_that_cannot_be_written_is_refused_before_the_model_is_built(
    refused: Refused, folder: Path, weights: Path, out: str, told: str
) -> None:
    (folder / "a_folder.pt2").mkdir()
    _module(folder, "raise RuntimeError('the model was built')\n")
    message = refused("prune", "own_models:net", "--weights", weights, "--input", "1x1x8x8", "-o", out)
    assert told in message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_refused(refused: Refused, folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o555)
    assert "not writable" in refused("prune", SOURCE, "--input", "1x1x8x8", "-o", "locked/slim.safetensors")


def test_plan_and_model_may_not_share_a_path(refused: Refused) -> None:
    assert "is to hold another result" in refused(*PRUNE, "--plan", "slim.safetensors")


def test_failure_while_writing_leaves_the_old_file(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graphprune.artifact.file.save_file", full)
    assert "No space left on device" in refused(*PRUNE)


def _save_data(path: Path, **arrays: object) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


_X = np.zeros((4, 1, 8, 8), dtype=np.uint8)
_Y = np.arange(4)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"images": _X, "labels": _Y}, "images, labels, but neither x_test and y_test"),
        ({"x": _X, "y": _Y[:3]}, "images [4, 1, 8, 8] and labels [3]"),
        ({"x": _X, "y": _Y.astype(float)}, "labels in digits.npz are float64"),
        ({"x": _X.astype(np.int32), "y": _Y}, "images in digits.npz are int32"),
        ({"x": np.full((4, 1, 8, 8), np.nan), "y": _Y}, "NaN or infinite"),
        ({"x": _X, "y": _Y + 8}, "label 11, but the model has 10 classes"),
        ({"x": _X, "y": _Y - 1}, "label -1"),
        ({"x": np.zeros((4, 3, 8, 8), dtype=np.uint8), "y": _Y}, "does not take the images [3, 8, 8]"),
        ({"x": _X[:0], "y": _Y[:0]}, "n over 0"),
    ],
    ids=["names", "lengths", "labels", "integers", "nan", "high", "low", "channels", "empty"],
)
def test_data_that_does_not_fit_is_refused(refused: Refused, folder: Path, arrays: dict[str, object], told: str) -> None:
    _save_data(folder / "digits.npz", **arrays)
    message = refused(*PRUNE, "--data", "digits.npz")
    assert told in message and "digits.npz" in message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--mean", "0.5,0.5,0.5"), "--mean has 3 values, but the images have 1 channels"),
        (("--std", "0"), "holds a zero"),
        (("--mean", "half"), "is not numbers"),
    ],
)
def test_scales_that_do_not_fit_the_images_are_refused(
    refused: Refused, folder: Path, arguments: tuple[str, ...], told: str
) -> None:
    _save_data(folder / "digits.npz", x=_X, y=_Y)
    assert told in refused(*PRUNE, "--data", "digits.npz", *arguments)


def test_damaged_data_and_scales_without_data_are_refused(refused: Refused, folder: Path) -> None:
    (folder / "digits.npz").write_bytes(b"PK\x03\x04 and nothing more")
    assert "is damaged" in refused(*PRUNE, "--data", "digits.npz")
    assert "scale the images of --data and --calibrate" in refused(*PRUNE, "--mean", "0.5")
    assert "no data file" in refused(*PRUNE, "--data", "none.npz")


def test_pickled_arrays_are_not_loaded(refused: Refused, folder: Path) -> None:
    """Object arrays are pickles, which could run code."""
    _save_data(folder / "digits.npz", x=np.array([{}], dtype=object), y=_Y[:1])
    assert "plain arrays" in refused(*PRUNE, "--data", "digits.npz")


@pytest.mark.parametrize("text", ["{}", "not json", '{"kept": {"w": {"0": [0]}}, "model": {"w": "float32[2]"}}'])
def test_plan_that_does_not_fit_is_refused(refused: Refused, folder: Path, text: str) -> None:
    (folder / "plan.json").write_text(text)
    message = refused("apply", SOURCE, "plan.json", "--input", "1x1x8x8", "-o", "slim.safetensors")
    assert "plan" in message


def test_apply_writes_models_only(refused: Refused) -> None:
    assert ".safetensors (artifact) or .pt2" in refused("apply", SOURCE, "plan.json", "--input", "1x1x8x8", "-o", "slim.json")


def test_a_factory_that_fails_is_told_with_its_own_error(refused: Refused, folder: Path) -> None:
    _module(folder, "def net():\n    raise ValueError('width must be even')\n")
    message = refused("inspect", "own_models:net", "--input", "1x1x8x8")
    assert "ValueError: width must be even" in message


def test_the_current_folder_does_not_stay_on_the_import_path(refused: Refused, folder: Path) -> None:
    refused("inspect", "own_models:net")
    assert str(folder) not in sys.path
