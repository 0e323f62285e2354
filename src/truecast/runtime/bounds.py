"""Bounds of a chat template: it is code from a checkpoint, and must neither run for ever nor fill the memory.

jinja2's sandbox keeps templates from files and attributes, but not from loops in loops or `9 ** 9 ** 9`. So every
iteration and every call counts as a step, and every text that is made counts by its characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 100_000
"""Iterations and calls of one rendering: the longest templates of the Hub take some tens for each message."""
MOST_CHARACTERS = 50_000_000
"""Characters that one rendering makes, those of parts included; a context of a million tokens has about 5 million."""
MOST_BITS = 4096
"""Of a power; no template has a use for more."""
WIDTH = re.compile(r"\d{7,}|%[-+ 0#]*\*")
"""A width in a format, as %9999999d or {:9999999}."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end; they are compiled by `bounded_code`, and `restart` is called before each run."""

    intercepted_binops = frozenset(["**", "*", "+", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals |= {"_counted": self._counted, "_joined": self._joined, "_written": self._written}
        for name in ("center", "indent"):
            self.filters[name] = self._narrow(self.filters[name])
        self.filters |= {"join": self._join, "replace": self._replace}
        self.restart()

    def restart(self) -> None:
        """Counts from zero."""
        self._steps = self._characters = 0

    def bounded_code(self, source: str) -> Any:
        """The compiled template; raises TemplateError."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = _call("_counted", [loop.iter])
        for output in tree.find_all(nodes.Output):
            output.nodes = [_written(part) for part in output.nodes]
        for parent in list(tree.find_all(nodes.Node)):
            for field, value in parent.iter_fields():
                setattr(parent, field, _without_joins(value))
        return self.compile(tree)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as jinja2's)
        """Calls what a template calls; a text is not padded without bounds."""
        __self._step(1)
        text, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(text, str):
            if name == "replace":
                return __self._replace(text, *args, **kwargs)
            if name == "join":
                return __self._join(args[0] if args else (), text)
            if name in ("format", "format_map") and WIDTH.search(text):
                raise TemplateError("it pads a text without bounds")
            __self._make(max((it for it in args if isinstance(it, int)), default=0))
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuses what would be too large before it is made."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MOST_BITS:
                raise TemplateError("it computes a power that is too large")
        elif operator == "*":
            sizes = [len(it) if isinstance(it, Sized) else it for it in (left, right)]
            if isinstance(left, Sized) or isinstance(right, Sized):
                self._make(sizes[0] * sizes[1])
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            self._make(len(left) + len(right))
        elif operator == "%" and isinstance(left, str) and WIDTH.search(left):
            raise TemplateError("it pads a text without bounds")
        return super().call_binop(context, operator, left, right)

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        """The filter of that name."""
        get: Callable[[Any], Any] = str if attribute is None else make_attrgetter(self, attribute)
        texts = [str(get(item)) for item in self._counted(value)]
        self._make(sum(map(len, texts)) + len(d) * len(texts))
        return str(d).join(texts)

    def _replace(self, value: Any, old: str, new: str, count: int | None = None) -> str:
        """The filter and the method of that name."""
        text: str = str(value)
        times = text.count(old) if count is None or count < 0 else count
        self._make(len(text) + times * len(new))
        return text.replace(old, new, times)

    def _narrow(self, original: Any) -> Any:
        def narrow(value: Any, *given: Any, **named: Any) -> Any:
            self._make(max((it for it in (*given, *named.values()) if isinstance(it, int)), default=0))
            return original(value, *given, **named)

        return narrow

    def _step(self, count: int) -> None:
        self._steps += count
        if self._steps > MOST_STEPS:
            raise TemplateError(f"it takes more than {MOST_STEPS} steps")

    def _make(self, characters: int) -> None:
        self._characters += characters
        if self._characters > MOST_CHARACTERS:
            raise TemplateError(f"it makes more than {MOST_CHARACTERS} characters")

    def _counted(self, items: Iterable[Any]) -> Iterable[Any]:
        if isinstance(items, Sized):
            self._step(len(items))
            return items
        return self._counting(items)

    def _counting(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step(1)
            yield item

    def _joined(self, *parts: Any) -> str:
        texts = [str(part) for part in parts]
        self._make(sum(map(len, texts)))
        return "".join(texts)

    def _written(self, value: Any) -> Any:
        self._make(len(str(value)))
        return value


def _call(function: str, arguments: list[Any]) -> nodes.Call:
    return nodes.Call(nodes.Name(function, "load"), arguments, [], None, None)


def _written(part: Any) -> Any:
    """What a template gives out, counted; its own text is as long as it is."""
    return part if isinstance(part, nodes.TemplateData) else _call("_written", [part])


def _without_joins(value: Any) -> Any:
    """A field of a node with `a ~ b` as a call."""
    if isinstance(value, list):
        return [_without_joins(item) for item in value]
    return _call("_joined", value.nodes) if isinstance(value, nodes.Concat) else value
