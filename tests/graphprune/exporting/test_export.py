"""Exported files compute what the model computes, at any batch; what cannot be exported is refused and leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import graphprune
from graphprune.errors import UsageError, VerificationError
from graphprune.exporting import Exported, export_model, onnx_file, program
from graphprune.ir.program import Inputs


class Net(nn.Module):
    """Views that name the batch, a batch norm, and an input by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu()
        y = y.reshape(x.shape[0], y.shape[1], -1).mean(2)
        return self.head(y) * scale  # type: ignore[no-any-return]


class Fixed(nn.Module):
    """Takes the example's batch and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).reshape(2, 8)  # type: ignore[no-any-return]


INPUTS = Inputs((torch.randn(1, 3, 6, 6), torch.ones(1, 1)))


def _slim() -> fx.GraphModule:
    torch.manual_seed(0)
    return graphprune.prune(Net(), INPUTS, target="channels=50%").graph


def test_a_program_of_torch_export_runs_at_any_batch(tmp_path: Path) -> None:
    slim = _slim()
    said = export_model(slim, INPUTS, tmp_path / "m.pt2", plan="{}")
    loaded = torch.export.load(tmp_path / "m.pt2").module()
    for batch in (1, 5):
        given = torch.randn(batch, 3, 6, 6), torch.rand(batch, 1)
        torch.testing.assert_close(loaded(*given), slim.eval()(*given))
    assert said.batches == (1, 2, 3) and said.error is not None and said.error < 1e-5


def test_the_mode_of_the_model_stays(tmp_path: Path) -> None:
    slim = _slim().train()
    export_model(slim, INPUTS, tmp_path / "m.pt2")
    assert slim.training and slim.get_submodule("norm").training


@pytest.mark.skipif(find_spec("onnxscript") is None or find_spec("onnxruntime") is None, reason="needs onnxscript and onnxruntime")
def test_onnx_runs_at_any_batch(tmp_path: Path) -> None:
    import onnxruntime

    slim = _slim()
    said = export_model(slim, INPUTS, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x, scale = torch.randn(5, 3, 6, 6), torch.rand(5, 1)
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (x.numpy(), scale.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(found), slim.eval()(x, scale).detach(), rtol=1e-4, atol=1e-5)
    assert said.batches == (1, 2, 3) and said.error is not None and said.error < 1e-5


def test_onnx_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"onnx and onnxscript. Install graphprune\[onnx\]"):
        export_model(_slim(), INPUTS, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_keeps_its_plan(tmp_path: Path) -> None:
    result = graphprune.prune(Net(), INPUTS, target="channels=50%")
    export_model(result.graph, INPUTS, tmp_path / "m.safetensors", plan=result.plan.model_dump_json())
    found = graphprune.verify(Net(), graphprune.load(tmp_path / "m.safetensors"), result.plan, INPUTS, weights=False)
    assert found.passed


def test_sizes_of_the_example_alone_where_the_model_takes_no_others(tmp_path: Path) -> None:
    module, inputs = graphprune.capture(Fixed(), torch.randn(2, 4)).module, Inputs((torch.randn(2, 4),))
    with pytest.raises(UsageError, match="--static"):
        export_model(module, inputs, tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []
    export_model(module, inputs, tmp_path / "m.pt2", dynamic=False)
    assert torch.export.load(tmp_path / "m.pt2").module()(torch.ones(2, 4)).shape == (2, 8)


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = program.exported

    def damaged(job: Any) -> Any:
        made = original(job)
        made.state_dict["head.bias"] = nn.Parameter(made.state_dict["head.bias"] + 1)
        return made

    monkeypatch.setattr(program, "exported", damaged)
    with pytest.raises(VerificationError, match="is not written: its outputs are off"):
        export_model(_slim(), INPUTS, tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("inputs", "name", "says"),
    [
        (INPUTS, "m.tflite", "End it in .pt2"),
        (Inputs((torch.randn(1, 3, 6, 6), torch.ones(3, 1))), "m.pt2", "leading size"),
        (INPUTS, "missing/m.pt2", "does not exist"),
        (INPUTS, "m", "or give the format"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, inputs: Inputs, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        export_model(_slim(), inputs, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "format", "says"),
    [("m.onnx", "aot", "End it in .pt2"), ("m.pt2", "fx-folder", "it is a folder"), ("m.pt2", "onxx", "onnx")],
)
def test_a_format_that_does_not_go_with_the_name_is_refused(tmp_path: Path, name: str, format: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        export_model(_slim(), INPUTS, tmp_path / name, format=format)
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_is_told() -> None:
    assert str(Exported((1, 2), 1e-7, 0.5, 1.25)) == (
        "It was run at batches 1, 2: largest relative error 1.0e-07. A call takes 0.5 ms, and 1.25 ms in PyTorch"
    )
    assert str(Exported(note="It was not run")) == "It was not run"


class Counting(nn.Module):
    """Keeps a mean and a count of its calls in eval mode, too; some of the layers stay in eval mode in training."""

    mean: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head, self.out = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        self.calls += 1
        self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return self.out(y - self.mean)  # type: ignore[no-any-return]


ONNX = pytest.mark.skipif(
    find_spec("onnxscript") is None or find_spec("onnxruntime") is None, reason="needs onnxscript and onnxruntime"
)


@pytest.mark.parametrize(
    ("name", "says"), [("m.pt2", ""), ("m", ""), pytest.param("m.onnx", "(mean, calls) stays as it is now", marks=ONNX)]
)
def test_a_model_that_remembers_its_calls_is_compared_from_its_state_and_keeps_it(tmp_path: Path, name: str, says: str) -> None:
    model = graphprune.capture(Counting(), torch.randn(2, 4)).module.train()
    model.get_submodule("head").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = export_model(model, torch.randn(2, 4), tmp_path / name, format="fx-folder" if name == "m" else None)
    assert says in said.note and said.error is not None and said.error < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model.get_submodule("head").training


class Pooled(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.conv(image).relu().mean((2, 3)))  # type: ignore[no-any-return]


def test_other_axes_may_have_any_size(tmp_path: Path) -> None:
    said = export_model(Pooled(), torch.randn(1, 3, 6, 8), tmp_path / "m.pt2", dynamic={"image": (2, 3)})
    assert said.larger == "float32[2x3x12x16]" and "and at float32[2x3x12x16]" in str(said)
    assert torch.export.load(tmp_path / "m.pt2").module()(torch.randn(3, 3, 7, 5)).shape == (3, 4)


@ONNX
def test_sizes_of_onnx_have_names(tmp_path: Path) -> None:
    import onnx

    export_model(Net(), INPUTS, tmp_path / "m.onnx")
    export_model(Pooled(), torch.randn(2, 3, 6, 8), tmp_path / "p.onnx", dynamic={"image": (2, -1)})
    found = []
    for name in ("m.onnx", "p.onnx"):
        graph = onnx.load(tmp_path / name).graph
        for value in (*graph.input, *graph.output):
            found.append([size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim])
    assert found == [
        *(["batch", 3, 6, 6], ["batch", 1], ["batch", 4]),
        *(["batch", 3, "image_2", "image_3"], ["batch", 4]),
    ]


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"x": (2,)}, "no input 'x'"),
        ({"image": (4,)}, "none numbered 4"),
        ({"image": (1,)}, "Leave out axes"),  # the convolution fixes it
    ],
)
def test_axes_that_cannot_have_any_size_are_refused(tmp_path: Path, axes: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        export_model(Pooled(), torch.randn(1, 3, 6, 8), tmp_path / "m.pt2", dynamic=axes)
    with pytest.raises(UsageError, match="1 in the example"):
        export_model(Pooled(), torch.randn(1, 3, 1, 8), tmp_path / "m.pt2", dynamic={"image": (2,)})


class Tabled(nn.Module):
    """Takes at most as many tokens as it has places for."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(9, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places[: x.shape[1]]


def test_a_model_that_takes_no_larger_sizes_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(does not take float32\[2x12x4\]|cannot follow).*Leave out axes"):
        export_model(Tabled(), torch.randn(2, 6, 4), tmp_path / "m.pt2", dynamic={"x": (1,)})


class Deciding(nn.Module):
    """Does not trace as a whole; its backbone does."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Pooled()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.backbone(x)
        return y[y[:, 0] > float(y.detach().mean())]


def test_a_model_that_was_pruned_in_scopes_is_exported_part_by_part(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 6, 8)
    result = graphprune.prune(Deciding(), image, target="channels=50%", scopes=["backbone"])
    with pytest.raises(UsageError, match="Export its parts, each with inputs of its own: backbone"):
        export_model(result.model, image, tmp_path / "m.pt2")
    with pytest.raises(UsageError, match="export each by itself"):
        export_model(result.graph, result.inputs, tmp_path / "m.pt2")
    assert export_model(result.model.get_submodule("backbone"), image, tmp_path / "m.pt2").batches == (1, 2, 3)


def test_a_model_that_keeps_its_class_is_exported(tmp_path: Path) -> None:
    result = graphprune.prune(Pooled(), torch.randn(1, 3, 6, 8), target="channels=50%", keep_class=True)
    assert isinstance(result.model, Pooled)
    assert export_model(result.model, torch.randn(1, 3, 6, 8), tmp_path / "m.pt2").error == 0


@ONNX
def test_what_onnxruntime_cannot_run_is_refused(tmp_path: Path) -> None:
    model, image = Pooled().to(torch.bfloat16), torch.randn(1, 3, 6, 8).to(torch.bfloat16)
    with pytest.raises(UsageError, match="onnxruntime cannot run"):
        export_model(model, image, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
