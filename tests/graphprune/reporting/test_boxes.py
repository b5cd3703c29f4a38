"""Boxes of the drawing: every layer is in those of its modules, and what is open at first can be taken in."""

from __future__ import annotations

from graphprune.reporting.boxes import boxes, opened
from graphprune.reporting.layers import Layer


def deep(blocks: int) -> dict[str, Layer]:
    """Residual blocks of two layers and an addition, after a stem."""
    found = {"x": Layer("x", "input", "x"), "stem": Layer("stem", "layer", "stem", ["x"])}
    before = "stem"
    for number in range(blocks):
        one, two, joined = f"net.body.{number}.a", f"net.body.{number}.b", f"add_{number}"
        found[one] = Layer(one, "layer", one, [before])
        found[two] = Layer(two, "layer", two, [one])
        found[joined] = Layer(joined, "join", "add", [before, two])
        before = joined
    return found


def seen(around: dict[str, tuple[str, ...]], opened_boxes: list[str]) -> set[str]:
    return {next((box for box in path if box not in opened_boxes), key) for key, path in around.items()}


def test_a_layer_is_in_its_modules_and_a_join_where_the_layer_before_it_is() -> None:
    around = boxes(deep(3))
    assert around["x"] == around["stem"] == ()
    assert around["net.body.1.b"] == around["add_1"] == ("net.body", "net.body.1")  # "net" holds nothing but the body


def test_a_module_of_more_things_than_can_be_seen_comes_in_runs() -> None:
    around = boxes(deep(10), most=6)
    assert around["net.body.0.a"] == ("net.body", "net.body.0 … net.body.3", "net.body.0")
    assert around["add_9"][1] == "net.body.8 … net.body.9"


def test_a_small_model_is_open_and_a_large_one_is_not_in_levels() -> None:
    layers = deep(40)
    around = boxes(layers, most=60)
    assert seen(around, opened(layers, around, most=200)) == around.keys()
    halfway = seen(around, opened(layers, around, most=60))
    assert halfway == {"x", "stem", *(f"net.body.{number}" for number in range(40))}
    assert seen(around, opened(layers, around, most=10)) == {"x", "stem", "net.body"}


def test_densely_connected_layers_stay_in_their_boxes() -> None:
    """Few layers with edges by the square are as hard to see as many layers."""
    names = [f"dense.{block}.{number}" for block in range(2) for number in range(30)]
    layers = {name: Layer(name, "layer", name, names[30 * (at // 30) : at]) for at, name in enumerate(names)}
    around = boxes(layers)
    assert seen(around, opened(layers, around)) == {"dense.0", "dense.1"}
