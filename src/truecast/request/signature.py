"""From the fields of `Request` to parameters: what `help(truecast.export)` shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, TypeVar

from truecast.request.options import TYPES, Request

Function = TypeVar("Function", bound=Callable[..., Any])


def parameters() -> Iterator[inspect.Parameter]:
    """A keyword parameter of each option, with its type and default."""
    for one in fields(Request):
        yield inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=TYPES[one.name]
        )


def takes_options(function: Function) -> Function:
    """Gives a function that takes any option as a keyword the signature that names each."""
    own = inspect.signature(function)
    kept = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = own.replace(parameters=[*kept, *parameters()])  # type: ignore[attr-defined]
    return function
