"""Verification: the slim model must compute what the masked original computes. Independent of analysis and rewriter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from graphprune.analysis_manager import AnalysisView
from graphprune.pass_base import Pass
from graphprune.passes.verification.missing import MissingData
from graphprune.plan import Plan
from graphprune.program import Inputs, Program, placeholder_values
from graphprune.twins import named_tensors, twin
from graphprune.verification import TOLERANCE, Verification


def compare(
    original: fx.GraphModule, slim: fx.GraphModule, plan: Plan, inputs: Inputs, *, seed: int = 0, weights: bool = True
) -> Verification:
    """Compare a slim model with the masked original, node by node, on random inputs.

    First every tensor of the slim model must be the plan's slice of the original's, bit for bit (``weights=False``
    leaves that out, for a model that was trained since). Then both run, in eval mode, with the original's weights: the
    original at full width under :class:`~graphprune.passes.verification.missing.MissingData`. Each node's present
    elements must equal its slim twin's, which shows an error where it arises, however little of it reaches the output.

    inputs: shapes and dtypes are used; floating-point values are drawn anew from ``seed``. Nothing is modified.
    """
    full = named_tensors(original)
    if weights and (difference := _weight_difference(full, slim, plan)):
        return Verification(torch.inf, 0.0, 0, 0, difference)
    generator = torch.Generator().manual_seed(seed)
    values = {name: _informative(tensor, generator) for name, tensor in full.items()}
    randomised = sum(values[name] is not tensor for name, tensor in full.items())
    masked = _with_tensors(original, {name: _masked(t, plan.kept.get(name, {})) for name, t in values.items()})
    smaller = _with_tensors(slim, {name: _sliced(t, plan.kept.get(name, {})) for name, t in values.items()})
    device = next((tensor.device for tensor in full.values()), torch.device("cpu"))
    arguments = _random_arguments(original, inputs, generator, device)
    tolerance = max((TOLERANCE.get(t.dtype, 0.0) for t in full.values()), default=TOLERANCE[torch.float32])
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = _Recording(smaller)
        try:
            found.run(*arguments)
        except Exception as error:  # whatever a wrong rewrite raises is the finding
            text = str(error).strip().splitlines()[0] if str(error).strip() else ""
            failure = f"The slim model does not run: {found.where} fails with {type(error).__name__}: {text}"
            return Verification(torch.inf, tolerance, 0, randomised, failure)
        comparison = _Comparison(masked, found.results, tolerance)
        with MissingData():
            comparison.run(*arguments)
    return Verification(comparison.worst, tolerance, comparison.compared, randomised, comparison.failure)


# -- the two models ------------------------------------------------------------------------------------------------------


def _weight_difference(full: Mapping[str, Tensor], slim: nn.Module, plan: Plan) -> str:
    for name, tensor in named_tensors(slim).items():
        if name not in full:
            if tensor.is_floating_point():
                return f"The slim model's {name} does not exist in the original."
            continue
        expected = _sliced(full[name], plan.kept.get(name, {}))
        if expected.shape != tensor.shape:
            return f"The slim model's {name} has shape {list(tensor.shape)}, the plan's slice has {list(expected.shape)}."
        if not torch.equal(expected.to(tensor.device), tensor):
            return (
                f"The slim model's {name} is not the plan's slice of the original. "
                "If the model was trained since, verify with weights=False."
            )
    return ""


def _informative(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The tensor, or random values where it is constant: means of zero and scales of one or 1e-6 hide errors."""
    if not tensor.is_floating_point() or tensor.numel() < 2:
        return tensor
    low, high = tensor.detach().aminmax()
    if low != high:
        return tensor
    if float(low) == 0.0:
        random = torch.randn(tensor.shape, generator=generator) * 0.5
    else:
        random = torch.rand(tensor.shape, generator=generator) + 0.5
    return random.to(device=tensor.device, dtype=tensor.dtype)


def _masked(tensor: Tensor, axes: Mapping[int, list[int]]) -> Tensor:
    """Full size, removed slices missing (NaN)."""
    if not axes or not tensor.is_floating_point():
        return tensor
    result = tensor.detach().clone()
    for axis, indices in axes.items():
        gone = torch.ones(tensor.shape[axis], dtype=torch.bool, device=tensor.device)
        gone[indices] = False
        result.movedim(axis, 0)[gone] = torch.nan
    return result


def _sliced(tensor: Tensor, axes: Mapping[int, list[int]]) -> Tensor:
    result = tensor.detach()
    for axis, indices in axes.items():
        result = result.index_select(axis, torch.tensor(indices, device=tensor.device))
    return result


def _with_tensors(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module in eval mode with these tensors in it, by name; others stay."""
    names = {id(tensor): name for name, tensor in named_tensors(module).items()}

    def replacement(tensor: Tensor) -> Tensor:
        value = values.get(names.get(id(tensor), ""))
        if value is None:
            return tensor
        return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value.detach()

    return twin(module, replacement).eval()


def _random_arguments(module: fx.GraphModule, inputs: Inputs, generator: torch.Generator, device: torch.device) -> list[Any]:
    def draw(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        if not item.is_floating_point():
            return item.to(device)
        return torch.randn(item.shape, generator=generator).to(device=device, dtype=item.dtype)

    return [tree_map(draw, item) for item in placeholder_values(module.graph, inputs)]


# -- comparing -----------------------------------------------------------------------------------------------------------


def relative_error(reference: Tensor, found: Tensor) -> float:
    """``max |found - reference| / max |reference|``; the absolute error where the reference is all zero."""
    if reference.numel() == 0:
        return 0.0
    scale = float(reference.abs().max())
    return float((found - reference).abs().max()) / (scale or 1.0)


class _Recording(fx.Interpreter):
    """Runs a graph and keeps every node's tensors."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.results: dict[str, list[Tensor]] = {}
        self.where = ""

    def run_node(self, n: fx.Node) -> Any:
        self.where = _described(n)
        result = super().run_node(n)
        # A later operator may write in place: keep what the node made.
        self.results[n.name] = [leaf.clone() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result


def _described(node: fx.Node) -> str:
    place = node.meta.get("source", "")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"node {node.name} ({name}{f' at {place}' if place else ''})"


class _Comparison(fx.Interpreter):
    """Runs the masked original and compares each node with its namesake in the slim model; the first difference counts."""

    def __init__(self, module: Any, slim: Mapping[str, list[Tensor]], tolerance: float) -> None:
        super().__init__(module)
        self.slim = slim
        self.tolerance = tolerance
        self.worst = 0.0
        self.compared = 0
        self.failure = ""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        twins = self.slim.get(n.name)
        if self.failure or twins is None:
            return result
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if n.op == "output":
            self._compare_outputs(leaves, twins)
        elif len(leaves) == len(twins):
            for reference, found in zip(leaves, twins, strict=True):
                self._compare_present(n, reference, found)
        return result

    def _compare_present(self, node: fx.Node, reference: Tensor, found: Tensor) -> None:
        """Present elements, in order, against the slim tensor; more present than kept is padding not yet met by a channel."""
        if not reference.is_floating_point():
            return
        present = reference[~reference.isnan()]
        if present.numel() == found.numel():
            self._judge(present, found.flatten(), _described(node))

    def _compare_outputs(self, wanted: list[Tensor], got: list[Tensor]) -> None:
        if len(wanted) != len(got):
            self.failure = f"The slim model returns {len(got)} tensors, the original {len(wanted)}."
        for index, (reference, found) in enumerate(zip(wanted, got, strict=False)):
            if reference.shape != found.shape:
                self.failure = f"Output {index} has shape {list(found.shape)}, the original's is {list(reference.shape)}."
            elif reference.is_floating_point() and bool(reference.isnan().any()):
                self.failure = f"Output {index} of the masked original depends on removed channels alone, or is not a number."
            else:
                self._judge(reference, found, f"Output {index}")

    def _judge(self, reference: Tensor, found: Tensor, what: str) -> None:
        error = relative_error(reference, found) if reference.is_floating_point() else float(not torch.equal(reference, found))
        self.compared += 1
        self.worst = max(self.worst, error)
        if not error <= self.tolerance and not self.failure:
            limits = f"{error:.1e} (relative; tolerance {self.tolerance:.0e})"
            self.failure = f"{what[0].upper()}{what[1:]} differs from the masked original by {limits}."


@dataclass(frozen=True)
class VerifyPass(Pass):
    """Verify the last rewrite; a difference is an error. seed: of the random inputs and statistics."""

    name: ClassVar[str] = "verify"
    preserves: ClassVar[Any] = "all"
    needs: ClassVar[tuple[str, ...]] = ("plan", "original")

    seed: int = 0

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Raises VerificationError with the first graph node that disagrees."""
        assert program.plan is not None and program.original is not None
        result = compare(program.original, program.module, program.plan, program.inputs, seed=self.seed)
        return program.with_(verification=result.check())
