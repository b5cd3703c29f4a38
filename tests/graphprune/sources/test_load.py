"""Sources: what each kind of text gives, and what a bad one says."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import UsageError
from graphprune.sources import load_source
from graphprune.sources.load import names_code

_MODELS = """
from torch import nn

def net(width=8, name=""):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

class Holder:
    @staticmethod
    def make():
        return net(3)

ready = net(5)
number = 7

def listing():
    return [net()]

def broken():
    raise RuntimeError("no such backbone")
"""


class _RunsCode:
    """Unpickling it creates a file: proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.mark, "w"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a module of models in it."""
    (tmp_path / "toy_models.py").write_text(_MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_models", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def _refused(text: str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_source(text, **options)
    return str(caught.value)


def test_torchvision_model_is_built_without_weights_and_with_its_usual_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    for name in ("squeezenet1_1", "lraspp_mobilenet_v3_large"):
        source = load_source(f"torchvision:{name}")
        assert source.default_input == (1, 3, 224, 224) and source.text == f"torchvision:{name}"
        with torch.no_grad():
            source.model.eval()(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(("name", "size"), [("inception_v3", (1, 3, 299, 299)), ("r3d_18", (1, 3, 16, 112, 112))])
def test_torchvision_models_of_other_sizes_say_so(name: str, size: tuple[int, ...]) -> None:
    assert load_source(f"torchvision:{name}").default_input == size


def test_torchvision_optical_flow_brings_its_two_inputs() -> None:
    source = load_source("torchvision:raft_small")
    assert source.inputs is not None and [tuple(item.shape) for item in source.inputs.args] == [(1, 3, 128, 128)] * 2


def test_torchvision_arguments_are_passed_on() -> None:
    assert load_source("torchvision:squeezenet1_1(num_classes=7)").model.get_submodule("classifier.1").out_channels == 7


def test_unknown_torchvision_name_lists_the_nearest() -> None:
    message = _refused("torchvision:resnet5O")
    assert "no model 'resnet5O'" in message and "resnet50" in message


@pytest.mark.parametrize("text", ["torchvision:resnet18(weights='DEFAULT')", "timm:resnet10t(pretrained=True)"])
def test_arguments_that_would_download_are_refused(text: str) -> None:
    assert "would download" in _refused(text)


def test_timm_model_brings_its_own_input_size() -> None:
    pytest.importorskip("timm")
    assert load_source("timm:resnet10t").default_input == (1, 3, 176, 176)
    assert "resnet10t" in _refused("timm:resnet10tt")


def test_missing_timm_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert 'pip install "graphprune[timm]"' in _refused("timm:resnet10t")


def test_the_same_text_gives_the_same_weights_and_leaves_the_global_generator_alone(here: Path) -> None:
    state = torch.random.get_rng_state()
    first, second, other = (load_source("toy_models:net", seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(first["0.weight"], second["0.weight"]) and not torch.equal(first["0.weight"], other["0.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("text", "width"), [("net", 8), ("net(6)", 6), ("net(width=4, name='a:b(c)')", 4), ("Holder.make", 3), ("ready", 5)]
)
def test_python_factory_of_the_current_folder(here: Path, text: str, width: int) -> None:
    path = list(sys.path)
    source = load_source(f"toy_models:{text}")
    assert source.model.get_submodule("0").out_features == width and source.default_input is None
    assert sys.path == path


@pytest.mark.parametrize("folder", ["", "elsewhere", "a/package/inside"])
def test_a_file_of_python_is_imported_with_what_is_around_it(here: Path, folder: str) -> None:
    """By its name in the packages that it is in, so that relative imports work; beside a module of the current folder."""
    place = here / folder
    place.mkdir(parents=True, exist_ok=True)
    relative = "." if "package" in folder else ""
    for package in ("a/package", "a/package/inside"):
        if relative:
            (here / package / "__init__.py").touch()
    name = f"drawn_{len(folder)}"
    (place / f"{name}_widths.py").write_text("WIDTH = 5\n")
    (place / f"{name}.py").write_text(
        f"from torch import nn\nfrom {relative}{name}_widths import WIDTH\ndef net(width=WIDTH):\n    return nn.Linear(2, width)\n"
    )
    path, text = list(sys.path), str((place / f"{name}.py").relative_to(here))
    assert load_source(f"{text}:net").model.out_features == 5
    assert load_source(f"{place / name}.py:net(width=7)").model.out_features == 7
    assert sys.path == path and names_code(f"{text}:net")


def test_a_file_of_the_name_of_another_module_is_refused(here: Path) -> None:
    (here / "json.py").write_text("net = None\n")
    assert "another module is named json. Rename the file." in _refused("json.py:net")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toy_models:nett", "toy_models has no 'nett'; did you mean 'net'"),
        ("toy_modelz:net", "no Python module 'toy_modelz' in the current folder"),
        ("toy_modelz.py:net", "There is no file"),
        ("toy_models.py:nett", "toy_models.py has no 'nett'; did you mean 'net'"),
        ("toy_models:listing", "gives a list, not a torch.nn.Module"),
        ("toy_models:number", "gives a int, not a torch.nn.Module"),
        ("toy_models:broken", "Building toy_models:broken failed: RuntimeError: no such backbone."),
        ("toy_models:net(height=3)", "unexpected keyword argument 'height'"),
        ("toy_models:ready(3)", "takes no arguments"),
        ("toy_models:net(width=open('x', 'w'))", "are not literals"),
        ("toy_models:net(**{'width': 3})", "are not literals"),
        ("toy_models:net(3)(4)", "are not literals"),
        ("toy_models:", "Cannot read the model source"),
        ("resnet50", "Cannot tell what kind of model source 'resnet50' is. Use torchvision:NAME"),
        ("missing.pt2", "There is no file missing.pt2"),
    ],
)
def test_bad_source_says_what_and_what_to_do(here: Path, text: str, message: str) -> None:
    before = sorted(here.iterdir())
    assert message in _refused(text)
    assert sorted(here.iterdir()) == before


def test_a_failing_import_inside_the_users_module_is_not_called_a_missing_module(here: Path) -> None:
    (here / "needs_more.py").write_text("import surely_not_installed\n")
    assert "Importing needs_more failed: ModuleNotFoundError: No module named 'surely_not_installed'." in _refused("needs_more:net")


def test_a_factory_with_nan_weights_is_refused(here: Path) -> None:
    (here / "nan_models.py").write_text(
        "from torch import nn\ndef net():\n    m = nn.Linear(2, 2)\n    nn.init.constant_(m.bias, float('nan'))\n    return m\n"
    )
    assert "bias of nan_models:net holds 2 NaN or infinite values of 2" in _refused("nan_models:net")


def _exported(path: Path) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    torch.export.save(torch.export.export(model, (torch.ones(3, 4),)), path)
    return model


def test_exported_program_brings_its_module_and_example_inputs(tmp_path: Path) -> None:
    model = _exported(tmp_path / "m.pt2")
    source = load_source(str(tmp_path / "m.pt2"))
    assert source.inputs is not None and torch.equal(source.inputs.args[0], torch.ones(3, 4))
    assert torch.equal(source.model(torch.ones(3, 4)), model(torch.ones(3, 4)))


def test_truncated_exported_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    _exported(path)
    path.write_bytes(path.read_bytes()[:-500])
    before = path.read_bytes()
    assert "truncated" in _refused(str(path))
    assert path.read_bytes() == before


def test_exported_program_with_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    _exported(tmp_path / "m.pt2")
    hostile = io.BytesIO()
    torch.save(_RunsCode(tmp_path / "mark"), hostile)
    with zipfile.ZipFile(tmp_path / "m.pt2") as good, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, hostile.getvalue() if name.endswith(".pt") else good.read(name))
    message = _refused(str(tmp_path / "bad.pt2"))
    assert "can run any code" in message and "--trust-pickle" in message
    assert not (tmp_path / "mark").exists()


def test_an_artifact_brings_its_module_and_example_inputs(tmp_path: Path) -> None:
    result = graphprune.prune(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), torch.zeros(1, 2), target="channels=50%")
    graphprune.save(result, tmp_path / "slim.safetensors")
    source = load_source(str(tmp_path / "slim.safetensors"))
    assert source.inputs is not None and torch.equal(source.inputs.args[0], torch.zeros(1, 2))
    assert torch.equal(source.model(torch.ones(3, 2)), result.model(torch.ones(3, 2)))


def test_pickled_module_is_loaded_only_when_trusted(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save(nn.Linear(2, 3), path)
    message = _refused(str(path))
    assert "a pickle can run any code" in message and "--trust-pickle" in message and "state_dict() for --weights" in message
    model = load_source(str(path), trust_pickle=True).model
    assert isinstance(model, nn.Linear) and model.out_features == 3


def test_a_file_of_weights_in_place_of_a_model_says_how_both_are_named(tmp_path: Path) -> None:
    """It is seen without running code, so that nobody is told to trust a file that would then be refused."""
    path = tmp_path / "weights.pth"
    torch.save({"model": nn.Linear(2, 3).state_dict(), "epoch": 3}, path)
    message = _refused(str(path))
    assert "holds weights and no model" in message and f"package.module:factory --weights {path}" in message
    assert "trust" not in message


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("trusted", [False, True])
def test_a_scripted_model_is_named_as_one_whether_trusted_or_not(tmp_path: Path, trusted: bool) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)), tmp_path / "scripted.pt")
    assert "scripted (TorchScript) model" in _refused(str(tmp_path / "scripted.pt"), trust_pickle=trusted)


def test_a_folder_and_a_library_that_is_misspelt_are_answered_with_what_was_meant(tmp_path: Path) -> None:
    assert "a folder without config.json" in _refused(str(tmp_path))
    assert "did you mean 'torchvision'?" in _refused("torchvsion:resnet18")


def test_refusing_a_pickle_runs_nothing(tmp_path: Path) -> None:
    torch.save(_RunsCode(tmp_path / "mark"), tmp_path / "evil.pt")
    _refused(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "mark").exists()


def test_trusted_pickle_of_something_else_or_damaged_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "weights.pt")
    assert re.search(
        r"holds no module but something of class \w*[dD]ict", _refused(str(tmp_path / "weights.pt"), trust_pickle=True)
    )
    (tmp_path / "text.pt").write_text("hello")
    assert "cannot be unpickled" in _refused(str(tmp_path / "text.pt"), trust_pickle=True)


class Scaled(nn.Module):
    """Two inputs of one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.body(x) * scale  # type: ignore[no-any-return]


def test_an_exported_program_of_any_batch_gives_a_slim_model_of_any_batch(tmp_path: Path) -> None:
    """What the program checks of its inputs, the slim model checks; the sizes of the example are none of it."""
    example = torch.ones(2, 4), torch.ones(2, 1)
    any_batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Scaled().eval(), example, dynamic_shapes=(any_batch, any_batch))
    torch.export.save(program, tmp_path / "m.pt2")
    source = load_source(str(tmp_path / "m.pt2"))
    slim = graphprune.prune(source.model, source.inputs, target="channels=50%").model
    for batch in (1, 7):
        assert slim(torch.ones(batch, 4), torch.ones(batch, 1)).shape == (batch, 3)
    for refused in ((torch.ones(2, 5), torch.ones(2, 1)), (torch.ones(2, 4), torch.ones(3, 1))):
        with pytest.raises(AssertionError, match="size"):
            slim(*refused)


def test_an_onnx_file_is_no_model_to_look_into(here: Path) -> None:
    (here / "net.onnx").write_bytes(b"")
    assert "ONNX file, which is for other runtimes. Name the model" in _refused("net.onnx")
