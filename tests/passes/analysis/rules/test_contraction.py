"""Matrix products and attention: contracted labels are tied and end, the others pass; MACs are those of torch's counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from graphprune.channels.labels import axes_of
from graphprune.errors import CaptureError
from tests.passes.analysis.rules.observing import Seen, observe

Function = Callable[..., Any]


def pairs(seen: Seen, *axes: tuple[str, int]) -> set[frozenset[int]]:
    """Atoms at equal places along these axes."""
    return {frozenset(column) for column in zip(*(seen.atoms(name, axis) for name, axis in axes), strict=True)}


PRODUCTS: dict[str, tuple[Function, dict[str, tuple[int, ...]]]] = {
    "mm": (lambda a, b: a @ b, {"a": (4, 6), "b": (6, 3)}),
    "linear without bias": (lambda a, b: F.linear(a, b.t()), {"a": (4, 6), "b": (6, 3)}),
    "bmm": (lambda a, b: torch.bmm(a[None], b[None])[0], {"a": (4, 6), "b": (6, 3)}),
    "einsum": (lambda a, b: torch.einsum("ik,kj->ij", a, b), {"a": (4, 6), "b": (6, 3)}),
    "matmul of more axes": (lambda a, b: torch.matmul(a.view(1, 1, 4, 6), b).view(4, 3), {"a": (4, 6), "b": (6, 3)}),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=1), {"a": (4, 6), "b": (6, 3)}),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_contracted_axis_is_tied_and_the_others_pass(name: str) -> None:
    function, shapes = PRODUCTS[name]
    tensors = {key: torch.randn(shape) for key, shape in shapes.items()}
    seen = observe(lambda a, b: function(a, b), **tensors)
    assert seen.classes == pairs(seen, ("a", 1), ("b", 0))
    assert seen.result_atoms(0) == seen.atoms("a", 0) and seen.result_atoms(1) == seen.atoms("b", 1)
    assert not seen.frozen
    with FlopCounterMode(display=False) as counter:
        function(**tensors)
    assert seen.macs() == counter.get_total_flops() // 2


def test_a_bias_is_tied_to_the_columns() -> None:
    seen = observe(lambda a, w, c: F.linear(a, w, c), a=torch.randn(4, 6), w=torch.randn(3, 6), c=torch.randn(3))
    assert seen.classes == pairs(seen, ("a", 1), ("w", 1)) | pairs(seen, ("w", 0), ("c", 0))
    assert not seen.frozen


def test_data_freeze_the_contracted_axis_only() -> None:
    seen = observe(lambda x, w: F.linear(x, w), x=torch.randn(4, 6), w=torch.randn(3, 6))
    assert seen.frozen == set(seen.atoms("w", 1)) and seen.result_atoms(1) == seen.atoms("w", 0)
    assert seen.reasons(seen.frozen) == {"multiplied with a tensor that cannot shrink"}


@pytest.mark.parametrize("function", [torch.mv, lambda a, v: a @ v, lambda a, v: torch.einsum("mk,k->m", a, v)])
def test_matrix_times_vector(function: Function) -> None:
    seen = observe(lambda a, v: function(a, v), a=torch.randn(4, 6), v=torch.randn(6))
    assert seen.classes == pairs(seen, ("a", 1), ("v", 0))
    assert seen.result_atoms(0) == seen.atoms("a", 0) and not seen.frozen


def test_vector_times_vector() -> None:
    seen = observe(lambda a, b: torch.dot(a, b), a=torch.randn(6), b=torch.randn(6))
    assert seen.classes == pairs(seen, ("a", 0), ("b", 0)) and not seen.frozen


def test_batches_are_tied() -> None:
    seen = observe(lambda a, b: torch.bmm(a, b), a=torch.randn(2, 4, 6), b=torch.randn(2, 6, 3))
    assert seen.classes == pairs(seen, ("a", 2), ("b", 1)) | pairs(seen, ("a", 0), ("b", 0))
    assert seen.result_atoms(0) is not None


def test_a_batch_of_data_freezes_its_partner() -> None:
    seen = observe(lambda x, b: torch.bmm(x, b), x=torch.randn(2, 4, 6), b=torch.randn(2, 6, 3))
    assert seen.frozen == set(seen.atoms("b", 0)) | set(seen.atoms("b", 1))
    assert seen.result_atoms(2) == seen.atoms("b", 2)


@pytest.mark.parametrize(("policy", "size"), [("whole", 4), ("head_dim", 3)])
def test_heads_contracted_over_their_dimension(policy: str, size: int) -> None:
    """q @ k' per head, from one axis each: units are whole heads, or the same dimension of all heads."""

    def function(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q.view(5, 3, 4).transpose(0, 1) @ k.view(5, 3, 4).permute(1, 2, 0)

    seen = observe(function, policy={"heads": policy}, q=torch.randn(5, 12), k=torch.randn(5, 12))
    q, k = seen.atoms("q", 1), seen.atoms("k", 1)
    if policy == "whole":
        wanted = {frozenset(q[h * 4 : h * 4 + 4] + k[h * 4 : h * 4 + 4]) for h in range(3)}
    else:
        wanted = {frozenset(q[d::4] + k[d::4]) for d in range(4)}
    assert {group for group in seen.classes if group & set(q)} == wanted
    assert not seen.frozen & set(q + k)
    assert {len(group) for group in wanted} == {2 * 12 // len(wanted)} and len(wanted) == 12 // size


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def test_attention_ties_heads_of_all_three_and_queries_with_keys() -> None:
    """Keys and values keep their tokens, q's width goes with k's, v's width passes; queries are independent of each other."""
    shapes = {"q": (1, 3, 5, 4), "k": (1, 3, 6, 4), "v": (1, 3, 6, 4)}
    seen = observe(attended, **{name: torch.randn(shape) for name, shape in shapes.items()})
    assert seen.classes >= pairs(seen, ("q", 1), ("k", 1), ("v", 1)) | pairs(seen, ("q", 3), ("k", 3))
    tokens = {atom for name in "qkv" for atom in seen.atoms(name, 2)}
    assert tokens - set(seen.atoms("q", 2)) <= seen.frozen <= tokens
    assert seen.result_atoms(3) == seen.atoms("v", 3)
    assert seen.macs() == 3 * 5 * 6 * (4 + 4)  # heads x queries x keys x (d of the scores + e of the output)


def test_an_attention_bias_of_data_per_head_freezes_the_heads() -> None:
    def function(x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=x)

    tensors = {name: torch.randn(1, 3, 5, 4) for name in "qkv"}
    seen = observe(function, x=torch.randn(1, 3, 5, 5), **tensors)
    assert seen.frozen >= {atom for name in "qkv" for atom in seen.atoms(name, 1)}
    free = observe(function, x=torch.randn(1, 1, 5, 5), **tensors)
    assert not free.frozen & set(free.atoms("q", 1))


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention as exported programs have it: one operator, where capture sees its parts."""
    made: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)[0]
    return made


def _in_parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _heads(t: Tensor) -> Tensor:
    return t.view(1, -1, 3, 4).transpose(1, 2)


#: Layouts of attention: what is done to each operand first, and the operands' shapes. Of one sample: parts merge samples and heads.
ATTENDED: dict[str, tuple[Function, dict[str, tuple[int, ...]]]] = {
    "heads apart": (lambda t: t, {"q": (1, 3, 5, 4), "k": (1, 3, 6, 4), "v": (1, 3, 6, 7)}),
    "heads of one axis": (_heads, {"q": (1, 5, 12), "k": (1, 6, 12), "v": (1, 6, 12)}),
    "a mask of heads": (_heads, {"q": (1, 5, 12), "k": (1, 6, 12), "v": (1, 6, 12), "mask": (1, 3, 5, 6)}),
    "a mask of heads alone": (lambda t: t, {"q": (1, 3, 5, 4), "k": (1, 3, 6, 4), "v": (1, 3, 6, 7), "mask": (3, 1, 1)}),
    "a mask of places": (lambda t: t, {"q": (1, 3, 5, 4), "k": (1, 3, 6, 4), "v": (1, 3, 6, 7), "mask": (5, 6)}),
    "values of data": (lambda t: t, {"q": (1, 3, 5, 4), "k": (1, 3, 6, 4), "x": (1, 3, 6, 7)}),
    "keys of data": (lambda t: t, {"q": (1, 3, 5, 4), "x": (1, 3, 6, 4), "v": (1, 3, 6, 7)}),
}


def _places(seen: Seen) -> dict[int, tuple[str, int, int]]:
    """Operand, axis and index of each atom of an operand."""
    known: dict[int, tuple[str, int, int]] = {}
    for name, value in seen.trace.parameters.items():
        for field in value.fields:
            (axis,) = axes_of(field)
            known |= {int(atom): (name, axis, index) for index, atom in enumerate(field.ravel())}
    return known


def _said(seen: Seen) -> dict[str, Any]:
    """What may go together, what must stay, the labels of the result and the cost, by places in operands; not those of queries."""
    known = _places(seen)
    queries = {("q", len(seen.shapes["q"]) - 2 if len(seen.shapes["q"]) == 4 else 1)}
    queries |= {("mask", len(seen.shapes.get("mask", ())) - 2)}
    named = {atom: place for atom, place in known.items() if place[:2] not in queries}
    whole = {atom: frozenset(named[a] for a in group if a in named) for group in seen.classes for atom in group}
    free = {atom for atom in named if atom not in seen.frozen}
    result = [field for value in seen.results for field in value.fields if 2 not in axes_of(field)]
    return {
        "together": {whole.get(atom, frozenset([named[atom]])) for atom in free},
        "result": {axes_of(f): [a in seen.frozen or whole.get(a, named.get(a)) for a in f.ravel().tolist()] for f in result},
        "macs": seen.macs(),
    }


@pytest.mark.parametrize("heads", ["whole", "head_dim"])
@pytest.mark.parametrize("name", ATTENDED)
def test_fused_attention_is_what_its_parts_are(name: str, heads: str) -> None:
    """The parts are products and a softmax; the whole freezes the queries' tokens, too."""
    prepare, shapes = ATTENDED[name]
    tensors: dict[str, Any] = {key: torch.randn(shape) for key, shape in shapes.items()}

    def run(attention: Function) -> Seen:
        def function(**given: Tensor) -> Any:
            ready = {key: t if key == "mask" else prepare(t) for key, t in given.items()}
            return attention(ready["q"], ready.get("k", ready.get("x")), ready.get("v", ready.get("x")), ready.get("mask"))

        return observe(function, policy={"heads": heads}, **tensors)

    assert _said(run(_fused)) == _said(run(_in_parts))


def test_fused_attention_of_several_samples() -> None:
    """Samples are shared by all three, as heads are; other results than the first are none that labels go through."""
    given = {"q": torch.randn(2, 3, 5, 4), "k": torch.randn(2, 3, 6, 4), "v": torch.randn(2, 3, 6, 7)}
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    seen = observe(lambda q, k, v: operator(q, k, v), **given)
    axes = [(("q", 0), ("k", 0), ("v", 0)), (("q", 1), ("k", 1), ("v", 1)), (("q", 3), ("k", 3))]
    assert {group for group in seen.classes if not group & seen.frozen} == {pair for each in axes for pair in pairs(seen, *each)}
    assert [axes_of(field) for field in seen.results[0].fields] == [(0,), (1,), (3,)] and not seen.results[1].fields
    assert seen.macs() == 2 * 3 * 5 * 6 * (4 + 7)
    assert [sum(not isinstance(factor, int) for factor in term.factors) for term in seen.trace.macs] == [3, 3]


def test_values_of_one_flat_axis_stay_where_their_places_would_have_to_go() -> None:
    given = {"q": torch.randn(1, 3, 5, 4), "k": torch.randn(1, 3, 6, 4), "v": torch.randn(126)}
    seen = observe(lambda q, k, v: _fused(q, k, v.view(1, 3, 6, 7)), policy={"heads": "head_dim"}, **given)
    assert set(seen.atoms("v", 0)) <= seen.frozen


@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 3, 5, 6)])
def test_a_mask_of_data_per_head_freezes_the_heads_of_fused_attention(shape: tuple[int, ...]) -> None:
    given = {"q": torch.randn(2, 3, 5, 4), "k": torch.randn(2, 3, 6, 4), "v": torch.randn(2, 3, 6, 7)}
    seen = observe(lambda x, q, k, v: _fused(q, k, v, x), x=torch.randn(shape), **given)
    assert seen.frozen >= {atom for name in "qkv" for atom in seen.atoms(name, 1)}
    assert not seen.frozen & {*seen.atoms("q", 0), *seen.atoms("q", 3), *seen.atoms("v", 3)}


def test_a_bilinear_product_ties_each_operand_to_its_axis_of_the_weight() -> None:
    """``out[n, o] = sum_ij x[n, i] w[o, i, j] y[n, j]``."""
    given = {"p": torch.randn(2, 3), "q": torch.randn(2, 4), "w": torch.randn(5, 3, 4)}
    seen = observe(lambda p, q, w: F.bilinear(p, q, w), **given)
    pairs = [(("p", 1), ("w", 1)), (("q", 1), ("w", 2)), (("p", 0), ("q", 0))]
    wanted = {frozenset(pair) for one, other in pairs for pair in zip(seen.atoms(*one), seen.atoms(*other), strict=True)}
    assert seen.classes == wanted and not seen.frozen
    assert seen.result_atoms(1) == seen.atoms("w", 0) and seen.macs() == 2 * 3 * 4 * 5


def test_a_bilinear_product_with_data_counts_their_axes_at_full_size() -> None:
    seen = observe(lambda x, w: F.bilinear(x, x, w), x=torch.randn(2, 3), w=torch.randn(5, 3, 3))
    assert seen.macs() == 2 * 5 * 3 * 3 and seen.result_atoms(1) == seen.atoms("w", 0)


def test_products_of_heads_by_positions() -> None:
    """Keys times values: two axes of positions, which stay apart by policy ``head_dim``; by default heads are shared."""
    given = {"k": torch.randn(6), "v": torch.randn(8)}

    def function(k: Tensor, v: Tensor) -> Tensor:
        return torch.bmm(k.view(2, 3, 1), v.view(2, 1, 4))

    seen = observe(function, **given)
    k, v = seen.atoms("k", 0), seen.atoms("v", 0)
    assert seen.classes == {frozenset([*k[h * 3 : h * 3 + 3], *v[h * 4 : h * 4 + 4]]) for h in range(2)}
    seen = observe(function, policy={"heads": "head_dim"}, **given)
    k, v = seen.atoms("k", 0), seen.atoms("v", 0)
    assert seen.classes == {frozenset(k[i::3]) for i in range(3)} | {frozenset(v[i::4]) for i in range(4)}
    assert not seen.frozen


OFFSETS = torch.tensor([2, 3, 5], dtype=torch.int32)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no products of groups")
def test_rows_times_the_matrix_of_their_expert() -> None:
    """Mixtures of experts: features are tied, rows and columns pass, and experts stay, which are chosen by data."""
    x, w = torch.randn(5, 8, dtype=torch.bfloat16), torch.randn(3, 8, 16, dtype=torch.bfloat16)
    seen = observe(lambda a, w: F.grouped_mm(a, w, offs=OFFSETS), a=x, w=w)
    assert seen.classes == pairs(seen, ("a", 1), ("w", 1))
    assert seen.result_atoms(0) == seen.atoms("a", 0) and seen.result_atoms(1) == seen.atoms("w", 2)
    assert seen.frozen == set(seen.atoms("w", 0)) and seen.reasons(seen.frozen) == {
        "multiplied with the weights of an expert that is chosen by data"
    }
    assert seen.macs() == 5 * 8 * 16


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no products of groups")
def test_products_of_groups_count_features_that_have_no_labels_or_can_shrink() -> None:
    x, w = torch.randn(5, 8, dtype=torch.bfloat16), torch.randn(3, 8, 16, dtype=torch.bfloat16)
    seen = observe(lambda x, w: F.grouped_mm(x, w, offs=OFFSETS), x=x, w=w)
    assert seen.macs() == 5 * 8 * 16 and seen.frozen == {*seen.atoms("w", 0), *seen.atoms("w", 1)}
    seen = observe(lambda a, w: F.grouped_mm(a, w, offs=OFFSETS), a=x, w=w)
    (inner,) = [factor for term in seen.trace.macs for factor in term.factors if not isinstance(factor, int) and factor.size == 8]
    assert all(seen.tied(one, other) for one, other in zip(seen.atoms("a", 1), inner.tolist(), strict=True))


def test_products_of_groups_of_two_dtypes_are_refused() -> None:
    """Those of transformers' operator (here one of its name) are on every device with data; torch's own says so at once."""
    if not hasattr(torch.ops.transformers, "grouped_mm_fallback"):
        torch.library.define("transformers::grouped_mm_fallback", "(Tensor input, Tensor weight, Tensor offs) -> Tensor")
        torch.library.impl("transformers::grouped_mm_fallback", "Meta", lambda a, w, _: a.new_empty(len(a), w.shape[2]))
    product = torch.ops.transformers.grouped_mm_fallback
    with pytest.raises(CaptureError, match=r"bfloat16 and float32, and must be of one dtype"):
        observe(lambda a, w: product(a, w, OFFSETS), a=torch.randn(5, 8).bfloat16(), w=torch.randn(3, 8, 16))


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no products of groups")
def test_other_products_of_groups_are_frozen() -> None:
    ends = torch.tensor([4, 8], dtype=torch.int32)
    seen = observe(lambda a, w: F.grouped_mm(a, w, offs=ends), a=torch.randn(8, 8).bfloat16(), w=torch.randn(8, 8).bfloat16())
    assert seen.frozen >= {atom for name in "aw" for axis in (0, 1) for atom in seen.atoms(name, axis)}
