"""torch-pruning's model for a number of MACs."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def peer_model(model: nn.Module, inputs: torch.Tensor, share: float = 0.5) -> nn.Module:
    """torch-pruning's model at the ratio, in steps of 1 %, whose MACs are nearest to a share of the model's."""
    import torch_pruning

    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    names = {name for name, module in model.named_modules() if module in heads}
    best: tuple[float, nn.Module] | None = None
    low, high = 0.0, 0.9
    while high - low > 0.01:
        ratio = (low + high) / 2
        victim = copy.deepcopy(model)
        for parameter in victim.parameters():
            parameter.requires_grad_(True)
        torch_pruning.pruner.MetaPruner(
            victim,
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[module for name, module in victim.named_modules() if name in names],
        ).step()
        left = macs(victim, inputs) / macs(model, inputs)
        if best is None or abs(left - share) < abs(best[0] - share):
            best = left, victim
        low, high = (ratio, high) if left > share else (low, ratio)
    assert best is not None
    return best[1].eval()


def macs(model: nn.Module, inputs: torch.Tensor) -> int:
    """Multiply-accumulates, as torch counts them; of fused attention it would count none."""
    counter, fast = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
