"""Options that several commands share: types of single ones, and sets of those that go together.

A command takes a set as one argument; :func:`graphprune.cli.expanding.expanded` makes of it the options that typer sees. An option
that is only ever taken with its set stands there; others have a type of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from graphprune.cli.output import Output
from graphprune.errors import UsageError

PLAN_FILE = "A plan (.json), or a slim model that holds its plan (.safetensors, .pt2)."

_MODEL = "Model"
_SCREEN = "Output"
_RESULT = "Result"
_WATCH = "Watching"
_ACCURACY = "Accuracy"
_CALIBRATION = "Calibration"
_HOW = "How to prune"
_TRY = "What to try"
_MEASURE = "How to measure"


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            number = version("graphprune")
        except PackageNotFoundError:  # a source tree that is not installed
            from graphprune import __version__ as number
        typer.echo(f"graphprune {number}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")]

SourceText = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="torchvision:NAME, timm:NAME, transformers:NAME, package.module:factory or FILE.py:factory, with arguments as in "
        "'torchvision:resnet18(num_classes=10)'; or a folder of save_pretrained; or FILE (.safetensors artifact, .pt2 program, "
        ".pt/.pth module, config.json of transformers).",
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="TEXT",
        help="Example inputs, as the forward takes them: 1x3x224x224 for a tensor, [3x320x300,3x300x280] for a list of images, "
        "ids=1x10:int64,mask=1x10:int64:1 for keywords and integers (zeros, or what is named last). "
        "Default: the source's usual ones.",
        rich_help_panel=_MODEL,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Weights for the model: .safetensors, or .pt/.pth/.th/.bin of torch.save.", rich_help_panel=_MODEL
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option("--trust-pickle", help="Allow model files whose loading can run any code in them.", rich_help_panel=_MODEL),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", help="Seed of fresh weights, random inputs and random criteria.", rich_help_panel=_MODEL),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Where the slim model goes: .safetensors (loads without code or pickle) or .pt2 (torch.export, "
        "for the example's sizes alone).",
        rich_help_panel=_RESULT,
    ),
]
OutOrPlan = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Where the result goes: .safetensors (loads without code or pickle), .pt2 (torch.export, for "
        "the example's sizes alone), or .json (the plan alone).",
        rich_help_panel=_RESULT,
    ),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Skip the proof against the masked original.", rich_help_panel=_RESULT)]
KeepClass = Annotated[
    bool,
    typer.Option(
        "--keep-class",
        help="Prune what the model's own Python code can follow: the file then also loads into its class, with "
        "`graphprune.load(FILE, model)`.",
        rich_help_panel=_RESULT,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN", help="Parameters or modules to leave whole, as in 'layer1.*'. Repeatable.", rich_help_panel=_MODEL
    ),
]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        metavar="NAME",
        help="A submodule to prune in place, instead of the whole model. Repeatable. Default: the whole, or what of it traces.",
        rich_help_panel=_MODEL,
    ),
]
PolicyChoices = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=CHOICE",
        help="A choice where a tensor can shrink in several ways; `graphprune passes` lists them. Repeatable.",
        rich_help_panel=_MODEL,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B", help="Per-channel mean to subtract from the images of --data and --calibrate.", rich_help_panel=_ACCURACY
    ),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Per-channel deviation to divide these images by.", rich_help_panel=_ACCURACY),
]
Device = Annotated[
    str,
    typer.Option(metavar="cpu|cuda", help="The device that computes: the model and its data go there.", rich_help_panel=_MODEL),
]
Pattern = Annotated[
    str | None, typer.Option("--pattern", metavar="PATTERN", help="Show groups of this name only, as in 'layer1.*'.")
]
PlanCopy = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan here too.", rich_help_panel=_RESULT)]
Points = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FILE.json", help="Where the points go. A run that was interrupted goes on from there."),
]
LikeScore = Annotated[
    str,
    typer.Option("--criterion", metavar="TEXT", help="Importance of a channel, as in `graphprune score`.", rich_help_panel=_TRY),
]
Measured = Annotated[
    str,
    typer.Option("--device", metavar="cpu|cuda", help="The device to measure on, as busy as it is.", rich_help_panel=_MEASURE),
]
Latency = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The model's latency table, of `graphprune profile`, for targets on latency. Default: it is measured first.",
        rich_help_panel=_HOW,
    ),
]
NoMeasure = Annotated[
    bool,
    typer.Option(
        "--no-measure",
        help="Meet targets on latency by the table alone, which may be of another machine; do not time slim models here.",
        rich_help_panel=_HOW,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Model:
    """How a model is loaded, and what it is given."""

    shape: Shape = None
    weights: Weights = None
    trust_pickle: TrustPickle = False
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be pruned."""

    exclude: Exclude = None
    scopes: Scopes = None
    policy: PolicyChoices = None

    def constraints(self) -> dict[str, Any]:
        """``exclude`` and ``policy`` as a program takes them. Raises UsageError for policies that do not exist."""
        from graphprune.cli.loading import parse_policy

        return {"exclude": tuple(self.exclude or ()), "policy": parse_policy(self.policy)}


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How images are scaled."""

    mean: Mean = None
    std: Std = None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Images to measure the accuracy on, and how they are scaled."""

    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Labelled images (x_test and y_test, or x and y; uint8 is divided by 255): prints the top-1 accuracy.",
            rich_help_panel=_ACCURACY,
        ),
    ] = None
    mean: Mean = None
    std: Std = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Data for criteria and compensation."""

    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Data for criteria that look at activations or gradients, and for compensation: FILE.npz (x_train and y_train, "
            "or x and y), a folder of images for each class, package.module:callable that returns batches, or 'synthetic' for data "
            "made from the model's batch-norm statistics.",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None
    samples: Annotated[
        int,
        typer.Option(metavar="N", help="Samples of --calibrate to use at most.", rich_help_panel=_CALIBRATION),
    ] = 512


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How channels are scored, and which of them go."""

    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=AMOUNT",
            help="What must remain: macs=50%, params=2M, channels=0.5, latency=3.2ms, weight_bytes=20MB, memory=30MiB (peak "
            "activations). Repeatable. Default: macs=50%, and none with --keep.",
            rich_help_panel=_HOW,
        ),
    ] = None
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYERS=AMOUNT",
            help="What stays of these layers, whatever the target: 'layer4.*=30%', layer1.0.conv1=48 (channels). Repeatable; of "
            "two for one layer the later counts. Without --target the others stay whole.",
            rich_help_panel=_HOW,
        ),
    ] = None
    criterion: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Importance of a channel: a name that `graphprune passes` lists, with options as in 'attention(p=2)', or a "
            "weighted sum as in '0.5*l2+0.5*taylor'. Default: l2.",
            rich_help_panel=_HOW,
        ),
    ] = None
    reduction: Annotated[
        str | None,
        typer.Option(
            metavar="sum|mean|max|l2", help="How coupled slices combine. Default: as suits the criterion.", rich_help_panel=_HOW
        ),
    ] = None
    normalise: Annotated[
        str | None,
        typer.Option(metavar="none|mean|max|gaussian", help="Scale within each group. Default: max.", rich_help_panel=_HOW),
    ] = None
    share: Annotated[
        str | None,
        typer.Option(
            metavar="none|params|macs", help="Divide scores by the group's share of these. Default: none.", rich_help_panel=_HOW
        ),
    ] = None
    select: Annotated[
        str | None,
        typer.Option(
            metavar="PASS",
            help="The pass that chooses what goes: select, knapsack, greedy or threshold. Default: select.",
            rich_help_panel=_HOW,
        ),
    ] = None
    ranking: Annotated[
        str | None,
        typer.Option(metavar="global|local|isomorphic", help="What is compared with what. Default: global.", rich_help_panel=_HOW),
    ] = None
    round_to: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Keep channels in multiples of N where a group is wide enough; 'auto': at widths where the latency steps.",
            rich_help_panel=_HOW,
        ),
    ] = None
    min_channels: Annotated[
        int | None, typer.Option(metavar="N", help="Units that every group keeps at least.", rich_help_panel=_HOW)
    ] = None
    max_ratio: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Largest share of a group that may go, as 0.8.", rich_help_panel=_HOW)
    ] = None

    def arguments(self) -> dict[str, Any]:
        """As :func:`graphprune.prune` takes them; None for what was not given. Raises UsageError for what cannot be read."""
        given = {"target": _targets(self.target or ()), "keep": kept(self.keep or ()), "round_to": _multiple(self.round_to)}
        return vars(self) | given


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is shown of a pipeline while it runs."""

    time_passes: Annotated[bool, typer.Option("--time-passes", help="Print the time of each pass.", rich_help_panel=_WATCH)] = False
    print_after: Annotated[
        str | None,
        typer.Option(metavar="PASS|all|changed", help="Print the graph after passes, on standard error.", rich_help_panel=_WATCH),
    ] = None
    dump_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the graph and the plan after every pass here.", rich_help_panel=_WATCH),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What is printed; ``--debug`` is seen to where errors are answered."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable result on standard output, and nothing else.", rich_help_panel=_SCREEN)
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=_SCREEN)] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more.", rich_help_panel=_SCREEN)] = False
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.", rich_help_panel=_SCREEN)] = False

    def output(self, silent: bool = False) -> Output:
        """Where the command prints. silent: errors only, as for all but the first of several processes."""
        return Output(self.as_json, self.quiet or silent, self.verbose)


def _multiple(text: str | None) -> int | Literal["auto"] | None:
    """What ``--round-to`` says."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if text.removeprefix("-").isdecimal():
        return int(text)
    raise UsageError(f"--round-to {text} is neither a number of channels nor 'auto'.")


def kept(texts: Sequence[str]) -> dict[str, str] | None:
    """Amounts by pattern from ``pattern=amount``."""
    found: dict[str, str] = {}
    for text in texts:
        pattern, equals, amount = text.rpartition("=")
        if not (equals and pattern and amount):
            raise UsageError(f"--keep {text!r} does not say what stays of what. Write it as LAYERS=AMOUNT, as in 'layer4.*=30%'.")
        found.pop(pattern, None)  # the later counts, also against patterns between the two
        found[pattern] = amount
    return found or None


def _targets(texts: Sequence[str]) -> dict[str, str] | None:
    """Targets from ``kind=amount``."""
    from graphprune.passes.selection.target import split_target

    if not texts:
        return None
    pairs = [split_target(text) for text in texts]
    for kind, _ in pairs:
        if sum(kind == other for other, _ in pairs) > 1:
            raise UsageError(f"--target {kind} is given twice. Give each kind of target once.")
    return dict(pairs)
