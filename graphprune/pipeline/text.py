"""Pipelines as text: ``channels,score{criterion=l2},select{macs=50%,round_to=8},rewrite,verify``.

    pipeline := [pass {"," pass}]
    pass     := name ["{" [option {"," option}] "}"]
    option   := name ["=" value]                         without a value: true
    value    := scalar | "[" [item {";" item}] "]"
    item     := scalar | scalar "=" scalar               the second form makes a mapping
    scalar   := bare word | JSON string

An option is a field of the pass's dataclass and is read by the field's annotated type. A bare word is taken as none,
true, false, a number or text, the first of these that the type admits; a quoted one is always text. Options at their
defaults are left out when a pipeline is written, and what is written reads back as the same passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import MISSING, Field, fields
from functools import cache, partial
from types import NoneType
from typing import Any, Final, NamedTuple, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from graphprune.errors import PassContractError, PipelineError, first_line, unknown
from graphprune.pipeline.pass_base import Pass, check_declaration
from graphprune.pipeline.registry import pass_class

_TOKEN: Final = re.compile(
    r'(?P<space>\s+)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<mark>[,{}\[\];=])|(?P<word>[^\s,{}\[\];="]+)', re.DOTALL
)
_WORD: Final = re.compile(r'[^\s,{}\[\];="]+')
_CONSTANTS: Final[Mapping[str, bool | None]] = {"none": None, "true": True, "false": False}


class _Scalar(NamedTuple):
    """A scalar as it stands in the text."""

    text: str
    quoted: bool


class _Value(NamedTuple):
    """An option's value as it stands in the text: one scalar, or the items of a bracket."""

    scalar: _Scalar | None = None
    items: tuple[_Scalar, ...] = ()
    pairs: tuple[tuple[_Scalar, _Scalar], ...] = ()


_TRUE: Final = _Value(_Scalar("true", False))


def parse_pipeline(text: str, passes: Iterable[type[Pass]] = ()) -> list[Pass]:
    """The passes that a text pipeline stands for.

    passes: classes to know beside (and before) the registered ones. Raises PipelineError for malformed text, an
    unknown pass or option, a value that does not fit an option, and a missing option; PassContractError for a pass
    whose declaration is at fault.
    """
    own = {cls.name: cls for cls in passes}
    reader = _Reader(text)
    found: list[Pass] = []
    while not reader.at_end():
        if found:
            reader.expect(",")
        name, options = reader.read_pass()
        found.append(_build(own.get(name) or pass_class(name), options))
    return found


def format_pipeline(passes: Iterable[Pass], defaults: bool = False) -> str:
    """The text that :func:`parse_pipeline` reads as these passes.

    defaults: also write the options at their defaults, for a record that must outlive a change of them.
    Raises PipelineError for an option value that text cannot express.
    """
    return ",".join(format_pass(one, defaults) for one in passes)


def format_pass(one: Pass, defaults: bool = False) -> str:
    """One pass with its options, those at their defaults left out unless they are asked for."""
    check_declaration(type(one))
    shown = [field for field in _options(type(one)) if defaults or not _is_default(one, field)]
    options = [f"{field.name}={_text_of(type(one), field, getattr(one, field.name))}" for field in shown]
    return f"{one.name}{{{','.join(options)}}}" if options else one.name


# ---------------------------------------------------------------------------------------------------- from text


class _Reader:
    """A cursor over the tokens of a pipeline."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._next = 0

    def at_end(self) -> bool:
        """Whether nothing is left to read."""
        return self._next == len(self._tokens)

    def expect(self, mark: str) -> None:
        """Read one mark."""
        if not self._accept(mark):
            raise self._error(f"expected {mark!r}")

    def read_pass(self) -> tuple[str, dict[str, _Value]]:
        """Read a pass's name and options."""
        name = self._word("a pass name")
        options: dict[str, _Value] = {}
        if self._accept("{") and not self._accept("}"):
            self._option(options)
            while not self._accept("}"):
                self.expect(",")
                self._option(options)
        return name, options

    def _option(self, options: dict[str, _Value]) -> None:
        name = self._word("an option name")
        if name in options:
            raise self._error(f"option {name!r} is given twice")
        options[name] = self._value() if self._accept("=") else _TRUE

    def _value(self) -> _Value:
        if not self._accept("["):
            return _Value(self._scalar())
        items: list[tuple[_Scalar, ...]] = []
        while not self._accept("]"):
            if items:
                self.expect(";")
            first = self._scalar()
            items.append((first, self._scalar()) if self._accept("=") else (first,))
        if len({len(item) for item in items}) > 1:
            raise self._error("a bracket mixes single items with key=value pairs")
        pairs = tuple((item[0], item[1]) for item in items if len(item) > 1)
        return _Value(None, () if pairs else tuple(item[0] for item in items), pairs)

    def _scalar(self) -> _Scalar:
        kind, text, _ = self._peek()
        if kind == "word":
            self._next += 1
            return _Scalar(text, False)
        if kind == "string":
            try:
                value = json.loads(text, strict=False)
            except ValueError as error:
                raise self._error("the quoted text is no JSON string") from error
            self._next += 1
            return _Scalar(value, True)
        raise self._error("expected a value; put quotes around one that is empty or holds any of , ; = { } [ ]")

    def _word(self, what: str) -> str:
        kind, text, _ = self._peek()
        if kind != "word":
            raise self._error(f"expected {what}")
        self._next += 1
        return text

    def _accept(self, mark: str) -> bool:
        kind, text, _ = self._peek()
        accepted = kind == "mark" and text == mark
        self._next += accepted
        return accepted

    def _peek(self) -> tuple[str, str, int]:
        return ("end", "", len(self._text)) if self.at_end() else self._tokens[self._next]

    def _error(self, message: str) -> PipelineError:
        return _malformed(self._text, self._peek()[2], message)


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _malformed(text, position, "a quote is not closed")
        if match.lastgroup != "space":
            yield str(match.lastgroup), match.group(), position
        position = match.end()


def _malformed(text: str, position: int, message: str) -> PipelineError:
    rest = text[position : position + 20]
    where = f"at {rest!r} (character {position + 1})" if rest else "at its end"
    return PipelineError(f"The pipeline {text!r} is malformed {where}: {message}.")


def _build(cls: type[Pass], given: Mapping[str, _Value]) -> Pass:
    check_declaration(cls)
    known = {field.name: field for field in _options(cls)}
    for name in given:
        if name not in known:
            raise PipelineError(f"Pass {cls.name!r}: {unknown('option', name, known, 'Options')}")
    missing = [name for name, field in known.items() if name not in given and not _has_default(field)]
    if missing:
        raise PipelineError(f"Pass {cls.name!r} needs the option {missing[0]!r}: write {cls.name}{{{missing[0]}=...}}.")
    adapters = _adapters(cls)
    return cls(**{name: _read(cls, name, adapters[name], value) for name, value in given.items()})


def _read(cls: type[Pass], name: str, adapter: TypeAdapter[Any], value: _Value) -> Any:
    """The first reading that the type admits: exactly if possible, else by pydantic's conversions of text."""
    readings = list(_readings(value))
    for reading in readings:
        try:
            return adapter.validate_python(reading, strict=True)
        except ValidationError:
            continue
    try:
        return adapter.validate_python(readings[-1])
    except ValidationError as error:
        shown = readings[-1] if value.scalar else _format_value(readings[-1], False)
        raise PipelineError(f"Option {cls.name}{{{name}={shown}}} does not fit: {error.errors()[0]['msg']}.") from error


def _readings(value: _Value) -> Iterator[Any]:
    """What a value may mean, the most specific reading first and plain text last."""
    if value.scalar is not None:
        yield from _scalar_readings(value.scalar)
    elif value.pairs:
        yield {key.text: next(_scalar_readings(item)) for key, item in value.pairs}
        yield {next(_scalar_readings(key)): next(_scalar_readings(item)) for key, item in value.pairs}
        yield {key.text: item.text for key, item in value.pairs}
    elif value.items:
        yield tuple(next(_scalar_readings(item)) for item in value.items)
        yield tuple(item.text for item in value.items)
    else:
        yield {}
        yield ()


def _scalar_readings(scalar: _Scalar) -> Iterator[Any]:
    if not scalar.quoted:
        if scalar.text in _CONSTANTS:
            yield _CONSTANTS[scalar.text]
        for number in (int, float):
            try:
                yield number(scalar.text)
            except ValueError:
                continue
    yield scalar.text


# ------------------------------------------------------------------------------------------------------ to text


def _text_of(cls: type[Pass], field: Field[Any], value: Any) -> str:
    """The text of an option; most are at a default, of which it is known."""
    is_default = field.default is not MISSING and _same(field.default, value)
    return _format_default(cls, field) if is_default else _format_option(cls, field, value)


@cache
def _format_default(cls: type[Pass], field: Field[Any]) -> str:
    return _format_option(cls, field, field.default)


def _format_option(cls: type[Pass], field: Field[Any], value: Any) -> str:
    """The shortest text that reads back as the option's value."""
    value = _plain(value)
    adapter = _adapters(cls)[field.name]
    for quoted in (False, True):
        text = _format_value(value, quoted)
        try:
            _, options = _Reader(f"{cls.name}{{{field.name}={text}}}").read_pass()
            if _same(_read(cls, field.name, adapter, options[field.name]), _converted(adapter, value)):
                return text
        except PipelineError:
            continue
    raise PipelineError(f"Option {field.name} of pass {cls.name!r} cannot be written as text: {value!r}.")


def _converted(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return value


def _format_value(value: Any, quoted: bool) -> str:
    scalar: Callable[[Any], str] = partial(_format_scalar, quoted=quoted)
    if isinstance(value, Mapping):
        return f"[{';'.join(f'{scalar(key)}={scalar(item)}' for key, item in value.items())}]"
    if isinstance(value, tuple):
        return f"[{';'.join(map(scalar, value))}]"
    return scalar(value)


def _format_scalar(value: Any, quoted: bool) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    bare = _WORD.fullmatch(text) and text.isprintable() and not quoted
    return text if bare else json.dumps(text, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Containers as dicts and tuples, so that equal ones look alike; sets in a fixed order."""
    if isinstance(value, (str, int, float, NoneType)):  # most are; abstract classes take many times as long to say no
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return tuple(sorted(map(_plain, value), key=repr))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return tuple(map(_plain, value))
    return value


def _same(first: Any, second: Any) -> bool:
    """Equality that tells 1 from 1.0 and True, and holds for NaN."""
    return repr(_plain(first)) == repr(_plain(second))


# ------------------------------------------------------------------------------------------------------ options


def _options(cls: type[Pass]) -> tuple[Field[Any], ...]:
    return tuple(field for field in fields(cls) if field.init)


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _is_default(one: Pass, field: Field[Any]) -> bool:
    if not _has_default(field):
        return False
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return _same(default, getattr(one, field.name))


@cache
def _adapters(cls: type[Pass]) -> dict[str, TypeAdapter[Any]]:
    """A converter for each option, by its annotation. Raises PassContractError for one that pydantic does not know."""
    try:
        hints = get_type_hints(cls, include_extras=True)
        return {field.name: TypeAdapter(hints[field.name]) for field in _options(cls)}
    except (NameError, PydanticSchemaGenerationError) as error:
        raise PassContractError(
            f"The options of pass class {cls.__name__} have annotations that cannot be read: {first_line(error)}."
        ) from error
