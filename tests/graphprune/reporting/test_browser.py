"""Reports in a real browser: they draw, answer to keys, ask nobody for anything, and read without scripts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import graphprune
from graphprune.cli.digits import small_cnn
from graphprune.cli.loading import Request as Source
from graphprune.cli.output import Output
from graphprune.reporting import Page, Request, gather, render, sections_of
from graphprune.reporting.boxes import boxes, opened
from graphprune.reporting.facts import Chart, Section
from tests.graphprune.reporting.conftest import ROUNDS
from tests.graphprune.reporting.test_boxes import deep
from tests.graphprune.reporting.test_page import hostile

Open = Callable[..., Any]
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((path for name in _PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"there is no browser here: none of {', '.join(_PROGRAMS)}")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a chart of every kind; its model, widths and scores are real."""
    folder = tmp_path_factory.mktemp("report")
    result = graphprune.prune(small_cnn(), torch.zeros(1, 1, 8, 8), target="macs=50%")
    graphprune.save(result, folder / "slim.safetensors")
    source = Source("graphprune.cli.digits:small_cnn", shape="1x1x8x8")
    with Output(quiet=True) as output:
        sections = sections_of(gather(Request(folder / "slim.safetensors", source), output))
    points = [{"round": row.number, "status": row.status, "accuracy": row.accuracy, "params": 0.5, "macs": 0.4} for row in ROUNDS]
    heat = {"columns": ["a", "b"], "rows": ["x"], "cells": [[0, 0, 0.5, 1, 2], [1, 0, 1.0, 2, 2]], "title": "Widths"}
    stairs = [{"name": name, "widths": [1, 2, 3], "ms": [1.0, 2.0, 2.5], "kept": 2, "full": 3} for name in "abcd"]
    more = [
        Chart("rounds", "rounds", [{**point, "latency": None, "epochs": 1, "note": ""} for point in points]),
        Chart("fronts", "fronts", {"runs": [{"name": "one", "points": points}, {"name": "two", "points": points[:1]}]}),
        Chart("heatmap", "heatmap", heat),
        Chart("stairs", "stairs", stairs),
    ]
    path = folder / "report.html"
    path.write_text(render(Page("All charts", "", [*sections, Section("more", "More", charts=more)], "")), encoding="utf-8")
    return path


@contextmanager
def loaded(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """The page, of which nothing may complain and which may ask for nothing."""
    options = {"viewport": {"width": 1200, "height": 900}, **options}
    context = browser.new_context(**options)
    page = context.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    page.goto(path.as_uri())
    yield page
    assert heard == []
    context.close()


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_drawn_within_the_page(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    with loaded(browser, page_file, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        kinds = page.eval_on_selector_all(
            "figure.chart", "found => found.filter(f => f.querySelector('svg path')).map(f => f.dataset.kind)"
        )
        assert set(kinds) == {"widths", "importance", "rounds", "fronts", "heatmap", "stairs"}
        assert page.locator(".coupling canvas").count() > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        text = page.locator("figure[data-kind=widths]").inner_text()
        assert "block.conv1" in text and "before" in text


def test_a_layer_is_found_with_keys_alone(browser: Any, page_file: Path) -> None:
    with loaded(browser, page_file) as page:
        page.focus(".coupling input")
        page.keyboard.type("conv2")
        page.keyboard.press("Enter")
        panel = page.locator(".coupling .panel")
        assert "block.conv2" in panel.inner_text() and "Makes group stem" in panel.inner_text()
        page.keyboard.press("Control+A")
        page.keyboard.type("nowhere")
        page.keyboard.press("Enter")
        assert "No such layer" in panel.inner_text()


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coupling of more layers than are drawn at once."""
    layers = deep(120)
    around = boxes(layers)
    nodes = [
        {"id": one.key, "kind": one.kind, "label": one.label, "folded": [], "within": around[one.key], "makes": [0], "reads": []}
        for one in layers.values()
    ]
    edges = [[source, one.key] for one in layers.values() for source in one.sources]
    slices = {one.key: [f"{one.key}.weight[0]"] for one in layers.values() if one.kind == "layer"}
    group = {"name": "stem", "units": 4, "kept": None, "channels": 1, "reason": None, "layers": slices}
    data = {"nodes": nodes, "edges": edges, "groups": [group], "open": opened(layers, around), "closed": True}
    path = tmp_path_factory.mktemp("large") / "large.html"
    section = Section("coupling", "Coupling", charts=[Chart("coupling", "layers", data, 540)])
    path.write_text(render(Page("Large", "", [section], "")), encoding="utf-8")
    return path


def test_a_large_model_is_drawn_as_modules_that_open(browser: Any, large_page: Path) -> None:
    with loaded(browser, large_page) as page:
        panel = page.locator(".coupling .panel")
        page.fill(".coupling input", "net.body.7")
        page.keyboard.press("Enter")
        assert "2 layers" in panel.inner_text() and "net.body.7.b" in panel.inner_text()
        panel.get_by_role("button", name="Open").click()
        panel.get_by_role("button", name="Close").click()
        panel.get_by_role("button", name="Open").wait_for()


def test_a_layer_in_a_closed_module_is_found(browser: Any, large_page: Path) -> None:
    with loaded(browser, large_page) as page:
        panel = page.locator(".coupling .panel")
        page.fill(".coupling input", "net.body.99.a")
        page.keyboard.press("Enter")
        assert "Makes group stem" in panel.inner_text()
        panel.get_by_role("button", name="Up to net.body.99").click()
        panel.get_by_role("button", name="Close").wait_for()
        page.get_by_role("button", name="Modules").click()
        assert "Nothing chosen" in panel.inner_text()


def test_a_group_names_its_layers_and_a_frozen_one_its_reason(browser: Any, page_file: Path) -> None:
    with loaded(browser, page_file) as page:
        select = page.locator(".coupling select")
        select.select_option(label="narrow")
        panel = page.locator(".coupling .panel")
        assert "narrow" in panel.inner_text() and "16 units" in panel.inner_text()
        select.select_option(label="frozen: head")
        assert "output" in panel.locator(".why").inner_text()
        panel.get_by_role("button", name="head").click()
        assert page.locator(".coupling input").input_value() == "head"


def test_the_importance_of_one_group_is_drawn_on_its_own(browser: Any, page_file: Path) -> None:
    with loaded(browser, page_file) as page:
        figure = page.locator("figure[data-kind=importance]")
        before = figure.inner_html()
        figure.locator("select").select_option(label="narrow")
        assert figure.inner_html() != before


def test_the_button_changes_the_colours(browser: Any, page_file: Path) -> None:
    with loaded(browser, page_file, color_scheme="light") as page:
        colour = "getComputedStyle(document.body).backgroundColor"
        light, drawn = page.evaluate(colour), page.locator("figure[data-kind=widths]").inner_html()
        page.get_by_role("button", name="Dark").click()
        assert page.evaluate(colour) != light
        assert page.locator("figure[data-kind=widths]").inner_html() != drawn
        assert page.locator("#theme").get_attribute("aria-pressed") == "true"


def test_the_plan_can_be_saved(browser: Any, page_file: Path, tmp_path: Path) -> None:
    with loaded(browser, page_file, accept_downloads=True) as page:
        page.locator("summary", has_text="plan.json").click()
        with page.expect_download() as found:
            page.get_by_role("button", name="Save plan.json").click()
        found.value.save_as(tmp_path / "plan.json")
    assert graphprune.Plan.load(tmp_path / "plan.json").target == {"macs": "50%"}


def test_without_scripts_the_tables_hold_the_figures(browser: Any, page_file: Path) -> None:
    with loaded(browser, page_file, java_script_enabled=False) as page:
        assert "Every figure is in the tables" in page.locator("main").inner_text()
        assert page.locator(".chart").evaluate_all("found => found.every(f => getComputedStyle(f).display === 'none')") is True
        page.locator("summary", has_text="Widths by layer").click()
        assert page.get_by_role("row", name="block.conv1").first.is_visible()


def test_hostile_names_do_not_run_even_in_a_tooltip(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(render(Page("x", "", [hostile()], "")), encoding="utf-8")
    with loaded(browser, path) as page:
        box = page.locator("figure .plot").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_function("document.querySelector('figure .plot').innerText.includes('1 of 2 stay')")
        assert page.evaluate("window.pwned") is None
        assert page.locator("figure img").count() == 0
