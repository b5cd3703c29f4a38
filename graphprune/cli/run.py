"""``graphprune run``: a method with training, from a model and data to a trained slim model; killed, it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli import options

if TYPE_CHECKING:
    from graphprune.recipe import Draft

_HOW = "How to run"
_RECIPE = ".toml"


def command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="METHOD|RECIPE.toml", help="A method, or a recipe; `graphprune recipe` lists methods and prints recipes."
        ),
    ],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="The model: torchvision:NAME, timm:NAME, transformers:NAME, package.module:factory, FILE.py:factory, "
            "a folder of save_pretrained, or FILE (.safetensors, .pt2, .pt/.pth).",
        ),
    ] = None,
    *,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="What to train on: digits, FILE.npz, torchvision:CLASS:ROOT (such as torchvision:CIFAR10:data), a folder of "
            "images, or package.module:callable.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="The folder of the run. One that holds the same run is gone on with.",
            rich_help_panel="Result",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="KIND=AMOUNT", help="What must remain, as macs=50%; for methods that take one.", rich_help_panel=_HOW),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYERS=AMOUNT",
            help="What stays of these layers in the end: 'layer4.*=30%', layer1.0.conv1=48 (channels); for methods that end at a "
            "target. Repeatable; of two for one layer the later counts. Without --target the others stay whole.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Length of the full training schedule.", rich_help_panel=_HOW)
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A named training; `graphprune recipe` lists them.", rich_help_panel=_HOW),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any option of the recipe: of the method, as tolerance=0.01, or of a section, as training.lr=0.05. Repeatable.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Where models train. Default: auto.", rich_help_panel=_HOW)
    ] = None,
    masks: Annotated[
        bool,
        typer.Option("--masks", help="Train at full shape, with what is removed held at zero.", rich_help_panel=_HOW),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of everything that is drawn. Default: 0.", rich_help_panel=_HOW)
    ] = None,
    exclude: options.Exclude = None,
    scope: options.Scopes = None,
    policy: options.PolicyChoices = None,
    shape: options.Shape = None,
    weights: options.Weights = None,
    trust_pickle: options.TrustPickle = False,
    no_verify: options.NoVerify = False,
    keep_class: options.KeepClass = False,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="png|svg|pdf|none",
            help="Pictures of the rounds and widths. Default: png, if matplotlib is there.",
            rich_help_panel="Result",
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard logs into the folder.", rich_help_panel="Result")
    ] = False,
    screen: options.Screen,
) -> None:
    """Prune a model with training in between, by a method or a recipe. A run that was interrupted goes on with the same command."""
    from graphprune.cli.running import Extras, conduct
    from graphprune.runs import ranks

    chosen: dict[str, dict[str, Any]] = {
        "model": {"source": source, "weights": weights, "input": shape, "trust_pickle": trust_pickle or None, "scopes": scope,
                  "exclude": exclude, "policy": policy, "keep_class": keep_class or None},
        "data": {"source": data},
        "method": {"target": target, "keep": options.kept(keep or ())},
        "training": {"epochs": epochs, "recipe": training},
        "run": {"out": out, "seed": seed, "device": device, "masks": masks or None, "verify": False if no_verify else None},
    }  # fmt: skip
    draft = _draft(what, chosen, settings or [])
    extras = Extras.checked(plot, tensorboard)
    with screen.output(silent=ranks.launched() > 0) as output:
        conduct(draft.checked(), extras, output)


def _draft(what: str, chosen: dict[str, dict[str, Any]], settings: list[str]) -> Draft:
    """The recipe, or that of a method, changed by the options of the command."""
    from graphprune.recipe import Draft, find_method, parse_setting

    if what.endswith(_RECIPE):
        draft = Draft.load(Path(what))
    else:
        find_method(what)
        draft = Draft({"method": {"name": what}})
    given = {name: {key: value for key, value in values.items() if value is not None} for name, values in chosen.items()}
    draft = draft.changed("command line", {name: values for name, values in given.items() if values})
    for text in settings:
        section, option, value = parse_setting(text)
        draft = draft.changed(f"--set {text}", {section: {option: value}})
    return draft
