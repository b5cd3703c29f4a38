"""What is saved comes back: outputs to the bit, names, modes, strides, ties, plan, inputs and provenance."""

from __future__ import annotations

import copy
import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn

import graphprune
from graphprune.artifact import Artifact, read_artifact, write_artifact
from graphprune.errors import ArtifactError, UsageError
from graphprune.ir.program import Inputs
from graphprune.tracing import capture

ROOT = Path(__file__).parents[3]


def round_trip(module: fx.GraphModule, path: Path, **parts: Any) -> Artifact:
    write_artifact(path, module, **parts)
    return read_artifact(path)


def capture_model(model: nn.Module, *inputs: torch.Tensor) -> fx.GraphModule:
    return capture(model.eval(), inputs).module


def facts(module: nn.Module) -> dict[str, Any]:
    """Everything about a module's tensors and modes that a save must keep, but their values."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {
        "tensors": [(name, type(t), t.dtype, tuple(t.shape), t.stride(), t.requires_grad) for name, t in tensors],
        "state": list(module.state_dict()),
        "modes": [(name, type(child) if name else "root", child.training) for name, child in module.named_modules()],
    }


def small_swin() -> nn.Module:
    """Has functions that torchvision keeps whole when it is traced."""
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7], num_classes=5)  # type: ignore[no-any-return]


class Custom(nn.Module):
    """Functional calls, slices, tied weights, functional dropout, a dtype argument, a buffer that is not saved, a dict output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(8), requires_grad=False)
        self.register_buffer("offset", torch.randn(8), persistent=False)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: torch.Tensor, *, gain: torch.Tensor | None = None) -> dict[str, Any]:
        y = F.dropout(torch.relu(self.first(x)), 0.5, training=self.training)
        y = self.second(y) * self.scale + self.offset
        if gain is not None:
            y = y * gain
        masked = y.masked_fill(y < 0, float("-inf")).to(dtype=torch.float64)
        half = y[:, 1:-1:2, ...].reshape(x.shape[0], -1)
        return {"y": y, "pair": (masked.softmax(-1), [half, self.count]), "none": None}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny"])
def test_torchvision_model_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    module = capture_model(torchvision.models.get_model(name, weights=None), x)
    loaded = round_trip(module, tmp_path / "a.safetensors").module
    with torch.no_grad():
        assert torch.equal(module(x), loaded(x))
    assert facts(loaded) == facts(module)
    assert loaded.code == module.code


def test_custom_model_keeps_structure_keywords_ties_and_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 8), "gain": torch.tensor(2.0)}
    module = capture(Custom(), inputs).module
    loaded = round_trip(module, tmp_path / "a.safetensors").module
    module.eval(), loaded.eval()
    expected, found = module(**inputs), loaded(**inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert type(found["pair"]) is tuple and list(found) == ["y", "pair", "none"]
    assert loaded.get_parameter("first.weight") is loaded.get_parameter("second.weight")
    assert facts(loaded) == facts(module)
    assert "offset" not in loaded.state_dict() and "count" in loaded.state_dict()


def test_functional_dropout_follows_the_mode_of_the_loaded_model(tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    loaded = round_trip(capture_model(Custom(), x), tmp_path / "a.safetensors").module
    assert torch.equal(loaded.eval()(x)["y"], loaded(x)["y"])
    loaded.train()
    assert not torch.equal(loaded(x)["y"], loaded(x)["y"])


def test_loaded_model_can_be_copied_trained_and_captured_again(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 64, 64)
    loaded = round_trip(capture_model(small_swin(), x), tmp_path / "a.safetensors").module.eval()
    twin = copy.deepcopy(loaded)
    twin.load_state_dict(loaded.state_dict())
    again = capture(twin, x).module
    with torch.no_grad():
        assert torch.equal(twin(x), loaded(x)) and torch.equal(again(x), loaded(x))
    loaded.train()(x).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_file_is_plain_safetensors_with_tied_tensors_once(tmp_path: Path) -> None:
    module = capture_model(Custom(), torch.randn(2, 8))
    write_artifact(tmp_path / "a.safetensors", module)
    stored = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert set(stored) == {"scale", "offset", "count", "first.weight", "first.bias", "second.bias"}
    assert torch.equal(stored["first.weight"], module.get_parameter("first.weight"))


def test_memory_format_dtype_gradient_and_per_module_mode_are_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
    module = capture_model(model, torch.zeros(1, 3, 8, 8))
    module.get_submodule("2").to(torch.bfloat16).requires_grad_(False)
    module.get_submodule("1").train()
    loaded = round_trip(module, tmp_path / "a.safetensors").module
    assert facts(loaded) == facts(module)
    assert not loaded.get_parameter("0.weight").is_contiguous() and loaded.get_submodule("1").training
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), module.state_dict().values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.complex64, torch.int8, torch.uint16, torch.bool])
def test_buffers_of_any_dtype_and_shape_keep_their_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    graph = fx.Graph()
    graph.output((graph.get_attr("full"), graph.get_attr("scalar"), graph.get_attr("empty"), graph.get_attr("view")))
    holder = nn.Module()
    full = torch.arange(12).reshape(3, 4).to(dtype)
    for name, value in {"full": full, "scalar": full[1, 1], "empty": full[:0], "view": full.t()[1:]}.items():
        holder.register_buffer(name, value)
    module = fx.GraphModule(holder, graph)
    loaded = round_trip(module, tmp_path / "a.safetensors").module
    for found, expected in zip(loaded(), module(), strict=True):
        assert found.dtype is dtype and found.tolist() == expected.tolist() and found.shape == expected.shape


def test_recurrent_attention_and_transformer_leaves_load(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(8, 8, num_layers=2, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.rnn(x)
            z = self.attention(y, y, y)[0]
            return self.layer(z)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    module = capture_model(Net(), x)
    loaded = round_trip(module, tmp_path / "a.safetensors").module
    assert torch.equal(loaded(x), module(x))
    assert torch.equal(copy.deepcopy(loaded)(x), module(x))


def test_module_under_two_names_stays_one_module(tmp_path: Path) -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    graph = fx.Tracer().trace(model)
    module = fx.GraphModule(model, graph)
    module.add_module("again", module.get_submodule("0"))
    loaded = round_trip(module, tmp_path / "a.safetensors").module
    assert loaded.get_submodule("again") is loaded.get_submodule("0")
    assert list(loaded.state_dict()) == list(module.state_dict())


CONSTANTS = [
    (1, 1.0, True, None, "text 'with' \"quotes\"\n", -0.0, 1e-300, 2**40),
    [float("inf"), float("-inf")],
    {"a": (1,), 2: [()]},
    (torch.float16, torch.device("cpu"), torch.channels_last, torch.strided),
    (slice(None, -1, 2), ..., complex(1, -2), range(0, 4, 2)),
    torch.Size([2, 3]),
]


@pytest.mark.parametrize("constant", CONSTANTS, ids=lambda value: type(value).__name__)
def test_constants_come_back_with_their_types(constant: Any, tmp_path: Path) -> None:
    graph = fx.Graph()
    graph.placeholder("x")
    graph.output(constant)
    module = fx.GraphModule(nn.Module(), graph)
    loaded = round_trip(module, tmp_path / "a.safetensors").module
    assert repr(loaded(torch.zeros(1))) == repr(module(torch.zeros(1)))
    assert repr(list(loaded.graph.nodes)[-1].args) == repr(list(module.graph.nodes)[-1].args)


def test_arguments_keep_names_and_defaults_and_operators_their_overload(tmp_path: Path) -> None:
    graph = fx.Graph()
    x, scale = graph.placeholder("input"), graph.placeholder("scale", default_value=2.0)
    y = graph.call_function(torch.ops.aten.mul.Tensor, (x, scale))
    cut: Any = (slice(0, 1), ...)
    graph.output(graph.call_function(operator.getitem, (y, cut)))
    loaded = round_trip(fx.GraphModule(nn.Module(), graph), tmp_path / "a.safetensors").module
    assert torch.equal(loaded(input=torch.ones(2)), torch.full((1,), 2.0))
    assert [n.target for n in loaded.graph.nodes][2] is torch.ops.aten.mul.Tensor


def test_plan_inputs_and_provenance_come_back(tmp_path: Path) -> None:
    module = capture_model(nn.Linear(4, 2), torch.zeros(1, 4))
    inputs = Inputs((torch.ones(2, 4), [torch.ones(3, dtype=torch.int64), 5]), {"flag": True, "mode": None, "name": "a"})
    plan = json.dumps({"version": 1})
    artifact = round_trip(module, tmp_path / "a.safetensors", plan=plan, inputs=inputs, provenance={"source": "test"})
    assert artifact.plan == plan and artifact.provenance == {"source": "test"}
    assert artifact.inputs.kwargs == {"flag": True, "mode": None, "name": "a"}
    assert torch.equal(artifact.inputs.args[0], torch.zeros(2, 4)) and artifact.inputs.args[1][0].dtype is torch.int64
    assert artifact.inputs.args[1][1] == 5
    assert round_trip(module, tmp_path / "b.safetensors").plan is None


def test_a_process_that_never_saw_the_class_gets_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    module = capture_model(Custom(), x)
    write_artifact(tmp_path / "a.safetensors", module)
    safetensors.torch.save_file({"x": x, "y": module(x)["y"].detach()}, tmp_path / "io.safetensors")
    script = f"""
import sys, torch, safetensors.torch
from graphprune.artifact import read_artifact
io = safetensors.torch.load_file({str(tmp_path / "io.safetensors")!r})
module = read_artifact({str(tmp_path / "a.safetensors")!r}).module
assert torch.equal(module(io["x"])["y"], io["y"])
assert not any("test_round_trip" in name for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_parts_that_are_code_are_refused_by_name_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    hooked = capture_model(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 4))
    hooked.get_submodule("0").register_forward_hook(lambda *_: None)
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    own = fx.Graph()
    own.output(own.call_module("custom", (own.placeholder("x"),)))
    holder = nn.Module()
    holder.custom = Custom()
    strange = capture_model(nn.Sequential(nn.ReLU()), torch.zeros(1, 4))
    strange.get_submodule("0").__dict__["extra"] = object()
    foreign = fx.Graph()
    foreign.output(foreign.call_function(json.dumps, (foreign.placeholder("x"),)))
    leaf = fx.Graph()
    leaf.output(leaf.call_module("0", (leaf.placeholder("x"),)))
    wide = capture_model(Custom(), torch.zeros(1, 8))
    wide.offset = torch.zeros(1, dtype=torch.complex128)
    cases = {
        "module 0 .*hooks": hooked,
        "module 0 .*parametrised": fx.GraphModule(nn.Sequential(parametrised), leaf),
        "module custom .*not one of torch.nn": fx.GraphModule(holder, own),
        "attribute extra is not plain data": strange,
        "json.dumps": fx.GraphModule(nn.Module(), foreign),
    }
    for message, module in cases.items():
        with pytest.raises(ArtifactError, match=rf"(?s){message}.*-o slim\.pt2"):
            write_artifact(path, module)
    with pytest.raises(ArtifactError, match=r"tensor offset has dtype torch\.complex128"):
        write_artifact(path, wide)
    with pytest.raises(ArtifactError, match="meta device"):
        write_artifact(path, capture_model(nn.Linear(4, 4), torch.zeros(1, 4)).to("meta"))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        write_artifact(tmp_path / "gone" / "a.safetensors", capture_model(nn.Linear(4, 4), torch.zeros(1, 4)))


def test_stochastic_depth_of_another_library_is_stored_as_it_is_in_eval_mode(tmp_path: Path) -> None:
    class DropPath(nn.Module):
        def __init__(self, scaled: bool) -> None:
            super().__init__()
            self.rate, self.scaled = 0.5, scaled

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                return x * 0.5 if self.scaled else x
            return x * torch.empty(x.shape[0], 1).bernoulli_(self.rate)

    model = nn.Sequential(nn.Linear(4, 6), DropPath(False), nn.Linear(6, 2))
    x = torch.rand(8, 4)
    module = capture_model(model, x)
    assert isinstance(module.get_submodule("1"), DropPath) and not torch.equal(module.train()(x), module(x))
    loaded = round_trip(module.eval(), tmp_path / "a.safetensors").module
    assert isinstance(loaded.get_submodule("1"), nn.Identity) and torch.equal(loaded(x), module(x))
    with pytest.raises(ArtifactError, match=r"the module 1 \(DropPath\) cannot be stored"):
        round_trip(capture_model(nn.Sequential(nn.Linear(4, 6), DropPath(True)), x), tmp_path / "b.safetensors")


def test_what_does_not_follow_train_mode_is_told_after_loading(tmp_path: Path) -> None:
    """Captured again, a loaded model still says so: its graph alone does not."""

    class Stuck(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.mean.copy_(x.mean(0))
            return self.layer(x) - self.mean  # type: ignore[no-any-return]

    result = graphprune.prune(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4), Stuck()), torch.ones(2, 4), target="channels=50%")
    assert result.report.eval_only.keys() == {"2"}
    graphprune.save(result, tmp_path / "slim.safetensors")
    slim = graphprune.load(tmp_path / "slim.safetensors")
    assert slim.meta["eval_only"] == result.report.eval_only
    assert graphprune.capture(slim, torch.ones(2, 4)).eval_only == result.report.eval_only


def test_a_model_that_follows_in_all_has_nothing_to_tell(tmp_path: Path) -> None:
    result = graphprune.prune(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), torch.ones(2, 4), target="channels=50%")
    graphprune.save(result, tmp_path / "slim.safetensors")
    assert graphprune.load(tmp_path / "slim.safetensors").meta["eval_only"] == {}


def test_a_label_in_the_place_of_a_method_is_left_out(tmp_path: Path) -> None:
    """Ultralytics gives each layer a ``type`` of its own, which is no part of what the layer does."""
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1)).eval()
    model[1].type, model[1].i = "torch.nn.modules.upsampling.Upsample", 1
    x = torch.randn(1, 3, 4, 4)
    result = graphprune.prune(model, x, target="channels=50%")
    graphprune.save(result, tmp_path / "slim.safetensors")
    slim: Any = graphprune.load(tmp_path / "slim.safetensors")
    assert torch.equal(slim(x), result.model(x))
    assert "type" not in vars(slim.get_submodule("1")) and slim.get_submodule("1").i == 1


def test_a_function_in_the_place_of_a_method_is_refused(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1)).eval()
    model[1].extra_repr = torch.relu
    with pytest.raises(ArtifactError, match="would hide a part of Upsample"):
        graphprune.save(graphprune.prune(model, torch.randn(1, 3, 4, 4), target="channels=50%"), tmp_path / "slim.safetensors")
