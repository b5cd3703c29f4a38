"""What the documentation shows works: its Python blocks run in order, and its ``graphprune`` command lines print what it shows."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.torch import save_file

import graphprune.api  # noqa: F401  (registers the criteria)
from graphprune import criteria, resizers, rules
from graphprune.cli import comparing, digits, main
from graphprune.extensions import load_extensions
from graphprune.latency.copies import Effort
from graphprune.passes.latency import source
from tests.docs.shown import NO_RUN, Shown, shown

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(page for where in ("*.md", "guides/*.md", "methods/*.md") for page in (ROOT / "docs").glob(where)),
]

# What graphprune and installed packages register must be there before a page adds to it.
load_extensions("graphprune.rules")
load_extensions("graphprune.criteria")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_REGISTRIES = (
    (rules, "_RULES"),
    (rules, "_MOVING"),
    (rules, "_KEEPING_SIZES"),
    (resizers, "_MODULES"),
    (resizers, "_CALLS"),
    (criteria, "_CRITERIA"),
)


def blocks(text: str, language: str) -> Iterator[tuple[int, str]]:
    """Line (from 0) and content of the code blocks in a language, those under a no-run mark left out."""
    for match in _FENCE.finditer(text):
        if match[1] == language and not text[: match.start()].rstrip().endswith(NO_RUN):
            yield text[: match.start(2)].count("\n"), match[2]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is gone afterwards."""
    for module, name in _REGISTRIES:
        monkeypatch.setattr(module, name, getattr(module, name).copy())


@pytest.fixture
def _demo_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder that looks as ``graphprune demo`` leaves it, with an untrained model."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "graphprune-demo"
    folder.mkdir()
    save_file(digits.small_cnn().state_dict(), folder / "model.safetensors")
    images = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    labels = np.arange(20) % 10
    np.savez(folder / "digits.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)


@pytest.mark.parametrize("page", PAGES, ids=_name)
@pytest.mark.usefixtures("_registries", "_demo_folder")
def test_python_blocks_run_in_order(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("documentation_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, code in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=_name)
@pytest.mark.usefixtures("_demo_folder")
def test_command_lines_print_what_is_shown(page: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for user in (source, comparing):  # how exact times are is not tested
        monkeypatch.setattr(user, "SURE", Effort(precision=1, turns=1, least=2))
    for block in shown(page.read_text(encoding="utf-8")):
        if block.runs:
            check(block, page, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_long_commands_print_what_is_shown(
    page: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks that are not run above, where the page shows their output, on the trained model of the demo.

    Those that show an error are for the test of mistakes.
    """
    found = [block for block in shown(page.read_text(encoding="utf-8")) if block.output and not block.runs]
    found = [block for block in found if not block.output.startswith("graphprune: error")]
    if not found:
        pytest.skip("there are none")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quiet"]) == 0
    for block in found:
        check(block, page, capfd)


def check(block: Shown, page: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Run the commands of a block and compare what they print."""
    capfd.readouterr()
    printed = ""
    for arguments in block.commands:
        code = main(arguments)
        said = capfd.readouterr()
        assert code == 0, f"{page.name}:{block.line}: graphprune {shlex.join(arguments)}: {said.err}"
        printed += said.out
    missing = block.missing(printed)
    assert missing is None, f"{page.name}:{block.line} shows a line that is not printed: {missing}\n{printed}"


def test_blocks_and_command_lines_are_found() -> None:
    """The negative twin: the patterns above find what is there, and leave out what is marked."""
    assert len(list(blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python"))) >= 1
    tour = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert {words[0] for block in shown(tour) for words in block.commands} >= {"inspect", "prune", "apply", "verify", "passes"}
    assert sum(bool(block.output) for block in shown(tour)) >= 5
    marked = f"{NO_RUN}\n```python\n1 / 0\n```\n\n```python\nx = 1\n```\n"
    assert [code for _, code in blocks(marked, "python")] == ["x = 1\n"]


def test_another_output_than_the_page_shows_is_seen() -> None:
    """The negative twin: words, their order, and numbers that are the same everywhere count; widths and rounding do not."""
    page = (
        "```sh\ngraphprune inspect x \\\n    --input 1x3\n```\n\n```text\n...\nparameters  22,010\n───\nerror 1.2e-07\nlast\n```\n"
    )
    (block,) = shown(page)
    assert block.commands == (("inspect", "x", "--input", "1x3"),) and block.exact and block.runs
    assert block.missing("first\nparameters    22,010\nmore\nerror 3.4e-07\n──\nlast\n") is None
    assert block.missing("parameters 22,011\nerror 1.2e-07\nlast\n") == "parameters  22,010"
    assert block.missing("parameters 22,010\nlast\nerror 1.2e-07\n") == "last"
    (trained,) = shown(page.replace("inspect", "run"))
    assert trained.missing("parameters 5\nerror 1.2e-07\nlast") is None and trained.missing("parameter 5") == "parameters  22,010"


def test_links_between_pages_lead_somewhere() -> None:
    found = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))]
    links = [(page, link) for page, link in found if "://" not in link]
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
