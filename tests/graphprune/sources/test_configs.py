"""Models of transformers as sources: folders of save_pretrained, configs, classes and types of models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from graphprune.cli import main
from graphprune.errors import UsageError
from graphprune.sources import load_source

transformers = pytest.importorskip("transformers", reason="needs graphprune[transformers]")
pytest.importorskip("accelerate", reason="needs graphprune[transformers]")

_SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT whose decoder is tied to its embeddings, as save_pretrained writes it."""
    transformers.BertForMaskedLM(transformers.BertConfig(**_SIZES)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def _refused(text: str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_source(text, **options)
    return str(caught.value)


def test_a_folder_gives_its_class_with_its_weights_ties_and_inputs(folder: Path) -> None:
    source = load_source(str(folder))
    expected = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    assert type(source.model) is type(expected) and not source.model.training
    for (name, mine), other in zip(source.model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name
    assert source.model.get_parameter("cls.predictions.decoder.weight") is source.model.get_parameter(
        "bert.embeddings.word_embeddings.weight"
    )
    assert source.inputs is not None and source.inputs.describe() == "input_ids=int64[2x16]"
    with torch.no_grad():
        assert torch.equal(source.model(**source.inputs.kwargs).logits, expected(**source.inputs.kwargs).logits)


def test_a_config_gives_fresh_weights_that_the_seed_decides(folder: Path) -> None:
    first, again, other = (load_source(str(folder / "config.json"), seed=seed).model.state_dict() for seed in (0, 0, 1))
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_a_folder_may_get_other_weights(folder: Path, tmp_path: Path) -> None:
    model = load_source(str(folder / "config.json"), seed=5).model
    torch.save(model.state_dict(), tmp_path / "w.pth")
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(load_source(str(folder), weights=tmp_path / "w.pth").model.get_parameter(name), model.get_parameter(name))


@pytest.mark.parametrize(
    ("name", "kind"), [("bert", "BertModel"), ("BertForSequenceClassification", "BertForSequenceClassification")]
)
def test_a_type_and_a_class_take_the_arguments_of_their_config(name: str, kind: str) -> None:
    arguments = ",".join(f"{key}={value}" for key, value in _SIZES.items())
    model: Any = load_source(f"transformers:{name}({arguments})").model
    assert type(model).__name__ == kind and model.config.hidden_size == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("transformers:brt", "no type of models 'brt'; did you mean 'bert'"),
        ("transformers:BertForNothing", "no architecture BertForNothing"),
        ("transformers:bert(16)", "by their names: bert(name=value)"),
        (
            "transformers:LlamaModel(hidden_size=65)",
            "Building transformers:LlamaModel(hidden_size=65) failed: ValueError: The hidden size",
        ),
    ],
)
def test_what_names_no_model_is_refused(text: str, said: str) -> None:
    assert said in _refused(text)


def test_folders_and_configs_that_make_no_model_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "a folder without config.json" in _refused(str(tmp_path / "empty"))
    (tmp_path / "plan.json").write_text('{"kept": {}}')
    assert "no config that names an architecture" in _refused(str(tmp_path / "plan.json"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert "lacks bert.encoder.layer.1" in _refused(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    assert "parameters" in _refused(str(folder / "config.json"))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in _refused(str(folder))


def test_a_folder_is_pruned_and_never_written_over(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "model.safetensors").read_bytes()
    assert main(["prune", str(folder), "--target", "channels=50%", "-o", str(folder / "model.safetensors")]) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before
    slim = tmp_path / "slim.safetensors"
    assert main(["prune", str(folder), "--target", "channels=50%", "-o", str(slim)]) == 0
    assert main(["verify", str(folder), str(slim)]) == 0


def test_missing_transformers_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert 'pip install "graphprune[transformers]"' in _refused("transformers:bert")
