"""The trust page: it says what the records say, and a failure is told until it is mended."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.check import CHECKS
from tests.fuzz.record import FOUND, Failure, Part, Record, read_specs

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "trust"


@pytest.fixture
def bench() -> dict[str, Any]:
    """What the script of the page defines."""
    return runpy.run_path(str(FOLDER / "run.py"))


def record(mended: str) -> dict[str, Any]:
    """Two parts with a failure in the second one, as the file has it."""
    names = {"day": "2026-01-02", "graphprune": "0.1.0", "torch": "2.14.1"}
    parts = [
        Part.model_validate({"first": first, "next": last, "counts": {"networks": last - first, "exported": 2}} | names)
        for first, last in ((0, 1500), (2000, 2010))
    ]
    failures = {2003: Failure(failure="exported: AssertionError: wrong", mended=mended)}
    found: dict[str, Any] = Record(parts=parts, failures=failures).model_dump(mode="json")
    return found | {"failures": {str(seed): failure for seed, failure in found["failures"].items()}}


def test_parts_are_told_one_by_one_and_added_up(bench: dict[str, Any]) -> None:
    found = record("")
    assert bench["totals"](found) == {"networks": 1510, "exported": 4}
    assert bench["parts"](found).splitlines() == [
        "| 0 to 1,499 | 1,500 | 2026-01-02 | 0.1.0 | 2.14.1 | 0 |",
        "| 2,000 to 2,009 | 10 | 2026-01-02 | 0.1.0 | 2.14.1 | 1 |",
    ]
    assert bench["parts"](record("2026-01-03")).splitlines()[1].endswith("| 0, and 1 mended |")


@pytest.mark.parametrize(("mended", "failures"), [("", 1), ("2026-01-03", 0)])
def test_a_failure_counts_against_its_check_until_it_is_mended(bench: dict[str, Any], mended: str, failures: int) -> None:
    (row,) = (row for row in bench["rows"]({}, {}, record(mended), {}) if "`exported`" in row)
    assert row.endswith(f"| 4 networks, {failures} failures |")


def test_the_largest_checkpoint_has_a_row_with_its_peak(bench: dict[str, Any]) -> None:
    runs = {"killed": {"peak": 3 * 10**8}, "resumed": {"peak": 2 * 10**8}}
    row = bench["streamed_row"]({"checkpoint_bytes": 5 * 10**9, "limit_bytes": 10**9, "slim_bytes": 2 * 10**9} | runs)
    assert "may have 1.00 GB" in row and row.endswith("| 5.00 GB cut to 2.00 GB, peak 0.30 GB |")


def test_every_check_of_random_networks_has_a_row(bench: dict[str, Any]) -> None:
    assert {step.run.__name__ for step in CHECKS} == {check for _, check, _, _ in bench["CHECKS"]}


def test_the_record_of_the_page_can_be_added_to_and_what_failed_is_saved() -> None:
    """Where pytest runs it: nothing else could ever mend it."""
    assert set(Record.load(FOLDER / "fuzz.json").failures) <= {spec.seed for spec in read_specs(FOUND)}
