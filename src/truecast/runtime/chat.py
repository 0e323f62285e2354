"""Chat templates: a conversation becomes the text that the model was trained to continue.

A template is code from a checkpoint, so it runs in jinja2's immutable sandbox, with the few functions that templates of
the Hugging Face ecosystem call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from truecast.errors import InputError
from truecast.runtime.bounds import BoundedEnvironment


class ChatTemplate:
    """A compiled template; `special_tokens` (role → text) are variables of it. Raises InputError on a syntax error."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = special_tokens
        self._environment = _environment()
        try:
            code = self._environment.bounded_code(source)
        except Exception as error:  # nesting too deep for jinja2 or for Python ends in many kinds
            raise InputError(f"The chat template is not valid ({_told(error)}); correct it.") from error
        self._template = Template.from_code(self._environment, code, self._environment.make_globals(None))

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of `messages` ({"role": …, "content": …}); `variables` are what the template knows, such as `tools`.

        Raises InputError when the template refuses the conversation, fails, or takes too long (`bounds`).
        """
        self._environment.restart()
        values = {"tools": None, "documents": None, **self._special_tokens, **variables}
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **values)
        except Exception as error:  # the template's own code, which may do anything that the sandbox lets it
            raise InputError(f"The chat template refuses this conversation: {_told(error)}.") from error


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks the model's own words for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _told(error: Exception) -> str:
    """What an error says, in one line; its kind, where a template author did not write it."""
    said = " ".join(str(error).split()).rstrip(".")
    return said if isinstance(error, TemplateError) else f"{type(error).__name__}: {said}".rstrip(": ")


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter would escape the signs of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(format: str) -> str:
    """The local time, as templates that state today's date expect it."""
    return datetime.now().strftime(format)
