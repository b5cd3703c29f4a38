"""Sets of options are what a command gets, and single options are what typer sees."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Annotated, Any, get_type_hints

import pytest
import typer

from graphprune.cli.expanding import expanded


@dataclass(frozen=True, kw_only=True)
class Size:
    """Two options."""

    width: Annotated[int, typer.Option("--wide", help="How wide.")] = 1
    height: int = 2


@dataclass(frozen=True, kw_only=True)
class Large(Size):
    """Another default in the same place."""

    width: int = 10


def test_options_stand_in_the_place_of_their_set() -> None:
    def command(name: str, size: Size, *, loud: bool = False) -> None: ...

    flat = expanded(command)
    assert list(signature(flat).parameters) == ["name", "width", "height", "loud"] == list(get_type_hints(flat))
    assert get_type_hints(flat, include_extras=True)["width"].__metadata__[0].help == "How wide."


def test_a_class_of_its_own_default_keeps_the_order() -> None:
    def command(*, size: Large) -> None: ...

    assert str(signature(expanded(command))) == "(*, width: int = 10, height: int = 2)"


def test_the_command_gets_its_sets() -> None:
    got: list[Any] = []

    def command(name: str, *, size: Size) -> None:
        got.append((name, size))

    expanded(command)(name="a", width=5, height=2)
    assert got == [("a", Size(width=5))]


def test_two_options_of_one_name_are_refused() -> None:
    def command(width: int, *, size: Size) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name"):
        expanded(command)
