"""Pipelines as text: reading, writing, and what each mistake says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.errors import PassContractError, PipelineError, UsageError
from graphprune.ir.program import Program
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.text import format_pass, format_pipeline, parse_pipeline


class Toy(Pass):
    """Returns what it is given."""

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Return the program."""
        return program


@dataclass(frozen=True)
class Plain(Toy):
    """No options."""

    name = "plain"


@dataclass(frozen=True)
class Options(Toy):
    """One option of every kind."""

    name = "options"
    text: str = "l2"
    count: int = 1
    ratio: float = 0.5
    flag: bool = False
    amount: float | str | None = None
    note: str | None = None
    limit: int | None = 8
    names: tuple[str, ...] = ()
    numbers: tuple[float, ...] = (1.0,)
    mixed: tuple[int | str | None, ...] = ()
    policy: Mapping[str, str] = field(default_factory=dict)
    ratios: Mapping[str, float | str] = field(default_factory=dict)
    mode: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True)
class Needy(Toy):
    """One option without a default, which it checks."""

    name = "needy"
    target: float

    def __post_init__(self) -> None:
        if self.target > 1:
            raise UsageError("target is over 1")


CLASSES = (Plain, Options, Needy)


def parse_one(text: str) -> Pass:
    (one,) = parse_pipeline(text, CLASSES)
    return one


texts = st.text(max_size=8) | st.sampled_from(
    ["none", "true", "0.5", "1", "50%", "nan", "", " a", "[", 'say "hi"', "a=b;c", "\\", "\n"]
)
numbers = st.floats()
options = st.builds(
    Options,
    text=texts,
    count=st.integers(),
    ratio=numbers,
    flag=st.booleans(),
    amount=st.none() | numbers | texts,
    note=st.none() | texts,
    limit=st.none() | st.integers(),
    names=st.lists(texts, max_size=3).map(tuple),
    numbers=st.lists(numbers, max_size=3).map(tuple),
    mixed=st.lists(st.none() | st.integers() | texts, max_size=3).map(tuple),
    policy=st.dictionaries(texts, texts, max_size=3),
    ratios=st.dictionaries(texts, numbers | texts, max_size=3),
    mode=st.sampled_from(["sum", "mean"]),
)
pipelines = st.lists(options | st.just(Plain()) | st.builds(Needy, target=st.floats(0, 1)), max_size=3)


@given(pipelines)
def test_every_pipeline_reads_back_exactly(passes: list[Pass]) -> None:
    """Compared by repr, which tells 1 from 1.0 and "1" and holds for NaN."""
    text = format_pipeline(passes)
    again = parse_pipeline(text, CLASSES)
    assert repr(again) == repr(passes)
    assert format_pipeline(again) == text


@given(st.text(alphabet='ab,{}[];="\\ 1%', max_size=20))
def test_any_text_is_a_pipeline_or_a_pipeline_error(text: str) -> None:
    try:
        parse_pipeline(text, CLASSES)
    except PipelineError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("options", Options()),
        ("options{}", Options()),
        ("options{text=l1}", Options(text="l1")),
        ("options{text=12}", Options(text="12")),
        ("options{text=true}", Options(text="true")),
        ("options{count=-3,ratio=1}", Options(count=-3, ratio=1.0)),
        ("options{flag}", Options(flag=True)),
        ("options{flag=false}", Options(flag=False)),
        ("options{amount=50%}", Options(amount="50%")),
        ("options{amount=0.5}", Options(amount=0.5)),
        ("options{amount=1e6}", Options(amount=1e6)),
        ('options{amount="0.5"}', Options(amount="0.5")),
        ("options{note=none,limit=none}", Options(note=None, limit=None)),
        ('options{note="none"}', Options(note="none")),
        ("options{names=[]}", Options(names=())),
        ("options{names=[layer1.*;fc]}", Options(names=("layer1.*", "fc"))),
        ('options{names=[1;"a;b"]}', Options(names=("1", "a;b"))),
        ("options{numbers=[1;2.5]}", Options(numbers=(1.0, 2.5))),
        ("options{policy=[heads=whole;norm@layer3.*=within]}", Options(policy={"heads": "whole", "norm@layer3.*": "within"})),
        ("options{ratios=[a=50%;b=0.5;1=1]}", Options(ratios={"a": "50%", "b": 0.5, "1": 1.0})),
        (" options { text = l1 ,\n flag } ", Options(text="l1", flag=True)),
        ("options{mode=mean}", Options(mode="mean")),
    ],
)  # fmt: skip
def test_reading(text: str, expected: Options) -> None:
    assert repr(parse_one(text)) == repr(expected)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (Plain(), "plain"),
        (Options(), "options"),
        (Options(text="l2", count=2), "options{count=2}"),
        (Options(text="", names=("a b", "c")), 'options{text="",names=["a b";c]}'),
        (Options(flag=True, amount="50%", limit=None), "options{flag=true,amount=50%,limit=none}"),
        (Options(amount="0.5", note="none"), 'options{amount="0.5",note="none"}'),
        (Options(policy={"heads": "whole"}), "options{policy=[heads=whole]}"),
        (Options(names=["a", "b"]), "options{names=[a;b]}"),  # type: ignore[arg-type]
        (Options(ratio=1), "options{ratio=1}"),
    ],
)
def test_writing_leaves_out_defaults_and_quotes_only_where_needed(one: Pass, expected: str) -> None:
    assert format_pass(one) == expected


def test_passes_stand_in_the_order_of_the_text() -> None:
    assert parse_pipeline("plain, options{count=2},plain", CLASSES) == [Plain(), Options(count=2), Plain()]
    assert parse_pipeline("") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plian", r"no pass 'plian'"),
        ("options{cuont=1}", r"Pass 'options': There is no option 'cuont'; did you mean 'count'\? Options: text, count, ratio"),
        ("plain{x}", r"no option 'x'\. Options: none"),
        ("options{count=1.5}", r"Option options\{count=1.5\} does not fit: Input should be a valid integer"),
        ("options{count}", r"count=true\} does not fit"),
        ("options{flag=maybe}", r"Option options\{flag=maybe\} does not fit: Input should be a valid boolean"),
        ("options{count=[1;2]}", r"Option options\{count=\[1;2\]\} does not fit"),
        ("options{names=a}", r"does not fit: Input should be a valid tuple"),
        ("options{mode=max}", r"does not fit: Input should be 'sum' or 'mean'"),
        ("options{count=1,count=2}", r"option 'count' is given twice"),
        ("needy", r"Pass 'needy' needs the option 'target': write needy\{target=\.\.\.\}"),
        ("plain,", r"malformed at its end: expected a pass name"),
        (",plain", r"malformed at ',plain' \(character 1\): expected a pass name"),
        ("plain plain", r"malformed at 'plain' \(character 7\): expected ','"),
        ("options{text=a", r"malformed at its end: expected ','"),
        ("options{text=}", r"malformed at '\}' \(character 14\): expected a value; put quotes"),
        ('options{text="a}', r"a quote is not closed"),
        (r'options{text="\q"}', r"no JSON string"),
        ("options{names=[a;b=c]}", r"mixes single items with key=value pairs"),
        ("options{names=[a b]}", r"malformed at 'b\]\}' \(character 18\): expected ';'"),
    ],
)
def test_mistakes_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse_pipeline(text, CLASSES)


def test_a_pass_s_own_check_of_its_options_is_passed_on() -> None:
    with pytest.raises(UsageError, match="target is over 1"):
        parse_pipeline("needy{target=2}", CLASSES)


def test_an_undecorated_subclass_is_refused_as_it_would_lose_its_options() -> None:
    class Undecorated(Toy):
        name = "undecorated"
        count: int = 1

    with pytest.raises(PassContractError, match="Undecorated is not a frozen dataclass"):
        parse_pipeline("undecorated", [Undecorated])
    with pytest.raises(PassContractError, match="Undecorated is not a frozen dataclass"):
        format_pass(Undecorated())


def test_a_name_that_is_not_kebab_case_is_refused() -> None:
    @dataclass(frozen=True)
    class Shouting(Toy):
        name = "Big_Pass"

    with pytest.raises(PassContractError, match="'Big_Pass'; give it a kebab-case one"):
        format_pass(Shouting())


def test_a_value_that_text_cannot_express_is_refused() -> None:
    with pytest.raises(PipelineError, match="Option text of pass 'options' cannot be written as text"):
        format_pass(Options(text=object()))  # type: ignore[arg-type]


def test_a_record_with_defaults_reads_back_as_the_same_passes() -> None:
    """A plan's pipeline text must stand for the same options after a default has changed."""
    passes = parse_pipeline("channels,score,select{macs=50%},rewrite,verify")
    text = format_pipeline(passes, defaults=True)
    assert "criterion=l2" in text and "round_to=1" in text and "params=none" in text
    assert parse_pipeline(text) == passes
    assert format_pipeline(parse_pipeline(text)) == "channels,score,select{macs=50%},rewrite,verify"
