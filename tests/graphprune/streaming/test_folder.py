"""Folders of transformers: the slim one loads with the config that was found, and computes what the slim graph computes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import graphprune
from graphprune.cli import main
from graphprune.errors import UsageError
from graphprune.streaming import build_for, open_checkpoint, prune_checkpoint, read_config, usual_inputs
from graphprune.streaming.folder import asked_of

transformers = pytest.importorskip("transformers", reason="needs graphprune[transformers]")
pytest.importorskip("accelerate", reason="needs graphprune[transformers]")

_SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}


def _llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SMALL, **_HEADS))


def _qwen2() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_SMALL, **_HEADS, tie_word_embeddings=True))


def _gpt2() -> Any:
    sizes = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def _mixtral() -> Any:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**_SMALL, **_HEADS, **experts))


def _deepseek() -> Any:
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    heads = _HEADS | {"num_key_value_heads": 4}
    config = transformers.DeepseekV3Config(**_SMALL, **heads, **latent, **experts, first_k_dense_replace=1)
    return transformers.DeepseekV3ForCausalLM(config)


def _saved(model: Any, folder: Path) -> Any:
    model.eval().save_pretrained(folder, max_shard_size="20KB")
    return model


def _gemma2() -> Any:
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**_SMALL, **_HEADS, head_dim=8))


@pytest.mark.parametrize("target", ["channels=50%", "params=60%"])
@pytest.mark.parametrize("make", [_llama, _qwen2, _gpt2, _mixtral, _deepseek, _gemma2])
def test_the_slim_folder_loads_and_computes_what_the_slim_graph_does(make: Any, target: str, tmp_path: Path) -> None:
    """Grouped queries, tied embeddings, a fused projection whose number of heads no shape shows, experts that are stored one by
    one, and stacked where they run, and embeddings whose scale holds the width; the files have the same tensors as before.

    Widths are multiples of 4, as torch's product of the matrices of experts wants them."""
    model = _saved(make(), tmp_path / "full")
    checkpoint, config = open_checkpoint(tmp_path / "full"), read_config(tmp_path / "full")
    meta = build_for(config, checkpoint)
    inputs = usual_inputs(meta)
    report = prune_checkpoint(meta, inputs, tmp_path / "full", tmp_path / "slim", target=target, round_to=4, config=config)
    kind, _, share = target.partition("=")
    assert report.plan.achieved[kind] <= float(share.rstrip("%")) / 100 and report.config is not None
    assert report.config.config is not None, report.config
    assert report.proof.verification is not None and report.proof.verification.passed and len(report.shards) > 1
    model.config.use_cache = False
    expected = graphprune.apply_plan(model, inputs, report.plan).model
    slim, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "slim", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert open_checkpoint(tmp_path / "slim").entries.keys() == checkpoint.entries.keys()
    ids = torch.randint(0, 96, (3, 11))
    with torch.no_grad():
        logits = expected(input_ids=ids)["logits"]
        assert torch.equal(slim.eval()(ids).logits, logits) and logits.abs().max() > 0


def test_widths_that_no_config_can_say_are_named(tmp_path: Path) -> None:
    """Ranked globally, layers differ; the weights and the plan are written all the same."""
    _saved(_llama(), tmp_path / "full")
    config = read_config(tmp_path / "full")
    meta = build_for(config, open_checkpoint(tmp_path / "full"))
    report = prune_checkpoint(
        meta,
        usual_inputs(meta),
        tmp_path / "full",
        tmp_path / "slim",
        target="channels=70%",
        widths="any",
        ranking="global",
        config=config,
    )
    assert report.config is not None and report.config.config is None
    assert "weight is [" in report.config.reason and "by the nearest config" in report.config.reason
    assert not (tmp_path / "slim" / "config.json").exists() and (tmp_path / "slim" / "plan.json").exists()


def test_the_command_says_what_from_pretrained_cannot_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default the widths are such as it can; any others are taken where the user says so."""
    _saved(_llama(), tmp_path / "full")
    where = ("prune-checkpoint", str(tmp_path / "full"), "--plan-only", "--no-verify", "--target", "macs=50%")
    assert main([*where, "-o", str(tmp_path / "a")]) == 0
    assert "config.json: hidden_size 32 -> " in capsys.readouterr().out
    assert main([*where, "--widths", "any", "--ranking", "global", "-o", str(tmp_path / "b")]) == 0
    assert "from_pretrained cannot load it" in capsys.readouterr().out
    assert main([*where, "--widths", "some", "-o", str(tmp_path / "c")]) == 2
    assert "widths='some' is not known; choose from config, any" in capsys.readouterr().err


def test_the_command_keeps_what_is_said_of_some_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One number of the config holds for all layers; the others stay whole without a target."""
    _saved(_llama(), tmp_path / "full")
    where = ("prune-checkpoint", str(tmp_path / "full"), "-o", str(tmp_path / "slim"), "--json")
    assert main([*where, "--keep", "model.layers.0.mlp.gate_proj=50%"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["config"]["changes"].keys() == {"intermediate_size"} and data["config"]["written"]
    assert data["keep"] == {"model.layers.0.mlp.gate_proj": "50%"} and data["target"] == {}
    full, half = data["config"]["changes"]["intermediate_size"]
    assert half * 2 == full


def test_a_run_that_goes_on_finds_the_same_config(tmp_path: Path) -> None:
    """Its plan is known then; a number that the original config leaves out is found again all the same."""
    _saved(_gpt2(), tmp_path / "full")
    config = read_config(tmp_path / "full")
    meta = build_for(config, open_checkpoint(tmp_path / "full"))
    how: dict[str, Any] = {"target": "params=60%", "config": config}
    run = partial(prune_checkpoint, meta, usual_inputs(meta), tmp_path / "full", **how)
    run(out=tmp_path / "once")
    first = run(out=tmp_path / "twice", plan_only=True)
    again = run(out=tmp_path / "twice")
    assert first.config == again.config and first.config is not None and "n_inner" in first.config.changes
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes(), file.name


def test_heads_that_do_not_divide_a_width_are_not_stated_beside_it(tmp_path: Path) -> None:
    """The class refuses such a config: three of four heads want a hidden width that three divide."""
    _saved(_llama(), tmp_path / "full")
    config = read_config(tmp_path / "full")
    meta = build_for(config, open_checkpoint(tmp_path / "full"))
    for share in (40, 55, 65, 75, 85):
        report = prune_checkpoint(
            meta,
            usual_inputs(meta),
            tmp_path / "full",
            tmp_path / str(share),
            target=f"params={share}%",
            config=config,
            verify=False,
        )
        assert report.config is not None and report.config.config is not None, report.config
        assert report.config.config["hidden_size"] % report.config.config["num_attention_heads"] == 0


def test_a_number_that_the_class_has_a_value_for_is_written_where_widths_need_it(tmp_path: Path) -> None:
    """Qwen2's config has no size of heads: it is the width by their number, unless it is stated."""
    _saved(_qwen2(), tmp_path / "full")
    config = read_config(tmp_path / "full")
    assert "head_dim" in asked_of(config) and "hidden_size" not in asked_of(config)
    meta = build_for(config, open_checkpoint(tmp_path / "full"))
    report = prune_checkpoint(
        meta, usual_inputs(meta), tmp_path / "full", tmp_path / "slim", target="params=80%", config=config, plan_only=True
    )
    assert report.config is not None and report.config.config is not None and report.config.changes["head_dim"] == (None, 8)
    assert report.config.config["hidden_size"] % 4 and report.config.config["num_attention_heads"] == 4


def test_a_model_of_images_is_given_images_of_the_size_of_its_config() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=24, patch_size=8, num_channels=1, **sizes))
    assert usual_inputs(model).describe() == "pixel_values=float32[1x1x24x24]"
    with pytest.raises(UsageError, match="--input pixel_values="):
        usual_inputs(torch.nn.Linear(2, 2))


def test_an_encoder_with_a_decoder_is_given_tokens_for_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """T5 asks for them. What stays of the slim folder generates."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, "vocab_size": 96}
    _saved(transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)), tmp_path / "full")
    assert main(["prune-checkpoint", str(tmp_path / "full"), "--target", "params=80%", "-o", str(tmp_path / "slim")]) == 0
    assert "config.json: " in capsys.readouterr().out
    slim = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "slim")
    assert slim.generate(torch.ones(2, 5, dtype=torch.int64), max_new_tokens=4, min_new_tokens=4).shape == (2, 5)


def test_a_model_that_needs_other_inputs_than_were_taken_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CLIP takes texts, and images with them."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "projection_dim": 8}
    towers = {"text_config": sizes | {"vocab_size": 96}, "vision_config": sizes | {"image_size": 16, "patch_size": 8}}
    _saved(transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=8)), tmp_path / "full")
    where = ["prune-checkpoint", str(tmp_path / "full"), "--target", "params=90%", "-o", str(tmp_path / "slim")]
    assert main(where) == 2
    assert "input_ids=int64[2x16] was taken; if the model needs others, give them with --input" in capsys.readouterr().err
    assert main([*where, "--input", "input_ids=2x10:int64,pixel_values=2x3x16x16"]) == 0
    assert "vision_config.intermediate_size" in capsys.readouterr().out


def test_a_folder_of_unknown_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["EvilModel"], "auto_map": {"AutoModel": "evil.EvilModel"}}))
    with pytest.raises(UsageError, match="code of checkpoints is not run"):
        read_config(tmp_path)


def test_the_command_prunes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _saved(_llama(), tmp_path / "full")
    where = ("prune-checkpoint", str(tmp_path / "full"), "--target", "channels=50%", "-o", str(tmp_path / "slim"))
    assert main([*where, "--plan-only"]) == 0
    assert "without --plan-only" in capsys.readouterr().out
    assert main([*where, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["config"]["changes"]["hidden_size"] == [32, 16] and data["verification"]["passed"] and data["shards"]
    assert main([*where[:2], "-o", str(tmp_path / "full")]) == 2
    assert "it is not empty" in capsys.readouterr().err


def test_a_config_of_more_layers_than_the_checkpoint_has_is_refused_before_they_are_built(tmp_path: Path) -> None:
    _saved(_llama(), tmp_path)
    config = read_config(tmp_path) | {"num_hidden_layers": 10**9}
    with pytest.raises(UsageError, match=r"more than .* parameters, and the checkpoint does not"):
        build_for(config, open_checkpoint(tmp_path))


@pytest.mark.parametrize("make", [_llama, _gpt2, _mixtral])
def test_activations_of_a_folder_are_those_of_the_model_in_memory(make: Any, tmp_path: Path) -> None:
    """Buffers that no checkpoint has, such as rotary frequencies, and layers whose tokens are flattened into rows."""
    model = _saved(make(), tmp_path / "full")
    meta = build_for(read_config(tmp_path / "full"), open_checkpoint(tmp_path / "full"))
    inputs = usual_inputs(meta)
    data = [{"input_ids": torch.randint(0, 96, (size, 16))} for size in (2, 3)]
    how: dict[str, Any] = {"target": "channels=50%", "criterion": "attention", "ranking": "local", "data": data}
    plan = prune_checkpoint(meta, inputs, tmp_path / "full", tmp_path / "slim", plan_only=True, **how).plan
    model.config.use_cache = False
    expected = graphprune.prune(model, inputs, **how).plan
    assert plan.scores == expected.scores and plan.kept == expected.kept
