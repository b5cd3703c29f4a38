"""What is shipped: folders, package list, source distribution and wheel agree, and no file is importable under two names."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"graphprune": "graphprune", "graphprune.passes": "passes", "graphprune.kernels": "kernels"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]


def _sources() -> set[str]:
    """Every Python file that we ship, by its path in the wheel."""
    found: set[str] = set()
    for package, folder in FOLDERS.items():
        top = ROOT / folder
        files = (path.relative_to(top) for path in top.rglob("*.py"))
        inside = (file for file in files if not (top / file.parts[0]).is_symlink())
        found |= {f"{package.replace('.', '/')}/{file.as_posix()}" for file in inside}
    return found


@dataclass(frozen=True)
class _Built:
    """A wheel that was built from the source distribution: its file names, and the folder it was unpacked to."""

    names: frozenset[str]
    folder: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> _Built:
    """Built in a copy, because setuptools writes beside the sources, and without network."""
    pytest.importorskip("setuptools", minversion="77")
    work = tmp_path_factory.mktemp("packaging")
    checkout = work / "checkout"
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    for name in FOLDERS.values():
        copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignore_patterns("__pycache__"))
    with tarfile.open(_build("sdist", checkout, work)) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (source,) = (work / "unpacked").iterdir()
    with zipfile.ZipFile(_build("wheel", source, work)) as wheel:
        wheel.extractall(work / "installed")
        return _Built(frozenset(wheel.namelist()), work / "installed")


def _build(kind: str, source: Path, out: Path) -> Path:
    """Call the build backend as a build front end does, in a process of its own."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    run = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return out / run.stdout.splitlines()[-1]


def _python(code: str, cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    prelude = f"import sys; sys.path[:0] = {[str(entry) for entry in path]}; "
    return subprocess.run([sys.executable, "-P", "-c", prelude + code], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_package_list_is_what_the_folders_hold() -> None:
    """A subpackage that is not listed would be left out of the wheel without a word."""
    assert {str(Path(file).parent).replace("/", ".") for file in _sources()} == set(PACKAGES)
    assert len(PACKAGES) == len(set(PACKAGES))


@pytest.mark.parametrize("name", ["passes", "kernels"])
def test_the_links_that_let_a_clone_run_uninstalled_are_there(name: str) -> None:
    link = ROOT / "graphprune" / name
    assert link.is_symlink() and not link.readlink().is_absolute() and link.resolve() == ROOT / name


@pytest.mark.parametrize(("name", "part"), [("passes", "analysis"), ("kernels", "activation_attention")])
def test_nothing_is_importable_under_a_short_name(name: str, part: str) -> None:
    """The same file under two names would be two sets of classes and two registries. The folder itself must not fail: from a
    checkout's top folder, libraries find it where they look for a package of theirs (transformers: ``kernels``)."""
    assert _python(f"import {name}; assert not hasattr({name}, '__version__')", ROOT, ROOT).returncode == 0
    run = _python(f"import {name}.{part}", ROOT, ROOT)
    assert run.returncode == 1
    assert f"ModuleNotFoundError: No module named '{name}.{part}'" in run.stderr


def test_the_wheel_built_from_the_sdist_holds_every_source_and_nothing_else(built: _Built) -> None:
    assert {name for name in built.names if name.endswith(".py")} == _sources()
    assert "graphprune/py.typed" in built.names
    assert {name.split("/")[0] for name in built.names} == {"graphprune", f"graphprune-{PROJECT['project']['version']}.dist-info"}


def test_the_wheel_carries_what_reports_are_made_of(built: _Built) -> None:
    folder = ROOT / "graphprune" / "reporting"
    files = {
        f"graphprune/reporting/{name}/{path.name}"
        for name in ("static", "templates", "vendor")
        for path in (folder / name).iterdir()
    }
    assert len(files) > 15 and files <= built.names


def test_the_wheel_carries_the_licence_and_the_command(built: _Built) -> None:
    (info,) = built.folder.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "graphprune = graphprune.__main__:main" in (info / "entry_points.txt").read_text()


def test_every_package_imports_from_the_wheel(built: _Built) -> None:
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {PACKAGES}]"
    run = _python(code, built.folder.parent, built.folder)
    assert run.returncode == 0, run.stderr
    assert all(Path(line).is_relative_to(built.folder) for line in run.stdout.splitlines())
    assert len(run.stdout.splitlines()) == len(PACKAGES)
