"""Models that accelerate has dispatched: pruned as in memory, and given back with their weights where the original has its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.calibration import Calibration
from graphprune.errors import UsageError, VerificationError
from graphprune.ir.twins import named_tensors
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.placement import placement_of
from graphprune.plans.plan import Plan
from graphprune.tracing import capture
from tests.graphprune.streaming.nets import INPUTS, Net

accelerate = pytest.importorskip("accelerate")

TARGET = "channels=50%"
Dispatch = Callable[[nn.Module, Path], Any]


def _to_memory(model: nn.Module, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device="cpu")


def _to_disk(model: nn.Module, folder: Path) -> Any:
    return accelerate.disk_offload(model, str(folder), execution_device="cpu", offload_buffers=True)


def _by_a_map(model: nn.Module, folder: Path) -> Any:
    """Some blocks stay, others lie on disk."""
    places = {name: "cpu" for name, _ in model.named_children()} | {"shift": "cpu", "scale": "cpu"}
    del places["blocks"]
    places |= {f"blocks.{index}": "disk" if index % 2 else "cpu" for index in range(4)}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


WAYS: dict[str, Dispatch] = {"memory": _to_memory, "disk": _to_disk, "map": _by_a_map}
pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net(tied=False).eval()
    with torch.no_grad():
        model.shift.normal_()
    return model


def _hook(model: nn.Module, path: str) -> Any:
    """What accelerate has put on a module."""
    return vars(model.get_submodule(path))["_hf_hook"]


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 40, (size, 6), generator=generator) for size in (3, 2)]


@pytest.mark.parametrize("criterion", ["l2", "fpgm", "attention", "taylor", "taylor(form=weight)", "obs"])
@pytest.mark.parametrize("way", WAYS)
def test_a_dispatched_model_is_pruned_as_in_memory_and_stays_dispatched(net: Net, tmp_path: Path, way: str, criterion: str) -> None:
    """The same plan, the same proof and the same outputs, bit for bit; weights are where those of the original are."""
    data = Calibration(_batches(), loss=lambda logits, target: logits.square().mean())
    how: dict[str, Any] = {"target": TARGET, "criterion": criterion, "data": data}
    expected = graphprune.prune(copy.deepcopy(net), INPUTS, **how)
    WAYS[way](net, tmp_path)
    before = {name: (id(tensor), tensor.device) for name, tensor in named_tensors(net).items()}
    found = graphprune.prune(net, INPUTS, **how)
    assert found.plan.kept == expected.plan.kept and found.plan.scores == expected.plan.scores
    assert found.report.verification == expected.report.verification
    x = torch.arange(12).view(2, 6)
    for _ in range(2):  # weights come back after a call
        assert torch.equal(found.model(x), expected.model(x))
    devices = {name: tensor.device.type for name, tensor in named_tensors(net).items()}
    slim = named_tensors(found.model)
    assert {name: tensor.device.type for name, tensor in slim.items()} == {name: devices[name] for name in slim}
    assert "meta" in devices.values()
    assert {name: (id(tensor), tensor.device) for name, tensor in named_tensors(net).items()} == before


@pytest.mark.parametrize("way", WAYS)
def test_the_slim_model_is_saved_verified_and_pruned_again(net: Net, tmp_path: Path, way: str) -> None:
    expected = graphprune.prune(copy.deepcopy(net), INPUTS, target=TARGET)
    twice = graphprune.prune(expected.model, INPUTS, target=TARGET)
    whole = copy.deepcopy(net)
    WAYS[way](net, tmp_path / "weights")
    found = graphprune.prune(net, INPUTS, target=TARGET)
    graphprune.save(found, tmp_path / "slim.safetensors")
    assert torch.equal(graphprune.load(tmp_path / "slim.safetensors")(INPUTS), expected.model(INPUTS))
    assert graphprune.verify(net, found.model, found.plan, INPUTS).passed
    assert graphprune.verify(whole, found.model, found.plan, INPUTS).passed
    assert torch.equal(graphprune.prune(found.model, INPUTS, target=TARGET).model(INPUTS), twice.model(INPUTS))
    assert torch.equal(graphprune.apply_plan(net, INPUTS, expected.plan).model(INPUTS), expected.model(INPUTS))


def test_two_prunings_of_weights_on_disk_do_not_share_files(net: Net, tmp_path: Path) -> None:
    _to_disk(net, tmp_path)
    one = graphprune.prune(net, INPUTS, target="channels=50%").model
    first = one(INPUTS)
    graphprune.prune(net, INPUTS, target="channels=30%")
    assert torch.equal(one(INPUTS), first) and len(list(tmp_path.glob("slim-*/index.json"))) == 2


def test_a_difference_of_one_weight_is_found(net: Net, tmp_path: Path) -> None:
    """The proof reads the values of the slim model, and not those that it should have."""
    _to_memory(net, tmp_path)
    found = graphprune.prune(net, INPUTS, target=TARGET)
    placement = placement_of(found.model)
    assert placement is not None
    with torch.no_grad():
        _hook(found.model, "blocks.1.up").weights_map["weight"][0, 0] += 1
    verdict = graphprune.verify(net, found.model, found.plan, INPUTS)
    assert "blocks.1.up.weight is not the plan's slice" in verdict.failure
    with pytest.raises(VerificationError):
        verdict.check()


def test_tied_weights_in_memory_are_one_and_stay_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    expected = graphprune.prune(copy.deepcopy(net), INPUTS, target=TARGET)
    _to_memory(net, tmp_path)
    found = graphprune.prune(net, INPUTS, target=TARGET)
    assert found.plan.kept == expected.plan.kept and torch.equal(found.model(INPUTS), expected.model(INPUTS))
    maps = [_hook(found.model, name).weights_map["weight"] for name in ("embed", "head")]
    assert maps[0] is maps[1]


class _Bare(nn.Module):
    """Tensors of modules that do not run: in the root, in a container, and in a layer that also runs."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(5, 8))
        self.inner = nn.ParameterDict({"scale": nn.Parameter(torch.randn(8))})
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 5, 6) and (n, 5, 3)."""
        y = self.first(x) * self.inner["scale"] + self.place + self.first.bias
        out: Tensor = self.last(torch.relu(y))
        return out


@pytest.mark.parametrize("way", ["memory", "disk"])
def test_tensors_that_a_graph_reads_without_a_call_have_their_values(tmp_path: Path, way: str) -> None:
    """Accelerate itself offers ``preload_module_classes`` for this, without which such a model does not run."""
    torch.manual_seed(0)
    net, x = _Bare().double(), torch.randn(2, 5, 6, dtype=torch.float64)
    expected = graphprune.prune(copy.deepcopy(net), x, target=TARGET)
    if way == "memory":
        accelerate.cpu_offload(net, execution_device="cpu", preload_module_classes=["_Bare"])
    else:
        accelerate.disk_offload(net, str(tmp_path), execution_device="cpu", preload_module_classes=["_Bare"])
    found = graphprune.prune(net, x, target=TARGET)
    assert torch.equal(found.model(x), expected.model(x)) and torch.equal(found.model(x), expected.model(x))
    meta = {name for name, tensor in named_tensors(found.model).items() if tensor.is_meta}
    assert meta == {"place", "inner.scale", "last.weight", "last.bias"}  # of the layer that is read, values stay


def test_a_device_map_of_transformers_is_followed(tmp_path: Path) -> None:
    """Weights in its own classes (RMSNorm) included. Without a folder for slim weights it is refused."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "full")
    places = {name: "cpu" for name in ("model.embed_tokens", "model.rotary_emb", "model.norm", "model.layers.0")}
    places |= {name: "disk" for name in ("model.layers.1", "lm_head")}
    inputs = {"input_ids": torch.arange(16).view(2, 8), "use_cache": False}
    load = transformers.LlamaForCausalLM.from_pretrained
    with pytest.raises(UsageError, match="Give offload_folder="):
        graphprune.prune(load(tmp_path / "full", device_map=places), inputs, target=TARGET)
    dispatched = load(tmp_path / "full", device_map=places, offload_folder=tmp_path / "weights").eval()
    found, expected = (graphprune.prune(each, inputs, target=TARGET) for each in (dispatched, model))
    assert torch.equal(found.model(**inputs)[0], expected.model(**inputs)[0])
    meta = {name for name, tensor in named_tensors(found.model).items() if tensor.is_meta}
    assert meta >= {"model.layers.1.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"}
    assert not any("layers.0" in name for name in meta)


def test_compensation_is_that_of_the_model_in_memory(net: Net, tmp_path: Path) -> None:
    how: dict[str, Any] = {"target": TARGET, "compensate": "least-squares", "data": _batches()}
    expected = graphprune.prune(net, INPUTS, **how)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    _to_memory(net, tmp_path)
    found = graphprune.prune(net, INPUTS, **how)
    assert found.report.compensation == expected.report.compensation
    assert any(one.after < one.before for one in found.report.compensation)
    assert torch.equal(found.model(INPUTS), expected.model(INPUTS))
    accelerate.hooks.remove_hook_from_module(net, recurse=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()), "the original stays"


def test_what_needs_all_weights_is_refused(net: Net, tmp_path: Path) -> None:
    _to_memory(net, tmp_path)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("activation-similarity compares weights", {"criterion": "activation-similarity", "data": _batches()}),
        ("latency target", {"target": "latency=50%"}),
        ("synthetic data", {"criterion": "attention", "data": "synthetic"}),
    ]
    for says, how in refused:
        with pytest.raises(UsageError, match=says):
            graphprune.prune(net, INPUTS, **{"target": TARGET, **how})
    with pytest.raises(UsageError, match="not in memory as a whole"):
        capture(net, INPUTS)


def test_what_a_slim_model_cannot_follow_is_refused(net: Net, tmp_path: Path) -> None:
    other = copy.deepcopy(net)
    accelerate.cpu_offload_with_hook(other, "cpu")
    with pytest.raises(UsageError, match="has accelerate's CpuOffload"):
        graphprune.prune(other, INPUTS)
    _to_disk(net, tmp_path)
    _hook(net, "head").execution_device = torch.device("cuda", 1)
    with pytest.raises(UsageError, match="computes on cpu and cuda:1"):
        graphprune.prune(net, INPUTS)


def test_the_analysis_is_that_of_the_model_in_memory(net: Net, tmp_path: Path) -> None:
    """Loading is for values alone: groups need none."""
    expected = [(group.name, group.size) for group in graphprune.channel_groups(capture(net, INPUTS)).prunable]
    program = capture(_to_disk(net, tmp_path), INPUTS, on_demand=True)
    assert program.weights is not None
    groups = AnalysisManager().get(program, ChannelGroups)
    assert [(group.name, group.size) for group in groups.prunable] == expected
    assert isinstance(graphprune.prune(net, INPUTS, target=TARGET).plan, Plan)
