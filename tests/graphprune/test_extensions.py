"""Entry points of other packages: imported once, and a broken one is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from graphprune import extensions
from graphprune.errors import UsageError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    extensions.load_extensions.cache_clear()
    yield
    extensions.load_extensions.cache_clear()


def _registered(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    (folder / "some_extension.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "some_extension", raising=False)
    monkeypatch.setattr(extensions, "entry_points", lambda group: [EntryPoint("mine", "some_extension", group)])


def test_a_module_is_imported_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _registered(monkeypatch, tmp_path, "import sys\nsys.extension_loads = getattr(sys, 'extension_loads', 0) + 1\n")
    extensions.load_extensions("graphprune.rules")
    extensions.load_extensions("graphprune.rules")
    assert sys.__dict__.pop("extension_loads") == 1


def test_a_broken_module_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _registered(monkeypatch, tmp_path, "undefined_name\n")
    with pytest.raises(UsageError, match=r"mine = some_extension \(graphprune.rules\) cannot be imported: NameError"):
        extensions.load_extensions("graphprune.rules")
