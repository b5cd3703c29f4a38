"""Every kind of file that graphprune reads: how the product makes a small sound one, and how it is read and then used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import graphprune
from graphprune.cli.loading import Request as Named
from graphprune.cli.output import Output
from graphprune.cli.run_plots import draw
from graphprune.ir.program import Inputs
from graphprune.methods import iterative
from graphprune.plans.diff import diff_plans
from graphprune.plans.plan import Plan
from graphprune.plans.reading import read_plan
from graphprune.recipe import Draft, example
from graphprune.reporting import gather, render, sections_of
from graphprune.reporting.material import Request
from graphprune.reporting.page import Page
from graphprune.sources import load_calibration, load_source
from graphprune.sources.weights import load_weights
from graphprune.streaming import build_for, open_checkpoint, prune_checkpoint, read_config, usual_inputs
from graphprune.surveys.curves import Sensitivity
from graphprune.surveys.pareto import Front
from graphprune.training.data import load_training_data
from tests.hostile import lies, mutate
from tests.hostile.mutate import BYTES, Mutator
from tests.planted_latency import PlantedClock

SOURCE: Final = "tests.hostile.kinds:Net"
INPUT: Final = torch.zeros(2, 1, 8, 8)


class Net(nn.Module):
    """Small, with an operation of every kind that an artifact stores."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.body(x)) * self.scale
        found: torch.Tensor = self.head(y.reshape(x.shape[0], 4, -1).mean(-1))
        return found


class Gated(nn.Module):
    """Control flow on values: pruned in a scope."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) if x.sum() > 0 else x[:, :4]


class Heads(nn.Module):
    """Its code reads a width from an attribute: pruned in its own class."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x).reshape(x.shape[0], self.heads, 3)
        found: torch.Tensor = self.down((y / y.norm(dim=-1, keepdim=True)).flatten(1))
        return found


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    file: in its folder; the one that is mutated. make: writes it and what lies beside it into an empty folder. read: reads it from
    the folder and uses what it says. formats: mutators that know the format. command: arguments of the command that reads it.
    writes: whether using it writes into the folder, as a run does.
    """

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    formats: Sequence[Mutator] = ()
    command: Sequence[str] = ()
    writes: bool = False

    @property
    def mutators(self) -> tuple[Mutator, ...]:
        """Those of the format are drawn three times as often."""
        return (*BYTES, *(tuple(self.formats) * max(1, 3 * len(BYTES) // max(1, len(self.formats)))))


def _net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


# -- what the product writes ------------------------------------------------------------------------------------------------------


def _make_slim(folder: Path) -> None:
    result = graphprune.prune(_net(), INPUT, target="channels=60%", source="torchvision:resnet18")
    graphprune.save(result, folder / "slim.safetensors")
    graphprune.save(result, folder / "slim.pt2")
    result.plan.save(folder / "plan.json")


def _make_program(folder: Path) -> None:
    sizes = {0: torch.export.Dim("b", min=1, max=64), 2: torch.export.Dim.DYNAMIC}
    program = torch.export.export(_net(), (INPUT,), dynamic_shapes=(sizes,))
    torch.export.save(program, folder / "net.pt2", extra_files={"plan.json": _plan(folder).model_dump_json()})


def _plan(folder: Path) -> Plan:
    return graphprune.prune(_net(), INPUT, target="channels=60%", verify=False).plan


def _make_parts(folder: Path) -> None:
    torch.manual_seed(0)
    graphprune.save(graphprune.prune(Gated(), torch.ones(1, 8), target="channels=50%"), folder / "parts.safetensors")


def _make_own_class(folder: Path) -> None:
    torch.manual_seed(0)
    result = graphprune.prune(Heads(), torch.ones(2, 8), target="channels=50%", keep_class=True)
    assert result.attributes, "the file states a width"
    graphprune.save(result, folder / "heads.safetensors")


def _make_table(folder: Path) -> None:
    graphprune.profile(_net(), INPUT, samples=8, clock=PlantedClock(), path=folder / "latency.json")


def _make_weights(folder: Path) -> None:
    torch.save(_net().state_dict(), folder / "weights.pth")
    save_file(_net().state_dict(), folder / "weights.safetensors")


def _make_images(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (16, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(16) % 3
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)


def _make_pictures(folder: Path) -> None:
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for number in range(2):
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(
                folder / label / f"{number}.png"
            )


def _llama() -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
    }
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(config)
    return model.eval()


def _make_checkpoint(folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "config.json").write_text('{"architectures": ["Net"]}')
    state = _net().state_dict()
    shards: dict[str, dict[str, torch.Tensor]] = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for name, tensor in state.items():
        shards["model-1.safetensors" if name < "c" else "model-2.safetensors"][name] = tensor
    for shard, tensors in shards.items():
        save_file(tensors, folder / "full" / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, tensors in shards.items() for name in tensors}}
    (folder / "full" / "model.safetensors.index.json").write_text(json.dumps(index))


def _make_output(folder: Path) -> None:
    _make_checkpoint(folder)
    _stream(folder, plan_only=True)


def _train(model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
    return state


def _run(folder: Path, train: Callable[..., Any] = _train) -> object:
    run = folder / "run"
    return iterative(
        _net(), INPUT, rounds=2, tune_epochs=1, epochs=1, trained=False, train=train, evaluate=_score, data=None, folder=run
    )


class _Interrupted(Exception):
    pass


def _make_snapshot(folder: Path) -> None:
    """A run that ended in its second training."""

    def train(model: nn.Module, epochs: range, state: Any, /, **extras: nn.Module) -> Any:
        if state is not None:
            raise _Interrupted
        return {"epoch": epochs.stop}

    with suppress(_Interrupted):
        _run(folder, train)


def _score(model: nn.Module, /) -> float:
    return 0.5


def _make_run(folder: Path) -> None:
    _run(folder)
    example("iterative").save(folder / "run" / "recipe.toml")
    plan = _plan(folder)
    plan.save(folder / "run" / "plan.json")
    figures = {"parameters": 10, "macs": 20, "weight_bytes": 40, "activation_bytes": 8, "accuracy": {"validation": 0.5}}
    result = {"method": "iterative", "source": SOURCE, "inputs": "x", "dense": figures, "slim": figures, "widths": {"a": [4, 2]}}
    (folder / "run" / "result.json").write_text(json.dumps(result))
    (folder / "run" / "scores.json").write_text(json.dumps({"dense": {"a": [0.1, 0.5, None], "b": [1.0]}}))


# -- what reads it ----------------------------------------------------------------------------------------------------------------


def _read_artifact(folder: Path) -> None:
    graphprune.load(folder / "slim.safetensors")
    read_plan(folder / "slim.safetensors")


def _use_plan(path: Path) -> None:
    plan = read_plan(path)
    diff_plans(plan, plan)
    graphprune.apply_plan(_net(), INPUT, plan, verify=False)


def _use_table(folder: Path) -> None:
    graphprune.prune(_net(), INPUT, target={"latency": "97%"}, latency=folder / "latency.json", measure=False, verify=False)


def _use_weights(path: Path) -> None:
    model = _net()
    load_weights(model, path)
    model(INPUT)


def _use_program(folder: Path) -> None:
    source = load_source(str(folder / "net.pt2"))
    graphprune.channel_groups(graphprune.capture(source.model, source.inputs))


def _use_images(folder: Path) -> None:
    text = str(folder / "data.npz")
    list(load_calibration(text))
    data = load_training_data(text, validation=4)
    data.example(), data.classes


def _use_pictures(folder: Path) -> None:
    inputs = Inputs((torch.zeros(1, 3, 8, 8),))
    list(load_calibration(str(folder), like=inputs))
    load_training_data(str(folder), validation=1, workers=0).example()


def _use_checkpoint(folder: Path) -> None:
    opened = open_checkpoint(folder / "full")
    for name in opened.entries:
        opened.tensor(name)


def _stream(folder: Path, plan_only: bool = False) -> object:
    with torch.device("meta"):
        model = Net().eval()
    out = folder / "out"
    return prune_checkpoint(model, INPUT, folder / "full", out, target="channels=60%", plan_only=plan_only, verify=False)


def _use_config(folder: Path) -> None:
    opened = open_checkpoint(folder / "full")
    usual_inputs(build_for(read_config(folder / "full"), opened))
    load_source(str(folder / "full"))


def _report(folder: Path) -> None:
    with Output(quiet=True) as output:
        found = gather(Request(folder / "run", Named("")), output)
        render(Page("run", "", sections_of(found), ""))


def _rounds(folder: Path) -> None:
    from graphprune.reporting.runs import read_run

    draw(folder, read_run(folder / "run").rounds, "png")


def _text(read: Callable[[Path], Any], name: str) -> Callable[[Path], object]:
    return lambda folder: read(folder / name)


_JSON: Final = (mutate.json_changed,)
_ARTIFACT: Final = (lies.artifact_changed, lies.artifact_changed, mutate.safetensors_changed)
_RUN: Final[Mapping[str, Sequence[Mutator]]] = {
    "rounds.jsonl": (mutate.lines_changed,), "journal.jsonl": (mutate.lines_changed,), "result.json": _JSON, "plan.json": _JSON,
    "recipe.toml": (mutate.toml_changed,),
}  # fmt: skip


def _fronts(folder: Path) -> None:
    graphprune.sweep(_net(), INPUT, graphprune.Sweep(points=2)).save(folder / "front.json")


def _curves(folder: Path) -> None:
    graphprune.sensitivity(_net(), INPUT, _score, ratios=(0.5,)).save(folder / "curves.json")


KINDS: Final[dict[str, Kind]] = {
    "artifact": Kind(
        "slim.safetensors", _make_slim, _read_artifact, _ARTIFACT, ("report", "slim.safetensors", "-o", "report.html")
    ),
    "parts": Kind(
        "parts.safetensors", _make_parts, lambda folder: graphprune.load(folder / "parts.safetensors", Gated()), _ARTIFACT
    ),
    "own-class": Kind(
        "heads.safetensors", _make_own_class, lambda folder: graphprune.load(folder / "heads.safetensors", Heads()), _ARTIFACT
    ),
    "plan": Kind("plan.json", _make_slim, _text(_use_plan, "plan.json"), _JSON, ("diff", "plan.json", "plan.json")),
    "plan-in-program": Kind(
        "slim.pt2", _make_slim, _text(read_plan, "slim.pt2"), (mutate.zip_changed,), ("diff", "slim.pt2", "slim.pt2")
    ),
    "table": Kind("latency.json", _make_table, _use_table, _JSON),
    "sensitivity": Kind("curves.json", _curves, _text(Sensitivity.load, "curves.json"), _JSON),
    "front": Kind("front.json", _fronts, lambda folder: Front.load(folder / "front.json").best, _JSON),
    "recipe": Kind(
        "recipe.toml",
        lambda folder: example("iterative").save(folder / "recipe.toml"),
        lambda folder: Draft.load(folder / "recipe.toml").checked().to_toml(),
        (mutate.toml_changed,),
    ),
    "weights": Kind("weights.pth", _make_weights, _text(_use_weights, "weights.pth"), (lies.weights_changed, mutate.zip_changed)),
    "safetensors": Kind(
        "weights.safetensors", _make_weights, _text(_use_weights, "weights.safetensors"), (mutate.safetensors_changed,)
    ),
    "program": Kind("net.pt2", _make_program, _use_program, (mutate.zip_changed,), ("inspect", "net.pt2")),
    "module": Kind(
        "weights.pth",
        _make_weights,
        lambda folder: load_source(str(folder / "weights.pth")),
        (lies.weights_changed,),
        ("inspect", "weights.pth"),
    ),
    "images": Kind("data.npz", _make_images, _use_images, (lies.arrays_changed, mutate.zip_changed)),
    "pictures": Kind("cat/0.png", _make_pictures, _use_pictures),
    "index": Kind("full/model.safetensors.index.json", _make_checkpoint, _use_checkpoint, _JSON),
    "checkpoint": Kind("full/model-1.safetensors", _make_checkpoint, _use_checkpoint, (mutate.safetensors_changed,)),
    "state": Kind("out/graphprune.json", _make_output, _stream, _JSON, writes=True),
    "streamed-plan": Kind("out/plan.json", _make_output, _stream, _JSON, writes=True),
    "journal": Kind("run/journal.jsonl", _make_run, _run, (mutate.lines_changed,), writes=True),
    "snapshot": Kind("run/snapshots/00004.pt", _make_snapshot, _run, (lies.snapshot_changed, mutate.zip_changed), writes=True),
    "scores": Kind("run/scores.json", _make_run, lambda folder: draw(folder / "run", (), "png"), _JSON, writes=True),
    **{
        f"run-{name.partition('.')[0]}": Kind(f"run/{name}", _make_run, _report, formats, ("report", "run", "-o", "report.html"))
        for name, formats in _RUN.items()
    },
}
"""By name. What only the command reads is read by the command."""


def _make_llama(folder: Path) -> None:
    _llama().save_pretrained(folder / "full")


if find_spec("transformers") and find_spec("accelerate"):
    KINDS["config"] = Kind("full/config.json", _make_llama, _use_config, _JSON)
