"""Every type of model of transformers that a rule makes small: base models from configurations whose sizes are cut down.

No model is written out here: known names of sizes are set to small values in a type's configuration, and the inputs follow the
name of the model's main input. Types whose configurations do not fit together so are left out.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoModel, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from suites.case import Case

_NAMES: Final[list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text())

_WIDTH, _HEADS, _LAYERS, _FFN, _VOCABULARY = 32, 4, 2, 48, 99
_SIZES: Final[dict[str, Any]] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "word_embed_proj_dim"), _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), _HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), _HEADS),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff", "n_inner"), _FFN),
    **dict.fromkeys(("d_kv", "head_dim", "attention_head_size", "patch_size", "state_size", "sliding_window", "block_size"), 8),
    **dict.fromkeys(("v_head_dim", "qk_nope_head_dim", "num_conv_pos_embeddings"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "projection_dim", "num_mel_bins", "bucket_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "bos_token_id"), 1),
    **{"vocab_size": _VOCABULARY, "image_size": 32, "moe_intermediate_size": 24, "type_vocab_size": 2},
    **{"pad_token_id": 0, "eos_token_id": 2, "num_conv_pos_embedding_groups": 4},
    **{"conv_dim": (16, 16), "conv_kernel": (3, 3), "conv_stride": (2, 2)},
}
_SIDE: Final = 32  # of pictures
_PICTURED: Final = ("clip", "blip", "align", "siglip", "group", "owl", "flava", "bridge", "vilt", "alt")


def names() -> list[str]:
    """Keys of all types."""
    return [f"model-type:{name}" for name in _NAMES]


def case(name: str) -> Case:
    """A small model of a type, and its keyword arguments."""
    return Case(f"model-type:{name}", lambda: _model(name), lambda: _inputs(_model(name)))


def _model(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(_config(name)).eval()


def _config(name: str) -> PretrainedConfig:
    made = CONFIG_MAPPING[name]
    known = set(inspect.signature(made.__init__).parameters) | set(getattr(made, "__annotations__", ()))
    attributes = getattr(made, "attribute_map", {})
    sizes = {key: value for key, value in _SIZES.items() if key in known or attributes.get(key) in known}
    try:
        config: PretrainedConfig = made(**sizes)
    except Exception:  # sizes that are checked against one another
        config, sizes = made(), {}
    for part in [config] * (not sizes) + _parts(config):
        _cut(part)
    return config


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    return [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]


def _cut(config: PretrainedConfig, depth: int = 0) -> None:
    """Set the sizes that a configuration has, one by one, where they are single numbers (or several, as here)."""
    for key, value in _SIZES.items():
        held = getattr(config, key, None)
        if held is not None and (isinstance(value, tuple) or not isinstance(held, (list, tuple))):
            setattr(config, key, value)
    for part in _parts(config) if depth < 3 else ():
        _cut(part, depth + 1)


def _inputs(model: Any) -> dict[str, Any]:
    config, taken, main = model.config, inspect.signature(model.forward).parameters, model.main_input_name
    given: dict[str, Any] = {main: _main_input(main, config)}
    if "decoder_input_ids" in taken and config.is_encoder_decoder:
        given["decoder_input_ids"] = _ids(6)
    if main == "pixel_values" and "input_ids" in taken:
        given["input_ids"] = _ids()
    if main == "input_ids" and "pixel_values" in taken and any(part in config.model_type for part in _PICTURED):
        given["pixel_values"] = torch.randn(2, 3, _SIDE, _SIDE)
    if "use_cache" in taken:
        given["use_cache"] = False
    return given


def _main_input(name: str, config: PretrainedConfig) -> Tensor:
    torch.manual_seed(1)
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 16
    if name == "input_ids":
        return _ids()
    if name == "pixel_values":
        return torch.randn(2, _single(config, "num_channels", 3), *[max(_SIDE, _side(config))] * 2)
    if name == "input_values":
        return torch.randn(2, 1000)
    if name == "input_features":
        length = 2 * getattr(config, "max_source_positions", _SIDE)
        return torch.randn(2, bins, length) if "whisper" in config.model_type else torch.randn(2, 40, bins)
    return torch.randn(2, 16, _WIDTH)


def _side(config: PretrainedConfig) -> int:
    side = _single(config, "image_size", 0) or _single(getattr(config, "vision_config", config), "image_size", 0)
    return side or 2 * _SIDE


def _single(config: PretrainedConfig, key: str, default: int) -> int:
    value = getattr(config, key, None)
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return value if isinstance(value, int) else default


def _ids(length: int = 16) -> Tensor:
    return torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(0))
