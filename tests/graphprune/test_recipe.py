"""Recipes: complete ones of all methods load back, changes win in order, and errors name the place and the option."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from graphprune.errors import UsageError
from graphprune.methods import METHODS
from graphprune.recipe import Draft, Recipe, example, parse_setting
from graphprune.training.recipes import RECIPES
from graphprune.training.settings import Training

MINIMAL = """
[method]
name = "iterative"
target = "params=40%"

[model]
source = "torchvision:resnet18"

[data]
source = "digits"

[training]
recipe = "digits"
epochs = 3

[run]
out = "here"
"""


def _load(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return Draft.load(path).checked()


@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_of_every_method_is_complete_and_loads_back(name: str, tmp_path: Path) -> None:
    recipe = example(name)
    text = recipe.to_toml()
    found = tomllib.loads(text)
    for section, values in recipe.tables().items():
        assert found[section] == {key: value for key, value in values.items() if value is not None}
        assert all(f"\n# {key} = \n" in text for key, value in values.items() if value is None)
    assert set(recipe.tables()["method"]) == {"name", *METHODS[name].options.model_fields} - {"epochs"}
    assert _load(tmp_path, text) == recipe


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_recipe_is_described(name: str) -> None:
    recipe = example(name)
    for kind in (type(recipe.options), Training, type(recipe.model), type(recipe.data), type(recipe.run)):
        assert [option for option, about in kind.model_fields.items() if not about.description] == []
        assert [option for option, about in kind.model_fields.items() if "as for prune" in str(about.description).lower()] == []


def test_a_value_that_is_not_the_default_is_written_with_the_default(tmp_path: Path) -> None:
    text = _load(tmp_path, MINIMAL).to_toml()
    assert '# What must remain of the original. Default: "macs=50%".\ntarget = "params=40%"' in text
    assert 'One of: "sgd", "adamw". Default: "sgd".\noptimiser = "adamw"' in text


def test_texts_survive_whatever_they_hold(tmp_path: Path) -> None:
    strange = 'a "b" \\ # [c]\n\t\x7f é 🙂'
    recipe = Draft.load(_written(tmp_path, MINIMAL)).changed("here", {"model": {"source": strange}}).checked()
    assert _load(tmp_path, recipe.to_toml()).model.source == strange


def test_what_stays_of_some_layers_is_a_table_that_loads_back_in_its_order(tmp_path: Path) -> None:
    """Inline or by lines. Without a target there is none then, also when the recipe is read again."""
    inline = MINIMAL.replace('target = "params=40%"', 'keep = {"z.*" = "30%", "*" = 48, \'a "b"\' = 0.5}')
    recipe = _load(tmp_path, inline)
    keep = {"z.*": "30%", "*": 48, 'a "b"': 0.5}
    assert list(recipe.tables()["method"]["keep"].items()) == list(keep.items()) and recipe.tables()["method"]["target"] is None
    again = _load(tmp_path, recipe.to_toml())
    assert again == recipe and list(again.tables()["method"]["keep"]) == list(keep)
    lines = MINIMAL.replace("[training]", '[method.keep]\n"z.*" = "30%"\n\n[training]')
    assert _load(tmp_path, lines).tables()["method"]["keep"] == {"z.*": "30%"}
    assert _load(tmp_path, lines).tables()["method"]["target"] == "params=40%"


def _written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_named_training_is_changed_by_what_is_given_beside_it(tmp_path: Path) -> None:
    recipe = _load(tmp_path, MINIMAL)
    assert recipe.training == RECIPES["digits"].changed(epochs=3)
    assert recipe.options.epochs == 3  # the method goes by the same schedule


def test_later_changes_win_over_earlier_ones_and_over_the_file(tmp_path: Path) -> None:
    draft = Draft.load(_written(tmp_path, MINIMAL))
    draft = draft.changed("command line", {"training": {"epochs": 4, "lr": 0.5}, "run": {"seed": 7}})
    recipe = draft.changed("--set", {"training": {"lr": 0.25}}).checked()
    assert (recipe.training.epochs, recipe.training.lr, recipe.training.optimiser) == (4, 0.25, "adamw")
    assert (recipe.run.seed, str(recipe.run.out)) == (7, "here")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('target = "params=40%"', "rounds = 0", "line 4: [method] rounds = 0: Input should be greater than or equal to 1."),
        ('target = "params=40%"', 'tarket = "x"', "line 4: [method] tarket: There is no option 'tarket'; did you mean 'target'?"),
        ('target = "params=40%"', 'target = "40%"', "line 4: [method] target = \"40%\": Target '40%' has no '='"),
        ('target = "params=40%"', 'criterion = "l9"', "[method] criterion = \"l9\": There is no criterion 'l9'"),
        ('target = "params=40%"', 'select = "rewrite"', "[method]: Pass 'rewrite' does not select by a target"),
        ('target = "params=40%"', "tau = 1", "line 4: [method] tau: no option of iterative; class-aware takes it. Options: "),
        ('target = "params=40%"', "keep = 3", "line 4: [method] keep = 3: what stays of some layers is a table"),
        ('target = "params=40%"', "epochs = 3", "line 4: [method] epochs: the length of the schedule is [training] epochs"),
        ('"iterative"', '"iteratve"', "There is no method 'iteratve'; did you mean 'iterative'?"),
        ('source = "digits"', "workers = 1", "[data] source is missing: digits, FILE.npz"),
        ('recipe = "digits"', 'recipe = "digts"', "There is no training recipe 'digts'"),
        ("epochs = 3", "lr = -1.0", "line 14: [training] lr = -1.0: Input should be greater than 0."),
        ("epochs = 3", "milestones = [3]", "[training]: schedule 'step' needs milestones"),
        ("[run]", "[runs]", "There is no section 'runs'; did you mean 'run'?"),
        ("[run]", "[run", "is not TOML"),
        ("\n[method]", 'seed = 3\n[method]', "seed stands in no section"),
    ],
)  # fmt: skip
def test_errors_name_the_place_and_the_option(old: str, new: str, expected: str, tmp_path: Path) -> None:
    assert MINIMAL.count(old) == 1
    with pytest.raises(UsageError) as caught:
        _load(tmp_path, MINIMAL.replace(old, new))
    assert expected in str(caught.value) and str(caught.value).count("\n") == 0


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read the recipe .*no\.toml: No such file"):
        Draft.load(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tolerance=0.01", ("method", "tolerance", 0.01)),
        ("training.lr = 5e-2", ("training", "lr", 0.05)),
        ("trained=false", ("method", "trained", False)),
        ("criterion=0.5*l2+0.5*taylor", ("method", "criterion", "0.5*l2+0.5*taylor")),
        ("model.exclude=['a.*', \"b\"]", ("model", "exclude", ["a.*", "b"])),
        ("criterion='l2'", ("method", "criterion", "l2")),
        ("criterion=1\nother=2", ("method", "criterion", "1\nother=2")),
        ("target=", ("method", "target", "")),
    ],
)
def test_settings_read_as_toml_does_and_else_as_text(text: str, expected: tuple[str, str, object]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["tolerance", "=3", "a.b.c=3", "training.=3"])
def test_settings_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not NAME=VALUE"):
        parse_setting(text)


def test_recipes_differ_by_what_changes_the_result_alone(tmp_path: Path) -> None:
    draft = Draft.load(_written(tmp_path, MINIMAL))
    recipe = draft.checked()
    elsewhere = draft.changed("", {"run": {"out": "there", "device": "cpu"}, "data": {"workers": 1}}).checked()
    assert recipe.difference(elsewhere) is None
    assert recipe.difference(draft.changed("", {"training": {"lr": 0.5}}).checked()) == "[training] lr = 0.01, and not 0.5"
    other = draft.changed("", {"method": {"name": "sp-lamp"}}).checked()
    assert recipe.difference(other) == '[method] name = "iterative", and not "sp-lamp"'
