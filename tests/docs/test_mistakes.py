"""docs/mistakes.md: each line that it shows fails, with the message that it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from graphprune.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mistakes.md"
SOURCE = "graphprune.cli.digits:small_cnn"
SECTION = re.compile(r"^## (.+?)\n.*?^```sh\n(.+?)^```\n.*?^```text\n(.+?)^```", re.MULTILINE | re.DOTALL)
MISTAKES = {title: (line, message) for title, line, message in SECTION.findall(PAGE.read_text())}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the lines name."""
    folder = tmp_path_factory.mktemp("mistakes")
    model = torch.nn.Linear(4, 8)
    torch.save(model, folder / "model.pt")
    save_file(model.state_dict(), folder / "other.safetensors")
    pruned = ["prune", SOURCE, "--input", "1x1x8x8", "-q", "--plan", str(folder / "plan.json"), "-o"]
    assert main([*pruned, str(folder / "slim.safetensors")]) == 0
    return folder


def test_the_page_has_the_ten_commonest() -> None:
    assert len(MISTAKES) >= 10 and PAGE.read_text().count("\n## ") == len(MISTAKES)


@pytest.mark.parametrize("title", MISTAKES)
def test_the_line_fails_with_the_message(
    title: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line, message = MISTAKES[title]
    monkeypatch.chdir(files)
    before = sorted(path.name for path in files.iterdir())
    assert main(shlex.split(line)[1:]) in (1, 2)
    said = capsys.readouterr()
    wanted = re.escape(" ".join(message.split())).replace(re.escape("..."), ".+")
    assert re.fullmatch(wanted, said.err.strip()), said.err
    assert said.out == "" and sorted(path.name for path in files.iterdir()) == before
