"""Models of transformers in memory: pruned to widths that their config can state, saved and loaded as transformers does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import graphprune
from graphprune.errors import UsageError

transformers = pytest.importorskip("transformers", reason="needs graphprune[transformers]")
pytest.importorskip("accelerate", reason="needs graphprune[transformers]")

_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_TEXT = {"vocab_size": 96, "max_position_embeddings": 64}
_IDS = torch.arange(14).reshape(2, 7) + 5
_INPUTS = {"input_ids": _IDS, "attention_mask": torch.ones_like(_IDS)}


def _bert() -> tuple[Any, dict[str, Any]]:
    config = transformers.BertConfig(**_SIZES, **_TEXT, num_labels=3)
    return transformers.BertForSequenceClassification._from_config(config, attn_implementation="eager"), _INPUTS


def _deberta() -> tuple[Any, dict[str, Any]]:
    """Scales by a tensor that it makes of a number, and has a pooler with a number of its own."""
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "position_biased_input": False}
    return transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**_SIZES, **_TEXT, **relative)), _INPUTS


def _swin() -> tuple[Any, dict[str, Any]]:
    """Heads in a list, and a width from which those of all stages are derived."""
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [2, 4, 8], "window_size": 4}
    return transformers.SwinForImageClassification(transformers.SwinConfig(**sizes)), {"pixel_values": torch.randn(1, 3, 32, 32)}


def _convnext() -> tuple[Any, dict[str, Any]]:
    """A model of fewer stages is built, and does not run."""
    sizes = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "image_size": 32}
    return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes)), {
        "pixel_values": torch.randn(1, 3, 32, 32)
    }


def _bart() -> tuple[Any, dict[str, Any]]:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **heads, **_TEXT)), {
        **_INPUTS,
        "decoder_input_ids": _IDS,
    }


@pytest.mark.parametrize("make", [_bert, _deberta, _swin, _convnext, _bart])
def test_what_save_pretrained_writes_is_loaded_by_from_pretrained(make: Any, tmp_path: Path) -> None:
    """And by graphprune.load into the class; caches and the chosen attention make no difference."""
    torch.manual_seed(0)
    model, inputs = make()
    result: Any = graphprune.prune(model.eval(), inputs, target="params=80%", widths="config", keep_class=True)
    assert type(result.model) is type(model) and result.plan.achieved["params"] <= 0.8
    assert result.config is not None and result.config.changes and "config.json: " in str(result)
    result.model.save_pretrained(tmp_path)
    slim, info = type(model).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation=model.config._attn_implementation
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    graphprune.save(result, tmp_path / "slim.safetensors")
    loaded: Any = graphprune.load(tmp_path / "slim.safetensors", type(model)(model.config))
    again: Any = graphprune.apply_plan(model, inputs, result.plan, keep_class=True)
    assert again.config == result.config
    with torch.no_grad():
        expected = result.model(**inputs)["logits"]
        models: list[Any] = [slim, loaded, again.model, result.graph]
        for other in models:
            assert torch.allclose(other.eval()(**inputs)["logits"], expected, atol=1e-6)
    for other in (loaded, again.model):
        other.save_pretrained(tmp_path / "other")
        assert (tmp_path / "other" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_a_model_in_half_precision_on_any_widths_says_why_no_config_states_them() -> None:
    model, inputs = _bert()
    result: Any = graphprune.prune(model.eval().bfloat16(), inputs, target="params=70%", ranking="global", keep_class=True)
    assert result.config is not None and "weight is [" in result.config.reason
    assert "so from_pretrained cannot load it" in str(result) and result.model.config.hidden_size == 32
    alike: Any = graphprune.prune(model, inputs, target="channels=50%", ranking="local", keep_class=True)
    assert alike.config is not None and alike.model.config.hidden_size == 16, "found without asking for it"


def test_a_graph_is_told_the_config_of_its_widths() -> None:
    model, inputs = _bert()
    result = graphprune.prune(model.eval(), inputs, target="params=80%", widths="config")
    assert not result.keeps_class and result.config is not None and result.config.config is not None
    assert result.config.config["hidden_size"] < 32 and model.config.hidden_size == 32


def test_what_no_config_can_be_asked_about_is_refused() -> None:
    model, inputs = _bert()
    model.eval()
    with pytest.raises(UsageError, match="Linear is no model of transformers"):
        graphprune.prune(torch.nn.Linear(4, 2), torch.zeros(1, 4), widths="config")
    with pytest.raises(UsageError, match='goes with select="select"'):
        graphprune.prune(model, inputs, widths="config", select="greedy")
    with pytest.raises(UsageError, match="widths='some' is not known; choose from config, any"):
        graphprune.prune(model, inputs, widths="some")
    with pytest.raises(UsageError, match="No number of the config of BertForSequenceClassification"):
        graphprune.prune(model, inputs, widths="config", exclude=["bert.embeddings", "bert.encoder.layer.1"])
    assert (
        graphprune.prune(
            torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.zeros(1, 4), keep_class=True
        ).config
        is None
    )
