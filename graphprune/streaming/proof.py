"""The proof of a plan for a model that is larger than the memory: on a copy of reduced depth, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphprune.errors import CaptureError, PlanError
from graphprune.ir.program import Inputs
from graphprune.ir.twins import named_tensors
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.rewrite.rewrite import RewritePass
from graphprune.passes.verification.verify import VerifyPass
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_manager import PassManager
from graphprune.plans.plan import Plan, fingerprint, kept_units, make_plan
from graphprune.streaming.shorter import fill, shorten
from graphprune.tracing import capture
from graphprune.verification import Verification


@dataclass(frozen=True)
class Proof:
    """What was proved. verification: that the slim copy computes what the masked copy computes, or None where there is none.
    left_out: blocks of the model that the copy leaves out. note: why there is none, or empty."""

    verification: Verification | None
    left_out: int = 0
    note: str = ""

    def describe(self) -> str:
        """One sentence."""
        found = self.verification
        if found is None:
            return f"Not run on numbers: {self.note}."
        depth = f"a copy without {self.left_out} blocks that repeat" if self.left_out else "a copy"
        return (
            f"The plan was proved on {depth}, with random weights: largest relative error {found.error:.1e} "
            f"(tolerance {found.tolerance:.0e}) over {found.compared} tensors."
        )


def prove(model: nn.Module, inputs: Inputs, plan: Plan, *, most: int, seed: int = 0) -> Proof:
    """Carry out the part of a plan that a copy of reduced depth has, and verify it against the masked copy.

    Where blocks that repeat cannot stand for one another, as convolutions in a row of which each loses other channels, the copy has
    all of them. most: bytes that the copy's weights may take, in float32; a larger copy is not built, and the proof says so. Raises
    VerificationError, RewriteError or PlanError where the plan does not hold.
    """
    reason = ""
    for reduce in (shorten, lambda _: 0):
        try:
            copy = deepcopy(model)
        except Exception as error:  # whatever the model's classes make of it
            return Proof(None, note=f"the model cannot be copied ({type(error).__name__})")
        names = {id(tensor): name for name, tensor in reversed(named_tensors(copy).items())}
        left_out = reduce(copy)
        tensors = named_tensors(copy)
        kept = {name: plan.kept[names[id(tensor)]] for name, tensor in tensors.items() if names[id(tensor)] in plan.kept}
        size = 4 * sum(tensor.numel() for tensor in {id(t): t for t in tensors.values()}.values())
        if size > most:
            note = f"two blocks of each kind take {size / 1e9:.1f} GB, and the limit is {most / 1e9:.1f} GB"
            return Proof(None, left_out, reason or note)
        fill(copy, seed, torch.float32)
        try:
            return Proof(_verified(copy.eval(), inputs.map(_as_float32), plan, kept, seed), left_out)
        except (CaptureError, PlanError) as error:
            if not left_out and isinstance(error, PlanError):
                raise
            without = f" without {left_out} blocks that repeat" if left_out else ""
            reason = f"a copy{without} does not run ({str(error).rstrip('.')})"
            if not left_out:
                break
    return Proof(None, note=reason)


def _verified(
    copy: nn.Module, inputs: Inputs, plan: Plan, kept: Mapping[str, dict[int, list[int]]], seed: int
) -> Verification | None:
    """Prove a plan on a copy. kept: of its tensors, as the plan has it."""
    program, analyses = capture(copy, inputs).with_(policy=plan.policy), AnalysisManager()
    groups = analyses.get(program, ChannelGroups())
    named = plan.model_copy(update={"kept": kept, "model": fingerprint(program.module)})
    # The plan names the constants of the whole model's forward; those of the copy follow from the other tensors.
    constants = named.model.keys() - named_tensors(copy).keys()
    part = make_plan(program.module, groups, kept_units(named, groups, constants), policy=plan.policy)
    return PassManager([RewritePass(), VerifyPass(seed=seed)]).run(program.with_(plan=part), analyses).verification


def _as_float32(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
