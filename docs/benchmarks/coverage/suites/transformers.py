"""Models of transformers, each made from a small configuration without a download: a few layers of every architecture.

Widths are small, but there are several heads, and fewer key and value heads where the architecture has them. A model
that takes an attention mask comes twice, with and without it. Models that generate are called with ``use_cache=False``,
since the keys and values of a cache are outputs, which keep their sizes; three come with their cache as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from suites.case import Case

Made = tuple[Any, dict[str, Tensor]]
_FACTORIES: dict[str, Callable[[], Made]] = {}
#: Models whose attention mask is an input that may be left out.
_MASKED = (
    "bert",
    "roberta",
    "distilbert",
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "t5",
    "bart",
    "clip",
    "wav2vec2",
    "mamba",
)
#: Models that return a cache of keys and values unless they are told not to, and those tried with it too.
_GENERATING = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "t5", "bart", "mamba", "whisper")
_CACHED = ("gpt2", "llama", "t5")
_WITHOUT, _CACHE = "-no-mask", "-cache"
_LENGTH, _VOCABULARY, _WIDTH = 10, 100, 64


def names() -> list[str]:
    """Keys of all models of this suite."""
    variants = [(name, suffix) for name in _FACTORIES for suffix in ("", _WITHOUT, _CACHE)]
    wanted = {"": _FACTORIES, _WITHOUT: _MASKED, _CACHE: _CACHED}
    return [f"transformers:{name}{suffix}" for name, suffix in variants if name in wanted[suffix]]


def case(name: str) -> Case:
    """A small model and its keyword arguments; ``-no-mask`` and ``-cache`` after the name change the arguments."""
    plain = name.removesuffix(_WITHOUT).removesuffix(_CACHE)
    make = _FACTORIES[plain]

    def inputs() -> dict[str, Any]:
        given: dict[str, Any] = make()[1]
        if name.endswith(_WITHOUT):
            del given["attention_mask"]
        if plain in _GENERATING and not name.endswith(_CACHE):
            given["use_cache"] = False
        return given

    return Case(f"transformers:{name}", lambda: make()[0].eval(), inputs)


def _model(name: str) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def register(make: Callable[[], Made]) -> Callable[[], Made]:
        _FACTORIES[name] = make
        return make

    return register


# -- inputs --------------------------------------------------------------------------------------------------------------


def _ids(length: int = _LENGTH) -> Tensor:
    return torch.randint(3, _VOCABULARY, (2, length), generator=torch.Generator().manual_seed(0))


def _text() -> dict[str, Tensor]:
    mask = torch.ones(2, _LENGTH, dtype=torch.int64)
    mask[1, -3:] = 0  # the second text is shorter
    return {"input_ids": _ids(), "attention_mask": mask}


def _picture(side: int = 32) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))}


# -- text ----------------------------------------------------------------------------------------------------------------

_ENCODER: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
}
_DECODER: dict[str, Any] = _ENCODER | {"num_key_value_heads": 2}


@_model("bert")
def _bert() -> Made:
    return transformers.BertForMaskedLM(transformers.BertConfig(**_ENCODER)), _text()


@_model("roberta")
def _roberta() -> Made:
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**_ENCODER)), _text()


@_model("distilbert")
def _distilbert() -> Made:
    config = transformers.DistilBertConfig(
        vocab_size=_VOCABULARY, dim=_WIDTH, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=32
    )
    return transformers.DistilBertForSequenceClassification(config), _text()


@_model("gpt2")
def _gpt2() -> Made:
    config = transformers.GPT2Config(vocab_size=_VOCABULARY, n_embd=_WIDTH, n_layer=2, n_head=4, n_positions=32)
    return transformers.GPT2LMHeadModel(config), _text()


@_model("llama")
def _llama() -> Made:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_DECODER)), _text()


@_model("mistral")
def _mistral() -> Made:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**_DECODER, sliding_window=4)), _text()


@_model("qwen2")
def _qwen2() -> Made:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_DECODER)), _text()


@_model("qwen3")
def _qwen3() -> Made:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_DECODER, head_dim=16)), _text()


@_model("gemma")
def _gemma() -> Made:
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**_DECODER, head_dim=16)), _text()


@_model("gemma2")
def _gemma2() -> Made:
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**_DECODER, head_dim=16, sliding_window=4)), _text()


@_model("mixtral")
def _mixtral() -> Made:
    config = transformers.MixtralConfig(**_DECODER, num_local_experts=4, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config), _text()


@_model("qwen2-moe")
def _qwen2_moe() -> Made:
    config = transformers.Qwen2MoeConfig(
        **_DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=64
    )
    return transformers.Qwen2MoeForCausalLM(config), _text()


@_model("gpt-oss")
def _gpt_oss() -> Made:
    config = transformers.GptOssConfig(**_DECODER, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=4)
    return transformers.GptOssForCausalLM(config), _text()


@_model("t5")
def _t5() -> Made:
    config = transformers.T5Config(vocab_size=_VOCABULARY, d_model=_WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config), _text() | {"decoder_input_ids": _ids(6)}


@_model("bart")
def _bart() -> Made:
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 128}.items()
    }
    config = transformers.BartConfig(vocab_size=_VOCABULARY, d_model=_WIDTH, max_position_embeddings=32, **sides)
    return transformers.BartForConditionalGeneration(config), _text() | {"decoder_input_ids": _ids(6)}


@_model("mamba")
def _mamba() -> Made:
    config = transformers.MambaConfig(vocab_size=_VOCABULARY, hidden_size=_WIDTH, state_size=8, num_hidden_layers=2)
    return transformers.MambaForCausalLM(config), _text()


# -- sound ---------------------------------------------------------------------------------------------------------------


@_model("whisper")
def _whisper() -> Made:
    config = transformers.WhisperConfig(
        vocab_size=_VOCABULARY,
        d_model=_WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_mel_bins=16,
        max_source_positions=20,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    features = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(0))
    return transformers.WhisperForConditionalGeneration(config), {"input_features": features, "decoder_input_ids": _ids(6)}


@_model("wav2vec2")
def _wav2vec2() -> Made:
    layers = {"conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2)}
    config = transformers.Wav2Vec2Config(
        **_ENCODER | {"vocab_size": 32}, **layers, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4
    )
    sound = torch.randn(2, 800, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 800, dtype=torch.int64)
    mask[1, 600:] = 0
    return transformers.Wav2Vec2ForCTC(config), {"input_values": sound, "attention_mask": mask}


# -- pictures ------------------------------------------------------------------------------------------------------------

_VISION: dict[str, Any] = {key: _ENCODER[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")} | {
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}


@_model("vit")
def _vit() -> Made:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**_VISION)), _picture()


@_model("deit")
def _deit() -> Made:
    return transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**_VISION)), _picture()


@_model("swin")
def _swin() -> Made:
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4, num_labels=10
    )
    return transformers.SwinForImageClassification(config), _picture()


@_model("detr")
def _detr() -> Made:
    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=_WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=7,
    )
    return transformers.DetrForObjectDetection(config), _picture(96)


@_model("segformer")
def _segformer() -> Made:
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 48, 64], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=32
    )
    return transformers.SegformerForSemanticSegmentation(config), _picture(64)


@_model("clip")
def _clip() -> Made:
    text = transformers.CLIPTextConfig(**_ENCODER, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=transformers.CLIPVisionConfig(**_VISION).to_dict(), projection_dim=48
    )
    return transformers.CLIPModel(config), _text() | _picture()
