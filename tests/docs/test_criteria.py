"""The page of criteria tells of every one that is registered, and of all of its options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphprune.criteria import criteria_names, find_criterion
from graphprune.passes import scoring

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "criteria.md").read_text(encoding="utf-8")
ROWS = {row[1]: row[0] for row in re.finditer(r"^\| `([\w-]+)` \|.*$", PAGE, re.MULTILINE)}
OWN = [name for name in criteria_names() if find_criterion(name).function.__module__.startswith(scoring.__name__)]


def test_every_criterion_is_in_the_table_and_no_other() -> None:
    assert sorted(ROWS) == OWN


@pytest.mark.parametrize("name", OWN)
def test_options_reductions_and_data_are_those_of_the_code(name: str) -> None:
    criterion = find_criterion(name)
    cells = [cell.strip() for cell in ROWS[name].replace(r"\|", "").split("|")]
    options, reduction, data, source = cells[3], cells[4], cells[5], cells[7]
    assert re.findall(r"`(\w+)` \(", options) == list(criterion.options)
    assert not reduction or reduction.split()[0].strip("`") == criterion.reduction
    needs = criterion.needs(**criterion.options)
    gradients = any(statistic.gradients for statistic in needs)
    measured = bool(needs) or name == "obs"  # which measures for itself
    assert data in (("labelled", "classes") if gradients else ("samples",) if measured else ("none",))
    assert source
