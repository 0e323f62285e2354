"""The options of `export` on the command line, made from the fields of `Request`.

Data flow: fields → parameters with help and a check of their names → what was typed → a `Request`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from truecast.errors import InputError
from truecast.request import RECOMMENDED, Request, flag, option_of
from truecast.request.options import TYPES, require_value

REQUEST = "request"
"""The parameter of a verb that takes the place of all options."""
UNSAID = (None, (), RECOMMENDED)
"""Defaults that help does not show; its text says what they mean."""


def with_options(verb: Callable[..., int]) -> Callable[..., int]:
    """A verb that takes a `Request`, as one that takes its options; those of its own stay where they are."""
    own, hints = inspect.signature(verb), get_type_hints(verb, include_extras=True)
    made = {one.name: _parameter(one.name, one.default) for one in fields(Request)}

    @wraps(verb)
    def command(**words: Any) -> int:
        request = Request(**{name: _value(name, words.pop(name)) for name in made})
        return verb(**words, request=request)

    parameters: list[inspect.Parameter] = []
    for name, one in own.parameters.items():
        parameters += made.values() if name == REQUEST else [one.replace(annotation=hints[name], kind=one.KEYWORD_ONLY)]
    command.__signature__ = own.replace(parameters=parameters, return_annotation=int)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _parameter(name: str, default: Any) -> inspect.Parameter:
    """One option: repeated where it holds several, a switch where it is one or the other."""
    said = option_of(Request.__dataclass_fields__[name])
    kind, several = TYPES[name], name in PARSED or isinstance(default, tuple)
    words: Any = list[str] | None if several else str | None if default is RECOMMENDED else kind
    typed = typer.Option(
        flag(name),
        help=said.help,
        metavar=said.metavar,
        show_default=default not in UNSAID and kind is not bool,
        callback=PARSED.get(name) or (_check_of(name) if said.values is not None else None),
    )
    start = False if kind is bool else None if default in UNSAID else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=start, annotation=Annotated[words, typed])


def _check_of(name: str) -> Callable[[str | None], str | None]:
    """A check of an option's name, before anything heavy is imported."""

    def check(value: str | None) -> str | None:
        return None if value is None else require_value(name, value)

    return _installed if name == "provider" else check


def _installed(value: str | None) -> str | None:
    """The name of a provider that is installed, whatever its case."""
    from truecast.runtime.providers import find_provider

    return None if value is None else find_provider(value).name


def _axes(values: Sequence[str] | None) -> Sequence[str] | None:
    for value in values or ():
        place, sign, _ = value.partition("=")
        name, dot, axis = place.rpartition(".")
        if not sign or not dot or not name or not axis.isdigit():
            raise InputError(
                f"--dynamic {value} is no axis; write INPUT.AXIS=NAME, as x.1=length or x.1=length=1..512."
            )
    return values


PARSED: Mapping[str, Callable[[Sequence[str] | None], Sequence[str] | None]] = {"dynamic": _axes}
"""Options whose words become something else than text, with the check of the words."""


def _value(name: str, word: Any) -> Any:
    """What was typed, as `Request` has it."""
    default = Request.__dataclass_fields__[name].default
    if word is None:
        return default
    if default is True:
        return not word
    if name in PARSED:
        return free_axes(word)
    return tuple(word) if isinstance(word, list) else word


def free_axes(words: Sequence[str]) -> dict[str, dict[int, str]] | None:
    """The axes that `--dynamic` frees, by input and number; None when it is not given."""
    axes: dict[str, dict[int, str]] = {}
    for word in words:
        place, _, name = word.partition("=")
        source, _, axis = place.rpartition(".")
        axes.setdefault(source, {})[int(axis)] = name
    return axes or None
