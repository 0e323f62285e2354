"""How much a command says beside its result: `--quiet`, `--verbose` and `--log-level`, which every verb takes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from truecast.errors import InputError

LEVELS = ("debug", "info", "warning", "error")
LOG_LEVEL = "--log-level"
HELP = """\
Every verb also takes
  -q, --quiet          no progress on standard error, only what went wrong
  -v, --verbose        when a stage ends, how long it took; and --log-level info
  --log-level LEVEL    messages of the libraries from this level on: debug, info,
                       warning or error
"""


@dataclass(frozen=True)
class Talk:
    """`level` is the least level of libraries' log messages that are shown; None leaves it to them."""

    quiet: bool = False
    verbose: bool = False
    level: str | None = None

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Holds for what runs in the context: log messages are written to standard error."""
        root, token = logging.getLogger(), TALK.set(self)
        handler, before = logging.StreamHandler(), root.level
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        if self.level is not None:
            root.addHandler(handler)
            root.setLevel(self.level.upper())
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(before)
            TALK.reset(token)


TALK: ContextVar[Talk] = ContextVar("talk", default=Talk())  # noqa: B039 (frozen)


def take(given: Sequence[str]) -> tuple[Talk, list[str]]:
    """What the words say of it, and the other words; behind `--` all are the verb's. Raises InputError."""
    words, found = list(given), dict[str, object]()
    end = words.index("--") if "--" in words else len(words)
    mine, rest = words[:end], words[end:]
    level: str | None = None
    others: list[str] = []
    while mine:
        word = mine.pop(0)
        if word in ("-q", "--quiet"):
            found["quiet"] = True
        elif word in ("-v", "--verbose"):
            found["verbose"] = True
        elif word == LOG_LEVEL or word.startswith(f"{LOG_LEVEL}="):
            level = word.partition("=")[2] if "=" in word else mine.pop(0) if mine else ""
        else:
            others.append(word)
    if level is not None and level not in LEVELS:
        raise InputError(f"There is no log level {level!r}; choose one of {', '.join(LEVELS)}.")
    if len(found) == 2:
        raise InputError("--quiet and --verbose contradict each other; leave one of them out.")
    level = level or ("info" if "verbose" in found else None)
    return Talk(quiet="quiet" in found, verbose="verbose" in found, level=level), [*others, *rest]
