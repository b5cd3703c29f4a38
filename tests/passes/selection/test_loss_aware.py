"""The loss-aware pass makes the choices of the plain algorithm, which rewrites and evaluates every candidate."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.calibration import Batch, Calibration, default_loss
from graphprune.errors import PipelineError, TargetError, UsageError
from graphprune.ir.program import Program
from graphprune.passes.selection.loss_aware import LossAwarePass
from graphprune.passes.selection.trials.layers import least_widths, step_sizes
from graphprune.pipeline.pass_manager import PassManager
from graphprune.pipeline.text import format_pipeline, parse_pipeline
from graphprune.tracing import normalise_inputs
from tests.checking import analyse, run, state_hash
from tests.passes.selection.asking import IMAGE, residual
from tests.passes.selection.plain import mean_loss, plainly
from tests.passes.selection.trials.test_silence import loss
from tests.zoo.case import conv, net, pooled
from tests.zoo.test_zoo import subject


def varied() -> nn.Module:
    """Batch norms, a residual sum, a depthwise layer, activations with f(0) != 0, and a shortcut padded with zeros."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.hardswish(self.depthwise(torch.sigmoid(self.a(x))))
        x = F.gelu(x + self.b_norm(self.b(y)))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return pooled(self.head, F.relu(self.c(x) + short))

    torch.manual_seed(4)
    parts = {"stem": conv(3, 6, bias=False), "stem_norm": nn.BatchNorm2d(6), "a": conv(6, 5), "depthwise": conv(5, 5, groups=5)}
    parts |= {"b": conv(5, 6, bias=False), "b_norm": nn.BatchNorm2d(6), "c": conv(6, 10, stride=2), "head": nn.Linear(10, 3)}
    return net(forward, **parts)


def labelled(batches: int = 3, size: int = 8, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(7)
    return [(torch.randn(size, 3, 8, 8, dtype=torch.float64), torch.randint(0, classes, (size,))) for _ in range(batches)]


def program_of(model: nn.Module, data: Any, **options: Any) -> Program:
    return graphprune.capture(model, IMAGE).with_(calibration=Calibration(data, **options))


def cut(program: Program, options: str) -> Program:
    return PassManager(parse_pipeline(f"channels,loss-aware{{{options}}},rewrite,verify")).run(program)


def steps_of(program: Program) -> list[dict[str, Any]]:
    assert program.plan is not None
    record = program.plan.scores["loss-aware"]
    return [json.loads(text) for name, text in record.items() if name.startswith("step ")]


def work_of(program: Program) -> dict[str, float]:
    assert program.plan is not None
    found: dict[str, float] = json.loads(program.plan.scores["loss-aware"]["work"])
    return found


@pytest.mark.parametrize(("build", "objective"), [(varied, "loss"), (residual, "loss"), (varied, "loss-per-mac")])
def test_it_makes_the_choices_of_the_plain_algorithm(build: Callable[[], nn.Module], objective: str) -> None:
    """Layers, criteria and losses of every step, and the weights that are left."""
    model, data = build(), labelled(classes=2)
    program = program_of(model, data)
    steps, floors = step_sizes(program, 6.0), least_widths(program, 0.75)
    done, slim = plainly(model, data, 0.75, steps, floors, objective == "loss-per-mac")
    found = cut(program, f"macs=75%,step=6,objective={objective}")
    assert [(s["layer"], s["criterion"]) for s in steps_of(found)] == [(layer, criterion) for layer, criterion, _ in done]
    assert [s["loss"] for s in steps_of(found)] == pytest.approx([loss for _, _, loss in done], rel=1e-10)
    assert len(done) > 2 and len({layer for layer, _, _ in done}) > 1
    mine, plain = found.module.state_dict(), slim.state_dict()
    assert mine.keys() == plain.keys() and all(torch.equal(mine[key], plain[key]) for key in mine)


def test_dropping_cuts_early_changes_nothing_but_the_work() -> None:
    """A loss that is not known to be at least 0 is run to the end."""
    data = labelled(batches=6)
    quick = cut(program_of(varied(), data), "macs=80%,step=4")
    slow = cut(program_of(varied(), data, loss=lambda output, target: default_loss(output, target)), "macs=80%,step=4")
    assert quick.plan is not None and slow.plan is not None and quick.plan.kept == slow.plan.kept
    for one, other in zip(steps_of(quick), steps_of(slow), strict=True):
        assert one | {"loss": 0, "before": 0} == other | {"loss": 0, "before": 0}
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-10)
    assert work_of(slow)["abandoned"] == 0
    assert work_of(quick)["trials"] == work_of(slow)["trials"] < work_of(slow)["candidates"]
    assert work_of(slow)["forwards"] < work_of(slow)["trials"] * 48


# -- planted criteria --------------------------------------------------------------------------------------------------------


def planted() -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """Layer a: filters 1 and 4 are large, equal, and cancel each other; filter 2 is small and matters. Targets: its outputs."""

    def forward(self: Any, x: Tensor) -> Any:
        return pooled(self.head, self.b(F.relu(self.a(x))))

    torch.manual_seed(5)
    model: Any = net(forward, a=conv(3, 6), b=conv(6, 4, 1), head=nn.Linear(4, 3))
    with torch.no_grad():
        model.a.weight[1] *= 4
        model.a.weight[4], model.a.bias[4] = model.a.weight[1], model.a.bias[1]
        model.b.weight[:, 4] = -model.b.weight[:, 1]
        model.a.weight[2] *= 0.3
        model.b.weight[:, 2] *= 30
        inputs = torch.randn(8, 3, 8, 8, dtype=torch.float64)
        return model, [(inputs, model(inputs))]


def test_filters_that_replace_each_other_are_found_by_similarity() -> None:
    model, data = planted()
    found = cut(program_of(model, data), "macs=90%,steps=[a=2;b=1],floors=[a=1;b=4]")
    (step,) = steps_of(found)
    assert step["criterion"] in ("euclidean", "cosine") and step["units"] == [1, 4] and step["loss"] < 1e-20
    only_norms = cut(program_of(model, data), "macs=90%,steps=[a=2;b=1],floors=[a=1;b=4],criteria=[l1;l2]")
    assert 2 in steps_of(only_norms)[0]["units"] and steps_of(only_norms)[0]["loss"] > 1e-3


def test_a_tiny_filter_is_found_by_its_norm() -> None:
    model, data = planted()
    with torch.no_grad():
        model.a.weight[3] *= 1e-4
        model.a.bias[3] *= 1e-4
        data = [(data[0][0], model(data[0][0]))]
    found = cut(program_of(model, data), "macs=90%,steps=[a=1;b=1],floors=[a=1;b=4]")
    (step,) = steps_of(found)
    assert step["criterion"] == "l1" and step["units"] == [3]
    similar = cut(program_of(model, data), "macs=90%,steps=[a=1;b=1],floors=[a=1;b=4],criteria=[cosine]")
    assert steps_of(similar)[0]["units"] != [3] and steps_of(similar)[0]["loss"] > 10 * step["loss"]


# -- options -----------------------------------------------------------------------------------------------------------------


def test_the_target_is_exceeded_by_less_than_a_step_and_floors_hold() -> None:
    program = program_of(residual(), labelled(classes=2))
    found = cut(program, "macs=45%,step=5,max_ratio=0.6")
    left = [step["macs"] for step in steps_of(found)]
    assert left[-1] <= 0.45 < left[-2] and found.plan is not None and found.plan.achieved["macs"] == round(left[-1], 6)
    assert found.record is not None
    assert all(after >= before - int(0.6 * before) for before, after in found.record.widths.values())
    assert min(before - after for before, after in found.record.widths.values()) > 0


def test_an_amount_is_a_target_too_and_one_that_is_met_needs_no_step() -> None:
    program = program_of(residual(), labelled(classes=2))
    share = cut(program, "macs=80%,step=5")
    assert share.record is not None and share.plan is not None
    amount = cut(program, f"macs={int(0.8 * share.record.before.macs)},step=5")
    assert amount.plan is not None and amount.plan.kept == share.plan.kept
    nothing = cut(program, "macs=100%")
    assert nothing.plan is not None and not nothing.plan.kept and not steps_of(nothing)


def test_the_highest_floor_of_a_group_holds_for_all_of_its_layers() -> None:
    program = program_of(residual(), labelled(classes=2))
    floors = {**least_widths(program, 0.9), "b": 11}
    text = ";".join(f"{name}={width}" for name, width in floors.items())
    found = cut(program, f"macs=40%,step=5,floors=[{text}]")
    assert found.record is not None and found.record.widths["stem"][1] >= 11


def test_steps_are_those_of_the_dense_model_when_it_is_cut_again_and_again() -> None:
    """Two calls with the first program's steps and floors end where one call does."""
    data = labelled(classes=2)
    program = program_of(residual(), data)
    numbers = {"steps": step_sizes(program, 5.0), "floors": least_widths(program)}
    whole = cut(program, "macs=70%,step=5")
    assert whole.record is not None
    mine = program
    for share in (0.85, 0.7):
        passes = [LossAwarePass(macs=str(int(share * whole.record.before.macs)), **numbers), *parse_pipeline("rewrite")]  # type: ignore[arg-type]
        mine = PassManager(passes).run(mine)
    assert all(torch.equal(one, two) for one, two in zip(mine.module.parameters(), whole.module.parameters(), strict=True))


def test_step_sizes_are_those_of_about_one_percent() -> None:
    program = program_of(residual(), labelled())
    found = analyse(residual(), IMAGE)
    cost = graphprune.costs.cost.CostModel(found.program, found.groups).macs
    for group in found.groups.prunable:
        one = found.groups.widths - np.eye(len(found.groups.prunable), dtype=np.int64)[group.index]
        percent = 100 * (1 - cost(one) / cost(found.groups.widths))
        assert step_sizes(program, 8.0)[group.name] == max(1, int(8.0 / percent + 0.5))
    assert least_widths(program, 0.75) == {"stem": 3, "b": 3, "a": 3, "c": 4, "d": 4}


def test_a_group_is_ranked_as_a_whole_if_asked() -> None:
    program = program_of(residual(), labelled(classes=2))
    found = cut(program, "macs=99%,step=8,scope=group,criteria=[l2]")
    scored = PassManager(parse_pipeline("channels,score{criterion=l2,normalise=none}")).run(program)
    groups = analyse(residual(), IMAGE).groups
    (step,) = steps_of(found)
    group = next(g for g in groups.prunable if g.name == step["layer"])
    values = scored.scores["l2"].values[group.units]
    assert step["units"] == sorted(np.argsort(values)[: len(step["units"])].tolist())


@pytest.mark.parametrize(
    "criterion", ["attention(p=2)", "taylor", "fpgm", "random", '"0.5*l1+0.5*cosine"', '"taylor(form=weight)"']
)
@pytest.mark.parametrize("scope", ["layer", "group"])
def test_any_criterion_can_be_in_the_pool(criterion: str, scope: str) -> None:
    found = cut(program_of(varied(), labelled()), f"macs=95%,step=4,scope={scope},criteria=[l1;{_quoted(criterion)}]")
    assert steps_of(found) and work_of(found)["candidates"] > 0


def _quoted(text: str) -> str:
    return text if text.startswith('"') or "=" not in text else json.dumps(text)


def test_it_is_written_and_read_as_text() -> None:
    text = "loss-aware{macs=98%,criteria=[l1;cosine],steps=[a=2;b=3],floors=[a=1;b=1],objective=loss-per-mac}"
    assert format_pipeline(parse_pipeline(text)) == text
    assert format_pipeline([LossAwarePass(macs="98%")]) == "loss-aware{macs=98%}"


def test_the_program_stays_as_it_was() -> None:
    model = varied()
    program = program_of(model, labelled())
    before = state_hash(program.module)
    cut(program, "macs=90%,step=4")
    assert state_hash(program.module) == before


def tokens() -> nn.Module:
    """Attention and a layer norm, which sum over channels by themselves."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.embed(x.flatten(2).transpose(1, 2))
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q(x), self.k(x), self.v(x)))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(self.norm(x).mean(1))

    torch.manual_seed(6)
    parts = {name: nn.Linear(7, 8) for name in "qkv"} | {"embed": nn.Linear(3, 7), "out": nn.Linear(8, 7)}
    return net(forward, **parts, norm=nn.LayerNorm(7), head=nn.Linear(7, 3))


def computed() -> nn.Module:
    """Convolutions whose weights are computed, by weight normalisation and by hand."""

    def forward(self: Any, x: Tensor) -> Any:
        x = F.gelu(self.a(x))
        return pooled(self.head, F.relu(F.conv2d(x, self.w * self.scale)))

    torch.manual_seed(8)
    a = nn.utils.parametrizations.weight_norm(conv(3, 6))
    return net(
        forward, a=a, w=nn.Parameter(torch.randn(5, 6, 1, 1)), scale=nn.Parameter(torch.rand(5, 1, 1, 1)), head=nn.Linear(5, 3)
    )


@pytest.mark.parametrize("build", [tokens, computed])
@pytest.mark.parametrize("policy", ["whole", "head_dim"])
def test_the_loss_on_record_is_that_of_the_slim_model(build: Callable[[], nn.Module], policy: str) -> None:
    data = labelled()
    program = program_of(build(), data).with_(policy={"heads": policy})
    found = PassManager(parse_pipeline("loss-aware{macs=70%,step=4},rewrite,verify")).run(program)
    assert steps_of(found)[-1]["loss"] == pytest.approx(mean_loss(found.module.eval(), data), rel=1e-10)
    assert len(steps_of(found)) > 1


SHUFFLES = ["shuffle_between_grouped", "shuffle_unit_with_halves", "two_shuffles_in_a_row", "separate_projections"]
LOOSENED = ["one_dimension", "multi_query", "convolution_from_a_bank", "bilinear_pooling"]


@pytest.mark.parametrize("name", [*SHUFFLES, *LOOSENED])
def test_steps_on_slimmer_models_are_one_plan_of_the_original(name: str) -> None:
    """Where a single head or channel is left, ties may end that the original has: units that it does not have stay."""
    case, found = subject(name)
    batches = [Batch(normalise_inputs(case.inputs(2))) for _ in range(2)]
    program = found.program.with_(calibration=Calibration(batches, loss=loss), policy=dict(case.policy))
    pipeline = parse_pipeline("loss-aware{macs=75%,step=12,max_ratio=0.9},rewrite,verify")
    if name in LOOSENED:
        with pytest.raises(TargetError, match="no layer has units to remove"):
            PassManager(pipeline).run(program)
        return
    done = PassManager(pipeline).run(program)
    mean = sum(float(loss(run(done.module.eval(), batch.inputs), None)) for batch in batches) / 2
    assert steps_of(done)[-1]["loss"] == pytest.approx(mean, rel=1e-10)


def test_layers_that_steps_leave_out_stay_whole() -> None:
    found = cut(program_of(residual(), labelled(classes=2)), "macs=85%,steps=[a=2;d=2],floors=[a=1;d=1]")
    assert found.record is not None
    widths = found.record.widths
    assert widths["c"] == (14, 14) and widths["stem"] == (12, 12) and widths["a"][1] < 10


# -- refusals ----------------------------------------------------------------------------------------------------------------


def test_a_target_out_of_reach_says_how_far_it_got() -> None:
    with pytest.raises(TargetError, match=r"after \d+ steps \d+\.\d% of the MACs are left"):
        cut(program_of(residual(), labelled(classes=2)), "macs=20%,step=20,max_ratio=0.3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("macs=90%,scope=unit", "scope=unit"),
        ("macs=90%,objective=speed", "objective=speed"),
        ("macs=90%,step=0", "a step over 0"),
        ("macs=90%,max_ratio=0", "max_ratio over 0"),
        ("macs=90%,steps=[stem=0]", "at least 1 unit"),
        ("macs=90%,criteria=[]", "needs criteria"),
        ("macs=90%,criteria=[l3]", "no criterion 'l3'"),
        ("macs=150%", "at most 100 %"),
        ("macs=90%,steps=[stme=2]", "no layer 'stme'; did you mean 'stem'"),
        ("macs=90%,floors=[stme=2]", "no layer 'stme'"),
        ("macs=90%,steps=[stem=2],floors=[a=1]", "floors} says nothing of stem"),
        ("macs=90%,criteria=[bn-scale]", "nothing to say about any single layer"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cut(program_of(varied(), labelled()), options)


def test_it_needs_data_with_a_finite_loss() -> None:
    with pytest.raises(PipelineError, match="needs calibration"):
        cut(graphprune.capture(residual(), IMAGE), "macs=90%")
    with pytest.raises(UsageError, match="no targets"):
        cut(program_of(residual(), [x for x, _ in labelled()]), "macs=90%")
    broken = [(x * torch.nan, y % 2) for x, y in labelled()]
    with pytest.raises(UsageError, match="The loss on the calibration data is nan"):
        cut(program_of(residual(), broken), "macs=90%")
    with pytest.raises(UsageError, match="does not run on the calibration data"):
        cut(program_of(residual(), [(x[:, :2], y) for x, y in labelled()]), "macs=90%")
