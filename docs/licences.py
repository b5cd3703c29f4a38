"""Write ``docs/licences.md``: the licence of every dependency that ``pyproject.toml`` names, from what is installed.

    pip install -e ".[dev,docs,onnx,quantise,transformers]"
    python docs/licences.py

Stops with a message where one is not installed, or states a licence that is not on the list here.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"

#: Licences that go together with Apache-2.0, by what metadata calls them.
LICENCES = {
    "Apache-2.0": (
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "Apache License",
        "Apache 2.0",
        "Apache 2.0 License",
        "Apache Software License",
    ),
    "BSD-3-Clause": ("BSD-3-Clause", "BSD License", "BSD 3-Clause", "BSD-3", "BSD"),
    "BSD-2-Clause": ("BSD-2-Clause",),
    "MIT": ("MIT", "MIT License"),
    "MPL-2.0": ("MPL-2.0", "Mozilla Public License 2.0"),
    "PSF-2.0": ("PSF-2.0", "Python Software Foundation License", "matplotlib"),
    "ISC": ("ISC",),
    "0BSD": ("0BSD",),
    "BSL-1.0": ("BSL-1.0",),
    "CC0-1.0": ("CC0-1.0",),
    "Zlib": ("Zlib",),
}


#: Packages whose metadata state none, by what their licence files say.
READ = {"torchao": "BSD-3-Clause"}


def normalised(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies() -> dict[str, str]:
    """Packages that ``pyproject.toml`` names, with the extras that ask for them; empty for those that are always installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, list[str]] = {}
    for extra, requirements in groups.items():
        for requirement in requirements:
            name = normalised(re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0])
            if name != project["name"]:
                found.setdefault(name, []).append(extra)
    return {name: "" if "" in extras else ", ".join(extras) for name, extras in sorted(found.items())}


def stated(name: str) -> str:
    """What the installed package calls its licence, first line only. Raises PackageNotFoundError."""
    found = metadata(name)
    classifiers = [text.rpartition(" :: ")[2] for text in found.get_all("Classifier") or () if text.startswith("License ::")]
    texts = [found.get("License-Expression"), *classifiers, found.get("License")]
    return next((text.strip().splitlines()[0] for text in texts if text and text.strip()), "")


def licence(name: str) -> str:
    """The licence of an installed package by its SPDX name. Raises ValueError for one that is not on the list."""
    text = stated(name) or READ.get(name, "")
    known = {each: spdx for spdx, names in LICENCES.items() for each in names}
    whole = next((spdx for each, spdx in known.items() if text == each), "")
    parts = [whole] if whole else [known.get(part.strip("() ")) for part in re.split(r"\s+(?:AND|OR)\s+", text)]
    if None in parts:
        raise ValueError(f"{name} states the licence {text!r}, which is not on the list in {Path(__file__).name}.")
    return ", ".join(dict.fromkeys(filter(None, parts)))


def page() -> str:
    """The page."""
    rows = [f"| {name} | {licence(name)} | {extras or 'always'} |" for name, extras in dependencies().items()]
    return "\n".join(
        [
            "# Licences of the dependencies",
            "",
            "graphprune is under Apache-2.0. These are the licences that the packages in `pyproject.toml` state, written by",
            "`licences.py` beside this page. They install others in turn: on Linux torch installs NVIDIA's libraries, which are",
            "not open source.",
            "",
            "| package | licence | installed with |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Write it."""
    try:
        PAGE.write_text(page(), encoding="utf-8")
    except PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed. Install all extras, as this file says.") from error
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
