"""Operators of quantisation and of training for it: what they touch stays, since ranges and scales were made for all of it."""

from __future__ import annotations

from graphprune.rules import Call, rule


@rule(
    "_fused_moving_avg_obs_fq_helper",
    "_fake_quantize_learnable_per_channel_affine",
    "_fake_quantize_learnable_per_tensor_affine",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
    "fake_quantize_per_tensor_affine_cachemask",
)
def fake_quantised(call: Call) -> None:
    """Rounded to the steps of a quantised tensor, at scales that are given or observed."""
    call.freeze_inputs("prepared for quantisation, and pruning comes first")
    for index in range(len(call.outputs)):
        call.set((), index)
