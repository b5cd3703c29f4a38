"""sweep: points of several ways, resumed from the file, drawn; nothing is written on bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]

MODEL = ("graphprune.cli.digits:small_cnn", "--input", "1x1x8x8")


def test_ways_are_compared_and_the_front_is_marked(cli: Cli, folder: Path) -> None:
    ran = cli("sweep", *MODEL, "-o", "front.json", "--way", "global", "--way", "local", "--points", "3", "--least", "0.4", "--json")
    assert ran.code == 0, ran.err
    points = ran.data["points"]
    assert [(p["way"], round(p["asked"], 2)) for p in points] == [(w, s) for s in (0.8, 0.6, 0.4) for w in ("global", "local")]
    assert set(ran.data["best"]) <= set(range(6)) and ran.data["best"]
    assert json.loads((folder / "front.json").read_text())["points"] == points


def test_a_second_run_takes_the_points_that_are_there(cli: Cli, folder: Path) -> None:
    command = ("sweep", *MODEL, "-o", "front.json", "--points", "3", "--json")
    whole = cli(*command).data
    cut = json.loads((folder / "front.json").read_text())
    cut["points"] = cut["points"][:1]
    cut["points"][0]["score"] = 0.123  # taken as it is, not computed anew
    (folder / "front.json").write_text(json.dumps(cut))
    again = cli(*command).data
    assert again["points"][0]["score"] == 0.123 and again["points"][1:] == whole["points"][1:]
    other = cli(*command, "--criterion", "l1")
    assert other.code == 2 and "criterion" in other.err and "another file" in other.err


def test_what_is_kept_holds_at_every_point(cli: Cli, folder: Path) -> None:
    ran = cli("sweep", *MODEL, "-o", "front.json", "--points", "2", "--keep", "block.conv1=25%")
    assert ran.code == 0 and "Kept as asked: block.conv1=25%." in ran.out
    points = json.loads((folder / "front.json").read_text())["points"]
    assert len({point["widths"]["block.conv1"] for point in points}) == 1 and points[0]["widths"] != points[1]["widths"]
    other = cli("sweep", *MODEL, "-o", "front.json", "--points", "2", "--keep", "block.conv1=50%")
    assert other.code == 2 and "another file" in other.err


def test_the_front_is_drawn(cli: Cli, folder: Path) -> None:
    ran = cli("sweep", *MODEL, "-o", "front.json", "--points", "2", "--plot", "front.png")
    assert ran.code == 0 and "score kept" in ran.out
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_writes_nothing(cli: Cli, folder: Path) -> None:
    for wrong in (("--metric", "speed"), ("--way", "best"), ("--points", "0"), ("--plot", "front.gif"), ("--criterion", "l9")):
        ran = cli("sweep", *MODEL, "-o", "front.json", *wrong)
        assert ran.code == 2 and ran.err.count("\n") <= 2, ran.err
        assert not (folder / "front.json").exists()
