"""Recipes: everything that a run is made of, as a TOML file of five sections, checked before anything is computed."""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from graphprune.errors import UsageError, unknown
from graphprune.files import read_text, write_whole
from graphprune.methods import METHODS, Method, Options
from graphprune.methods.method import takers
from graphprune.training.recipes import RECIPES, recipe
from graphprune.training.settings import Training

Tables: TypeAlias = Mapping[str, Mapping[str, Any]]
_Section = TypeVar("_Section", bound=BaseModel)

_WIDTH: Final = 100
_EXAMPLE: Final = {"model": {"source": "graphprune.cli.digits:small_cnn"}, "data": {"source": "digits"}}


class Section(BaseModel):
    """A section of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(Section):
    """What is pruned."""

    source: str = Field(description="torchvision:NAME, timm:NAME, package.module:factory, FILE.py:factory, or a file of a model.")
    weights: Path | None = Field(None, description="Weights for the model, a file.")
    input: str | None = Field(None, description="Example inputs, such as 1x3x32x32. Default: one training sample.")
    trust_pickle: bool = Field(False, description="Allow model files whose loading can run any code in them.")
    scopes: tuple[str, ...] = Field((), description="Submodules to prune in place, instead of the whole model.")
    exclude: tuple[str, ...] = Field((), description="Parameters or modules to leave whole, such as layer1.*.")
    policy: tuple[str, ...] = Field(
        (), description="Choices where a tensor can shrink in several ways, such as heads=head_dim; `graphprune passes` lists them."
    )
    keep_class: bool = Field(
        False, description="Prune what the model's own Python code can follow: the slim models that are trained are of its class."
    )


class DataSection(Section):
    """What it is trained on and judged by."""

    source: str = Field(
        description="digits, FILE.npz, torchvision:CLASS:ROOT (such as torchvision:CIFAR10:data), a folder of images, or "
        "package.module:callable."
    )
    prepare: str | None = Field(
        None, description="Normalisation and augmentation: none, cifar or imagenet. Default: as the source suggests."
    )
    validation: float = Field(
        0.1, gt=0, description="Training samples that all decisions go by, set apart: a share, or a number from 1 on."
    )
    samples: int = Field(512, ge=1, description="Training samples for criteria and for batch-norm statistics.")
    workers: int = Field(4, ge=0, description="Processes that read files.")


class RunSection(Section):
    """How it is run."""

    out: Path = Field(description="The folder of the run. One that holds the same run is gone on with.")
    seed: int = Field(0, ge=0, description="Of fresh weights, of the split of the data, of every epoch and every choice.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models train; auto: on a GPU if there is one.")
    verify: bool = Field(True, description="Prove every cut against the masked original.")
    masks: bool = Field(False, description="Train at full shape with what is removed held at zero, not the smaller model.")
    recalibrate: bool = Field(True, description="Estimate batch-norm statistics anew after every cut.")


@dataclass(frozen=True)
class Recipe:
    """A run, checked.

    ``[method]`` has the method's name and its options, except for the length of the schedule, which is ``[training] epochs``.
    """

    method: Method[Any]
    options: Options
    model: ModelSection
    data: DataSection
    training: Training
    run: RunSection

    def tables(self) -> dict[str, dict[str, Any]]:
        """The recipe as plain data, section by section; options without a value are None."""
        options = self.options.model_dump(mode="json", exclude={"epochs"})
        sections = {name: getattr(self, name).model_dump(mode="json") for name in ("model", "data", "training", "run")}
        return {"method": {"name": self.method.name, **options}, **sections}

    def to_toml(self) -> str:
        """The whole recipe as TOML, each option with its description, its choices and its default."""
        return "\n".join(
            _written(name, kind, values) for (name, kind), values in zip(self._kinds(), self.tables().values(), strict=True)
        )

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        write_whole(path, self.to_toml())

    def difference(self, other: Recipe) -> str | None:
        """The first option that makes another run of it, with both values; None where both would go the same way."""
        mine, theirs = self.tables(), other.tables()
        for section, values in mine.items():
            for name in {**values, **theirs[section]}:
                old, new = values.get(name), theirs[section].get(name)
                if (section, name) not in _INDIFFERENT and old != new:
                    return f"[{section}] {name} = {json.dumps(old)}, and not {json.dumps(new)}"
        return None

    def _kinds(self) -> Iterator[tuple[str, type[BaseModel]]]:
        yield "method", type(self.options)
        for name in ("model", "data", "training", "run"):
            yield name, type(getattr(self, name))


_INDIFFERENT: Final = {("run", "out"), ("run", "device"), ("data", "workers")}


@dataclass(frozen=True)
class Draft:
    """What was chosen so far, not checked yet. places: where each option was given, for messages."""

    chosen: Tables = field(default_factory=dict)
    places: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Draft:
        """The draft in a file. Raises UsageError for a file that is no TOML of sections."""
        text = read_text(path, "recipe", UsageError)
        try:
            found = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not TOML: {error}. `graphprune recipe --show METHOD` prints a recipe.") from error
        loose = next((name for name, value in found.items() if not isinstance(value, dict)), None)
        if loose is not None:
            raise UsageError(f"{path}: {loose} stands in no section. Sections are {', '.join(f'[{name}]' for name in SECTIONS)}.")
        return cls(found, {key: f"{path}, line {line}" for key, line in _lines(text)})

    def changed(self, place: str, changes: Tables) -> Draft:
        """The draft with other values for some options, each given at a place, such as the command line."""
        chosen = {name: {**self.chosen.get(name, {}), **changes.get(name, {})} for name in {**self.chosen, **changes}}
        places = {(name, key): place for name, values in changes.items() for key in values}
        return Draft(chosen, {**self.places, **places})

    def checked(self) -> Recipe:
        """The recipe. Raises UsageError naming the place, section and option that is missing, unknown or wrong."""
        for name in self.chosen:
            if name not in SECTIONS:
                raise UsageError(unknown("section", name, SECTIONS, "Sections"))
        options = dict(self.chosen.get("method", {}))
        method = find_method(str(options.pop("name", "")))
        training = self._training()
        if "epochs" in options:
            raise UsageError(f"{self._where('method', 'epochs')}: the length of the schedule is [training] epochs. Give it there.")
        chosen = self._section("method", method.options, {**options, "epochs": training.epochs})
        model, data = self.section("model", ModelSection), self.section("data", DataSection)
        run = self.section("run", RunSection)
        return Recipe(method, chosen, model, data, training, run)

    def section(self, name: str, kind: type[_Section]) -> _Section:
        """One section. Raises UsageError as :meth:`checked` does."""
        return self._section(name, kind, self.chosen.get(name, {}))

    def _training(self) -> Training:
        """``recipe`` names a training that the other options change."""
        options = dict(self.chosen.get("training", {}))
        base = options.pop("recipe", None)
        start = {} if base is None else recipe(str(base)).model_dump()
        return self._section("training", Training, {**start, **options})

    def _section(self, name: str, kind: type[_Section], values: Mapping[str, Any]) -> _Section:
        try:
            return kind.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(self._complaint(name, kind, first["type"], first["loc"], first["msg"])) from error

    def _complaint(self, section: str, kind: type[BaseModel], problem: str, loc: tuple[int | str, ...], message: str) -> str:
        message = message.removeprefix("Value error, ").rstrip(".")
        if not loc:
            return f"[{section}]: {message}."
        option = str(loc[0])
        where = self._where(section, option)
        if problem == "extra_forbidden":
            known = [name for name in kind.model_fields if (section, name) != ("method", "epochs")]
            others = takers(option) if section == "method" else ""
            if others:
                return f"{where}: no option of {self.chosen['method']['name']}{others}. Options: {', '.join(known)}."
            return f"{where}: {unknown('option', option, known, 'Options')}"
        if problem == "missing":
            return f"{where} is missing: {kind.model_fields[option].description}"
        value = json.dumps(self.chosen.get(section, {}).get(option), default=str)
        return f"{where} = {value}: {message}."

    def _where(self, section: str, option: str) -> str:
        place = self.places.get((section, option))
        return f"{place}: [{section}] {option}" if place else f"[{section}] {option}"


#: Sections of a recipe that are the same for all methods, and ``method``.
SECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "method": Options, "model": ModelSection, "data": DataSection, "training": Training, "run": RunSection,
}  # fmt: skip


def find_method(name: str) -> Method[Any]:
    """A method by name. Raises UsageError with the nearest name and the list."""
    if name not in METHODS:
        raise UsageError(unknown("method", name, METHODS, "Methods"))
    return METHODS[name]


def example(method: str) -> Recipe:
    """A complete recipe of a method with its defaults, for the digits of scikit-learn and a model that is trained first.

    >>> example("adaptive").data.source
    'digits'
    """
    training = {"recipe": "digits"}
    chosen: Tables = {
        "method": {"name": method, "trained": False},
        **_EXAMPLE,
        "training": training,
        "run": {"out": f"{method}-run"},
    }
    return Draft(chosen).checked()


def parse_setting(text: str) -> tuple[str, str, Any]:
    """``tolerance=0.01`` or ``training.lr=0.05`` as section, option and value. Raises UsageError for other forms.

    The value reads as TOML does; what is no TOML is text.

    >>> parse_setting("training.milestones=[3, 5]"), parse_setting("target=macs=50%")
    (('training', 'milestones', [3, 5]), ('method', 'target', 'macs=50%'))
    """
    name, equals, value = text.partition("=")
    section, dot, option = name.strip().rpartition(".")
    if not equals or not option or "." in section:
        raise UsageError(f"--set {text} is not NAME=VALUE or SECTION.NAME=VALUE, such as tolerance=0.01 or training.lr=0.05.")
    try:
        found = tomllib.loads(f"value = {value.strip()}")
    except ValueError:
        found = {"value": value.strip()}
    return section if dot else "method", option, found["value"] if len(found) == 1 else value.strip()


# -- writing ---------------------------------------------------------------------------------------------------------------


def _written(name: str, kind: type[BaseModel], values: Mapping[str, Any]) -> str:
    """A section as TOML."""
    lines = [f"[{name}]"]
    if name == "method":
        lines += [*_comment(f"{METHODS[values['name']].summary} Methods: {', '.join(METHODS)}."), f"name = {_toml(values['name'])}"]
    if name == "training":
        lines += _comment(f"recipe = NAME: a named training to start from, of {', '.join(RECIPES)}; what is given here changes it.")
    for option, about in kind.model_fields.items():
        if option not in values:
            continue
        value = values[option]
        lines += ["", *_comment(_about(about, value))]
        lines.append(f"# {option} = " if value is None else f"{option} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _about(about: FieldInfo, value: Any) -> str:
    """Description, choices, and the default where the value is another."""
    text = about.description or ""
    choices = _choices(about.annotation)
    if choices:
        text += f" One of: {', '.join(choices)}."
    default = about.default
    plain = list(default) if isinstance(default, tuple) else default
    if not about.is_required() and default is not None and plain != value:
        text += f" Default: {_toml(plain)}."
    return text.strip()


def _choices(kind: Any) -> list[str]:
    """The values of literal types in an annotation."""
    if get_origin(kind) is Literal:
        return [_toml(value) for value in get_args(kind)]
    parts = [part for part in get_args(kind) if part is not NoneType]
    literal = [choice for part in parts if get_origin(part) is Literal for choice in _choices(part)]
    others = [part.__name__ for part in parts if isinstance(part, type)]
    return [*("a number" if name in ("int", "float") else name for name in others), *literal] if literal else []


def _comment(text: str) -> list[str]:
    return (
        textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False)
        if text
        else []
    )


def _toml(value: Any) -> str:
    """A scalar, a list or a table of scalars as TOML, whose strings, numbers and lists are those of JSON."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _lines(text: str) -> Iterator[tuple[tuple[str, str], int]]:
    """Where the options of plain sections stand, for messages; lines count from 1."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        header, option = re.match(r"\s*\[\s*(\w+)\s*\]", line), re.match(r"\s*([\w-]+)\s*=", line)
        if header:
            section = header[1]
        elif option:
            yield (section, option[1]), number
