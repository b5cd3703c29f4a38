"""From sets of options to the options that typer sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it: in place of each parameter whose type is a dataclass, parameters for the fields of that class.

    The fields' types are annotated as parameters of commands are, and all have defaults. Raises ValueError where two options
    have one name.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Size:
    ...     width: int = 1
    ...     height: int = 2
    >>> def command(name: str, size: Size) -> None: ...
    >>> str(signature(expanded(command)))
    '(*, name: str, width: int = 1, height: int = 2)'
    """
    taken = signature(command, eval_str=True).parameters.values()
    sets: dict[str, Any] = {parameter.name: parameter.annotation for parameter in taken if is_dataclass(parameter.annotation)}

    @wraps(command)
    def flat(**given: Any) -> None:
        made = {name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in sets.items()}
        command(**given, **made)

    options = [option for parameter in taken for option in _options(parameter)]
    flat.__signature__ = Signature(options)  # type: ignore[attr-defined]
    flat.__annotations__ = {option.name: option.annotation for option in options}
    return flat


def _options(parameter: Parameter) -> Iterator[Parameter]:
    kind = parameter.annotation
    if not is_dataclass(kind):
        yield parameter.replace(kind=Parameter.KEYWORD_ONLY)
        return
    types = get_type_hints(kind, include_extras=True)  # of fields from other modules too, each as its own module means it
    for field in fields(kind):
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
