"""Example inputs from text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.ir.program import Inputs
from graphprune.sources import Source, example_inputs, parse_input


def _one(text: str) -> torch.Tensor:
    (item,) = parse_input(text).args
    assert isinstance(item, torch.Tensor)
    return item


def _shapes(tree: Any) -> Any:
    return [_shapes(item) for item in tree] if isinstance(tree, (list, tuple)) else list(tree.shape)


def test_one_shape_is_one_random_float_tensor() -> None:
    item = _one("2x3x64x64")
    assert item.shape == (2, 3, 64, 64) and item.dtype == torch.float32
    assert abs(item.mean().item()) < 0.05 and abs(item.std().item() - 1) < 0.05


def test_the_seed_decides_the_values_and_the_global_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (parse_input("1x8,1x8", seed=seed).args for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0]) and not torch.equal(first[0], first[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_names_make_keyword_arguments_behind_positional_ones() -> None:
    found = parse_input("1x4, x=1x3x32x32 ,y = 1x10:float64")
    assert _shapes(found.args) == [[1, 4]] and list(found.kwargs) == ["x", "y"]
    assert found.kwargs["x"].shape == (1, 3, 32, 32) and found.kwargs["y"].dtype == torch.float64


def test_brackets_make_lists_of_tensors() -> None:
    """As detectors take images of several sizes; lists nest, and stand beside other arguments."""
    (images,) = parse_input("[3x32x30, 3x30x28]").args
    assert isinstance(images, list) and _shapes(images) == [[3, 32, 30], [3, 30, 28]]
    found = parse_input("1x4,[3x8x8],pair=[[2],[3x1:int64]]")
    assert _shapes(found.args) == [[1, 4], [[3, 8, 8]]] and _shapes(found.kwargs["pair"]) == [[[2]], [[3, 1]]]


def test_options_of_the_forward_are_no_tensors() -> None:
    assert dict(parse_input("1x4,cache=False,mask=None,full=True").kwargs) == {"cache": False, "mask": None, "full": True}


@pytest.mark.parametrize("name", ["int64", "int32", "uint8", "bool"])
def test_integers_are_zeros_which_index_any_table(name: str) -> None:
    item = _one(f"1x128:{name}")
    assert str(item.dtype) == f"torch.{name}" and not item.any()


@pytest.mark.parametrize(
    ("text", "value"), [("2x5:int64:1", 1), ("4:float32:0.5", 0.5), ("3:float64:-2e1", -20.0), ("3:bool:1", True)]
)
def test_a_fill_is_the_value_of_every_element(text: str, value: float) -> None:
    item = _one(text)
    assert (item == value).all() and str(item.dtype) == f"torch.{text.split(':')[1]}"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_floats_of_other_widths_are_random(name: str) -> None:
    item = _one(f"4x4:{name}")
    assert str(item.dtype) == f"torch.{name}" and item.float().std() > 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is no shape"),
        ("1x", "'1x' is no shape"),
        ("1,3,", "'' is no shape"),
        ("x", "'x' is no shape"),
        ("x:1x3", "'x' is no shape"),
        ("x=", "'' is no shape"),
        ("x=y", "'y' is no shape"),
        ("2x=1x3", "'2x' is no argument name"),
        ("1x3:float7", "'float7' is not a dtype (one of float32,"),
        ("1x3:int64:int64", "'int64' is no number to fill"),
        ("1x3:int64:1:2", "'1:2' is no number to fill"),
        ("1x3:float32:nan", "'nan' is no number to fill"),
        ("x=1x3,1x4", "'1x4' has no name and follows one that has"),
        ("x=1x3,x=1x4", "the name x is given twice"),
        ("[1x3", "its brackets do not match"),
        ("1x3]", "its brackets do not match"),
        ("[1x3]]", "its brackets do not match"),
        ("[]", "'' is no shape"),
        ("[x=1x3]", "'[x' is no argument name"),
        ("true", "'true' is no shape"),
        ("1x0x3", "the shape 1x0x3 is empty or too large"),
        ("99999x99999x99999", "is empty or too large"),
        ("-1x3", "'-1x3' is no shape"),
        ("1x3x224\u00b2", "no shape"),
    ],
)
def test_bad_text_says_why_and_shows_the_form(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    assert why in str(caught.value) and "Write it as 1x3x224x224" in str(caught.value)


def test_a_source_is_asked_in_order_text_own_inputs_usual_shape() -> None:
    own = Inputs((torch.zeros(1, 2),))
    full = Source(nn.Identity(), "a:b", (1, 4), own)
    assert example_inputs(full, "3x3").args[0].shape == (3, 3)
    assert list(example_inputs(full, "x=3x3").kwargs) == ["x"]
    assert example_inputs(full) is own
    assert example_inputs(Source(nn.Identity(), "a:b", (1, 4))).args[0].shape == (1, 4)
    with pytest.raises(UsageError, match=r"input shape of a:b is not known\. Give it with --input"):
        example_inputs(Source(nn.Identity(), "a:b"))
