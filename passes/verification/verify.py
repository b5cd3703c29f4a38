"""Verification: the slim model must compute what the masked original computes. Independent of analysis and rewriter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from graphprune.arithmetic import full_precision, is_fractional, real_parts
from graphprune.errors import CaptureError, VerificationError, typed_line
from graphprune.failures import memory_is_out
from graphprune.ir.handed import is_handed_over
from graphprune.ir.program import Inputs, Program, placeholder_values
from graphprune.ir.twins import named_tensors, undisturbed
from graphprune.ir.weights import Weights
from graphprune.passes.verification.missing import MissingData
from graphprune.passes.verification.steps import Masked, Steps, described, tensors_of, undefined, unfilled
from graphprune.passes.verification.tensors import Informative, Made, in_precision, masked, model_with, sliced
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass
from graphprune.plans.plan import Plan
from graphprune.randomness import DrawnByIndex, own_randomness
from graphprune.verification import TOLERANCE, Verification

_ROUNDING: Final = 4096 * torch.finfo(torch.float64).eps  # of sums of ordinary numbers


def compare(
    original: fx.GraphModule,
    slim: fx.GraphModule,
    plan: Plan,
    inputs: Inputs,
    *,
    seed: int = 0,
    weights: bool = True,
    loads: tuple[Weights | None, Weights | None] = (None, None),
) -> Verification:
    """Compare a slim model with the masked original, node by node, on random inputs.

    First every tensor of the slim model must be the plan's slice of the original's, bit for bit (``weights=False``
    leaves that out, for a model that was trained since). Then both run, in eval mode, with the original's weights: the
    original at full width under :class:`~graphprune.passes.verification.missing.MissingData`. Each node's present
    elements must equal its slim twin's, which shows an error where it arises, however little of it reaches the output.

    inputs: shapes and dtypes are used; floating-point values are drawn anew from ``seed``. Where the original does not run on
    these, as where some are cast to indices of an embedding, those that are whole numbers stay. loads: where values of the two are
    read from, if they are loaded on demand: then a node's weights are in memory while it runs. Nothing is modified.
    """
    full: Mapping[str, Tensor] = named_tensors(original) if loads[0] is None else loads[0]
    if weights and (difference := _weight_difference(full, named_tensors(slim) if loads[1] is None else loads[1], plan)):
        return Verification(torch.inf, 0.0, 0, 0, difference)
    whole = False
    try:
        found = _compare(original, slim, plan, inputs, seed, None, loads[0], whole)
    except _OriginalError:  # it may cast numbers to indices, and what is drawn is none
        whole = True
        try:
            found = _compare(original, slim, plan, inputs, seed, None, loads[0], whole)
        except _OriginalError as error:
            if loads[0] is None and not _runs(original, inputs):
                raise CaptureError(
                    f"The model does not run on its example inputs ({inputs.describe()}): {error}. Give values that it takes, as "
                    "ids that its tables have."
                ) from error
            raise VerificationError(
                f"The original does not run on random numbers of the shape of the example inputs: {error}. "
                "Nothing is proved; verify=False (--no-verify) leaves the proof out."
            ) from error
    if found.passed or found.error == torch.inf:
        return found
    # An ill-conditioned model exceeds the tolerance by rounding alone. Twice the digits tell that from an error, with each node
    # computed from what the masked original has: over a deep model rounding grows without bounds, and a choice made by what is
    # zero to rounding falls either way.
    try:
        with _InDouble():  # type: ignore[no-untyped-call]
            exact = _compare(original, slim, plan, inputs, seed, torch.float64, loads[0], whole)
    except Exception:  # a model that insists on its dtype
        return found
    return exact if exact.passed else found


def _runs(model: fx.GraphModule, inputs: Inputs) -> bool:
    """Whether a model runs on inputs as they are; on meta tensors that is not asked."""
    arguments = placeholder_values(model.graph, inputs)
    device = next((tensor.device for tensor in named_tensors(model).values()), torch.device("cpu"))
    with undisturbed(model), torch.no_grad(), own_randomness():
        try:
            model(*tree_map(lambda leaf: leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf, arguments))
        except Exception:
            return any(leaf.is_meta for leaf in (*named_tensors(model).values(), *tensors_of(arguments)))
    return True


def _compare(
    original: fx.GraphModule,
    slim: fx.GraphModule,
    plan: Plan,
    inputs: Inputs,
    seed: int,
    dtype: torch.dtype | None,
    weights: Weights | None,
    whole: bool,
) -> Verification:
    full = named_tensors(original)
    drawn = Informative(full if weights is None else weights, seed, dtype)
    values: Mapping[str, Tensor] = dict(drawn) if weights is None else drawn
    full_width = model_with(original, full, Made(values, lambda name, t: masked(t, plan.kept.get(name, {}))), weights is not None)
    smaller = model_with(slim, full, Made(values, lambda name, t: sliced(t, plan.kept.get(name, {}))), weights is not None)
    device = next((tensor.device for tensor in full.values()), torch.device("cpu")) if weights is None else weights.device
    arguments = _random_arguments(original, inputs, torch.Generator().manual_seed(seed), device, dtype, whole)
    tolerance = max((TOLERANCE.get(dtype or t.dtype.to_real(), 0.0) for t in full.values()), default=TOLERANCE[torch.float32])
    given = _arguments_by_name(original.graph, slim.graph, arguments)
    comparison = _Comparison(Steps(*smaller, given), Masked(*full_width, arguments), tolerance, corrects=dtype is not None)
    eagerly = torch.compiler.set_stance("force_eager")  # what a leaf compiles within is code like any other
    with torch.no_grad(), full_precision(), own_randomness(), DrawnByIndex(), eagerly:
        comparison.run()
        failure = comparison.failure
        if failure:
            plain = model_with(original, full, Made(values, lambda _, t: t), weights is not None)
            failure = undefined(Steps(*plain, arguments)) or failure
    return Verification(comparison.worst, tolerance, comparison.compared, len(drawn.random), failure)


class _InDouble(TorchDispatchMode):
    """Within this mode nothing is rounded to float32: norms and softmaxes of half-precision models are spelled with casts."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        dtype = kwargs.get("dtype")
        if dtype is not None and dtype.to_real() in TOLERANCE:
            kwargs["dtype"] = torch.complex128 if dtype.is_complex else torch.float64
        return func(*args, **kwargs)


# -- the two models ------------------------------------------------------------------------------------------------------


def _weight_difference(full: Mapping[str, Tensor], slim: Mapping[str, Tensor], plan: Plan) -> str:
    for name, tensor in slim.items():
        if name not in full:
            if is_fractional(tensor):
                return f"The slim model's {name} does not exist in the original."
            continue
        expected = sliced(full[name], plan.kept.get(name, {}))
        if expected.shape != tensor.shape:
            return f"The slim model's {name} has shape {list(tensor.shape)}, the plan's slice has {list(expected.shape)}."
        if not torch.equal(expected.to(tensor.device), tensor):
            return (
                f"The slim model's {name} is not the plan's slice of the original. "
                "If the model was trained since, leave its values out: verify(..., weights=False), or --trained."
            )
    return ""


def _random_arguments(
    module: fx.GraphModule,
    inputs: Inputs,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype | None,
    whole: bool,
) -> list[Any]:
    """Arguments of the example's shapes, floating-point ones drawn; whole: but for the example's whole numbers."""

    def draw(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        if not is_fractional(item):
            return item.to(device)
        kind = torch.complex64 if item.is_complex() else torch.float32
        drawn = in_precision(torch.randn(item.shape, generator=generator, dtype=kind).to(device=device, dtype=item.dtype), dtype)
        given = item.to(drawn) if whole and not (item.is_meta or item.is_complex()) else None
        return drawn if given is None else torch.where(given == given.round(), given, drawn)

    return [tree_map(draw, item) for item in placeholder_values(module.graph, inputs)]


def _arguments_by_name(graph: fx.Graph, other: fx.Graph, arguments: list[Any]) -> list[Any]:
    """The arguments of one graph in the order of another one's placeholders, where these have the same names."""
    names, others = ([node.target for node in each.nodes if node.op == "placeholder"] for each in (graph, other))
    known = dict(zip(names, arguments, strict=False))
    return [known[name] for name in others] if set(others) == known.keys() else arguments


# -- comparing -----------------------------------------------------------------------------------------------------------


def relative_error(reference: Tensor, found: Tensor) -> float:
    """``max |found - reference| / max |reference|``; the absolute error where the reference is all zero.

    In float64 that includes zeros to rounding, as of a layer norm over copies of one channel: of them no digit is the same twice.
    Equal infinities (the masks of attention) differ by nothing and set no scale. Tensors of other dtypes are equal (0) or not (1).
    """
    if reference.is_complex() and found.is_complex():
        reference, found = real_parts(reference), real_parts(found)
    if not reference.is_floating_point():
        return float(not torch.equal(reference, found))
    if reference.numel() == 0:
        return 0.0
    scale, difference = _largest(reference), _largest(found - reference)
    if not (isfinite(scale) and isfinite(difference)):
        scale = _largest(reference.masked_fill(reference.isinf(), 0.0))
        difference = _largest((found - reference).masked_fill(found == reference, 0.0))
    zero = _ROUNDING if reference.dtype == torch.float64 else 0.0
    return difference / (scale if scale > zero else 1.0)


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN where there is one."""
    low, high = torch.aminmax(tensor)
    return abs(max(-float(low), float(high))) if float(low) == float(low) else torch.nan


def _present(reference: Tensor, like: Tensor) -> Tensor | None:
    """The elements that are not missing, in the shape of their slim twin; None where they do not fit it.

    Channels are missing whole, so one line along an axis tells which; where that does not fit, all elements are looked at.
    """
    if reference.dim() == like.dim() and reference.numel():
        result = reference
        for axis, (full, kept) in enumerate(zip(reference.shape, like.shape, strict=True)):
            if full != kept:
                line = reference[tuple(slice(None) if other == axis else 0 for other in range(reference.dim()))]
                result = result.index_select(axis, (~line.isnan()).nonzero().flatten())
        if result.shape == like.shape and not bool(result.isnan().any()):
            return result
    present = reference[~reference.isnan()]
    return present.view(like.shape) if present.numel() == like.numel() else None


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements of an expanded tensor share memory."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


class _OriginalError(Exception):
    """The original does not run on what was drawn."""


class _SlimError(Exception):
    """The slim model does not run."""


class _Comparison:
    """Runs the masked original and the slim model in step and compares nodes of one name; the first difference counts.

    corrects: what rounding made of a node that passed does not reach later ones, since the slim model goes on with the original's.
    """

    def __init__(self, slim: Steps, masked: Masked, tolerance: float, *, corrects: bool) -> None:
        self._corrects = corrects
        self.masked = masked
        self.slim = slim
        self.tolerance = tolerance
        self.worst = 0.0
        self.compared = 0
        self.failure = ""
        self._wanted = {node.name for node in masked.graph.nodes} & {node.name for node in slim.graph.nodes}
        self._passed: dict[str, list[Tensor]] = {}
        self._handed: list[Tensor] = []

    def run(self) -> None:
        """Compare to the first difference."""
        missing = MissingData()
        while not self.failure:
            with missing:
                node, leaves = self._next()
            if node is None:
                return
            if is_handed_over(node):
                self._handed += leaves
            if node.name in self._wanted:
                try:
                    self._compare(node, leaves, self._twins(node.name))
                except _SlimError as error:
                    self.worst, self.failure = torch.inf, str(error)

    def _next(self) -> tuple[fx.Node | None, list[Tensor]]:
        try:
            return next(self.masked, (None, []))
        except Exception as error:
            if memory_is_out(error) or self.masked.node is None:
                raise
            raise _OriginalError(f"{described(self.masked.node)} fails with {typed_line(error)}") from error

    def _twins(self, name: str) -> list[Tensor]:
        """What the slim node of this name made; the slim model runs no further than that."""
        while name not in self._passed:
            try:
                node, leaves = next(self.slim)
            except Exception as error:  # whatever a wrong rewrite raises is the finding
                where = described(self.slim.node) if self.slim.node is not None else "its first node"
                said = f"{where} fails with {typed_line(error)}"
                raise _SlimError(f"The slim model does not run: {said}") from error
            if node.name == name:
                return leaves
            if node.name in self._wanted:  # asked for later, and a later operator may write in place
                self._passed[node.name] = [leaf.clone() for leaf in leaves]
        return self._passed.pop(name)

    def _compare(self, node: fx.Node, leaves: list[Tensor], twins: list[Tensor]) -> None:
        if node.op == "output":
            self._compare_outputs(leaves, twins)
        elif len(leaves) == len(twins) and not unfilled(node):
            for reference, found in zip(leaves, twins, strict=True):
                self._compare_present(node, reference, found)

    def _compare_present(self, node: fx.Node, reference: Tensor, found: Tensor) -> None:
        """Present elements against the slim tensor; more present than kept is padding not yet met by a channel."""
        if not is_fractional(reference):
            return
        present = _present(reference, found)
        if present is not None:
            self._judge(present, found, described(node))
            if self._corrects and not self.failure and not _overlaps(found):
                found.copy_(present)  # in place: views of it follow

    def _compare_outputs(self, wanted: list[Tensor], got: list[Tensor]) -> None:
        if len(wanted) != len(got):
            self.failure = f"The slim model returns {len(got)} tensors, the original {len(wanted)}."
        for index, (reference, found) in enumerate(zip(wanted, got, strict=False)):
            if any(reference is tensor for tensor in self._handed):
                continue  # no output but the input of another scope, which is compared where it enters
            if reference.shape != found.shape:
                self.failure = f"Output {index} has shape {list(found.shape)}, the original's is {list(reference.shape)}."
            elif is_fractional(reference) and bool(reference.isnan().any()):
                self.failure = f"Output {index} of the masked original depends on removed channels alone, or is not a number."
            else:
                self._judge(reference, found, f"Output {index}")

    def _judge(self, reference: Tensor, found: Tensor, what: str) -> None:
        error = relative_error(reference, found)
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
    streams: ClassVar[bool] = True

    seed: int = 0

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Raises VerificationError with the first graph node that disagrees."""
        assert program.plan is not None and program.original is not None
        loads = program.original_weights, program.weights
        result = compare(program.original, program.module, program.plan, program.inputs, seed=self.seed, loads=loads)
        return program.with_(verification=result.check())
