"""Example inputs from text."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.program import Inputs
from graphprune.sources import Source, example_inputs, parse_input


def test_one_shape_is_one_random_float_tensor() -> None:
    (item,) = parse_input("2x3x64x64")
    assert isinstance(item, torch.Tensor) and item.shape == (2, 3, 64, 64) and item.dtype == torch.float32
    assert abs(item.mean().item()) < 0.05 and abs(item.std().item() - 1) < 0.05


def test_the_seed_decides_the_values_and_the_global_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (parse_input("1x8,1x8", seed=seed) for seed in (1, 1, 2))
    assert isinstance(first, tuple) and isinstance(again, tuple) and isinstance(other, tuple)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0]) and not torch.equal(first[0], first[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_names_make_a_dict() -> None:
    items = parse_input("x:1x3x32x32, y:1x10:float64")
    assert isinstance(items, dict) and list(items) == ["x", "y"]
    assert items["x"].shape == (1, 3, 32, 32) and items["y"].dtype == torch.float64


@pytest.mark.parametrize("name", ["int64", "int32", "uint8", "bool"])
def test_integers_are_zeros_which_index_any_table(name: str) -> None:
    (item,) = parse_input(f"1x128:{name}")
    assert isinstance(item, torch.Tensor) and str(item.dtype) == f"torch.{name}" and not item.any()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_floats_of_other_widths_are_random(name: str) -> None:
    (item,) = parse_input(f"4x4:{name}")
    assert isinstance(item, torch.Tensor) and str(item.dtype) == f"torch.{name}" and item.float().std() > 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is neither a shape nor an argument name"),
        ("1x", "'1x' is neither"),
        ("1,3,", "'' is neither"),
        ("x", "'x' has no shape"),
        ("x:y", "'x:y' has no shape"),
        ("1x3:float7", "'float7' is not a dtype (one of float32,"),
        ("1x3:int64:int64", "'int64:int64' is not a dtype"),
        ("x:1x3,1x4", "some parts have a name and some have none"),
        ("x:1x3,x:1x4", "a name is given twice"),
        ("1x0x3", "the shape 1x0x3 is empty or too large"),
        ("99999x99999x99999", "is empty or too large"),
        ("-1x3", "'-1x3' is neither"),
        ("1x3x224\u00b2", "neither"),
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
    assert list(example_inputs(full, "x:3x3").kwargs) == ["x"]
    assert example_inputs(full) is own
    assert example_inputs(Source(nn.Identity(), "a:b", (1, 4))).args[0].shape == (1, 4)
    with pytest.raises(UsageError, match=r"input shape of a:b is not known\. Give it with --input"):
        example_inputs(Source(nn.Identity(), "a:b"))
