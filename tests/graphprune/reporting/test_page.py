"""The page as HTML: whole, safe, and of use without scripts or sight."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from graphprune.cli import main
from graphprune.reporting import Page, render
from graphprune.reporting.facts import Chart, Missing, Section, Table, Text, Tile
from tests.graphprune.reporting.conftest import MakeRun, Parsed, a_round, parsed

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>\"&"


def page_of(*sections: Section) -> Parsed:
    found = Parsed()
    found.feed(render(Page(HOSTILE, HOSTILE, sections, "")))
    return found


def hostile() -> Section:
    return Section(
        "widths", HOSTILE, HOSTILE,
        tiles=[Tile(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0.5)],
        charts=[Chart("widths", HOSTILE, [{"name": HOSTILE, "before": 2, "after": 1}])],
        tables=[Table(HOSTILE, [HOSTILE, "#" + HOSTILE], [[HOSTILE, HOSTILE]])],
        texts=[Text(HOSTILE, HOSTILE, HOSTILE), Text(HOSTILE, HOSTILE, folded=True)],
        missing=[Missing(HOSTILE, f"`{HOSTILE}`")],
    )  # fmt: skip


def test_text_of_files_is_shown_and_never_becomes_markup() -> None:
    page = page_of(hostile())
    plain = page_of(Section("widths", "", charts=[Chart("widths", "", [])]))
    assert len(page.scripts) == len(plain.scripts)
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert page.data["widths-1"] == [{"name": HOSTILE, "before": 2, "after": 1}]
    assert page.text["widths"].count(HOSTILE) >= 8
    assert page.tables[HOSTILE][1] == [HOSTILE, HOSTILE]


def test_only_the_scripts_of_the_page_may_run() -> None:
    """The policy names each by its hash, so that a script that got in all the same would be refused."""
    page = page_of(hostile())
    (policy,) = (found["content"] for tag, found in page.tags if tag == "meta" and "http-equiv" in found)
    allowed = re.findall(r"'sha256-([^']+)'", str(policy))
    assert allowed == [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    assert "default-src 'none'" in str(policy) and "unsafe-eval" not in str(policy)


def test_nothing_is_asked_of_a_network(make_run: MakeRun, tmp_path: Path) -> None:
    assert main(["report", str(make_run()), "-o", str(tmp_path / "r.html"), "-q"]) == 0
    page = parsed(tmp_path / "r.html")
    addresses = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "action", "data-src")]
    assert {str(address)[0] for address in addresses} <= {"#", "d"} and "data:," in addresses
    assert not any("sourceMappingURL" in script for script in page.scripts)
    assert (tmp_path / "r.html").stat().st_size < 3_000_000


def test_a_page_carries_the_libraries_that_its_charts_need_and_no_others() -> None:
    marks = {"echarts": "Licensed to the Apache Software Foundation", "cytoscape": "The Cytoscape Consortium"}

    def libraries(*kinds: str) -> set[str]:
        text = "".join(page_of(Section("a", "a", charts=[Chart(kind, "", {}) for kind in kinds])).scripts)
        return {name for name, mark in marks.items() if mark in text}

    assert libraries() == set()
    assert libraries("widths") == {"echarts"}
    assert libraries("coupling") == {"cytoscape"}
    assert libraries("coupling", "widths") == {"echarts", "cytoscape"}


def test_every_chart_has_words_and_every_figure_stands_in_a_table(make_run: MakeRun, tmp_path: Path) -> None:
    main(["report", str(make_run()), "-o", str(tmp_path / "r.html"), "-q"])
    page = parsed(tmp_path / "r.html")
    drawings = [found for _, found in page.tags if "plot" in str(found.get("class"))]
    assert len(drawings) >= 3
    assert all(found["role"] == "img" and found["aria-label"] for found in drawings)
    assert page.tables["Rounds"][2][:3] == ["1", "rolled back", "50.00%"]
    assert page.tables["Widths by group"][1] == ["a", "8", "5", "62.5%"]
    assert ("noscript", {}) in page.tags
    assert {found["href"] for tag, found in page.tags if tag == "a"} >= {"#main", "#summary", "#rounds", "#widths"}


@pytest.mark.parametrize("text", ["one ` alone", "a `b` c"])
def test_backticks_mark_code_where_they_pair(text: str) -> None:
    page = page_of(Section("a", "a", missing=[Missing(text, "")]))
    assert any(tag == "code" for tag, _ in page.tags) == (text.count("`") == 2)
    assert text.replace("`", "" if text.count("`") == 2 else "`") in page.text["a"]


def test_options_stay_in_one_piece_and_read_as_they_are_typed() -> None:
    """Lines of a page break after hyphens, unless they are told not to; what is copied from it has to be what is typed."""
    text = "Add --latency FILE, as in `prune a-b --no-measure -o <x>`: a batch-norm -- or 5-3."
    page = page_of(Section("a", "a", missing=[Missing(text, "")]))
    assert [found.get("class") for tag, found in page.tags if tag == "span"].count("option") == 3
    assert text.replace("`", "") in page.text["a"]
    assert ".option { white-space: nowrap; }" in page.text[""]


def test_hostile_names_in_a_run_reach_the_page_as_text(make_run: MakeRun, tmp_path: Path) -> None:
    widths = {HOSTILE: 4, "b": 4}
    run = make_run(rounds=[a_round(0, "dense", 0.9, 10, widths), a_round(1, "final", 0.8, 5, {**widths, "b": 2}, HOSTILE)])
    assert main(["report", str(run), "-o", str(tmp_path / "r.html"), "-q"]) == 0
    page = parsed(tmp_path / "r.html")
    assert not any(tag == "img" for tag, _ in page.tags)
    assert [row[0] for row in page.tables["Widths by group"]] == ["group", HOSTILE, "b"]
