"""The search for a config, on models of a line."""

from __future__ import annotations

from graphprune.streaming.configs import Config, Search, Shapes


def _shapes(config: Config) -> Shapes:
    """A layer, and what it has more than four units of."""
    return {"layer": (config["width"], 3), "bias": (config["width"],), "rest": (max(0, config["width"] - 4),)}


def _agrees(config: Config) -> str:
    return ""


def test_a_number_that_says_what_is_left_is_found() -> None:
    fit = Search({"width": 12, "layers": 7}, _shapes, _agrees).run({"layer": (6, 3), "bias": (6,), "rest": (2,)})
    assert fit.config == {"width": 6, "layers": 7} and fit.changes == {"width": (12, 6)}


def test_an_axis_without_elements_is_no_ratio() -> None:
    """Half of the width leaves nothing of the rest, of which the plan keeps all."""
    fit = Search({"width": 8}, _shapes, _agrees).run({"layer": (4, 3), "bias": (4,), "rest": (4,)})
    assert fit.config is None and "rest is [4]" in fit.reason
