"""Runs a verb and turns what went wrong into one sentence and an exit status.

| status | meaning |
|---|---|
| 0 | done, and proven unless the proof was declined |
| 1 | a proof or a check did not hold |
| 2 | the input cannot be used: a path, a file, an option, the disk |
| 3 | an error that nobody foresaw; its traceback is in a file that the sentence names |
| 130 | interrupted (Ctrl-C) |
| 143 | ended by SIGTERM, which cleans up as Ctrl-C does |
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence

import typer

from truecast.cli.app import app
from truecast.cli.ending import complain
from truecast.cli.talk import take
from truecast.errors import InputError, TruecastError

EMPTY_OPTION = re.compile(r"--[a-z-]+=")
BROKEN_PIPE = 128 + 13
"""As shells report SIGPIPE."""


def run(given: Sequence[str]) -> int:
    """Runs the command line with the words `given`; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names in a checkpoint may hold what no terminal can show
            stream.reconfigure(errors="backslashreplace")
    try:
        talk, words = take(given)
        require_no_empty_words(words)
        with talk.lasting():
            status = int(app(args=words or ["--help"], prog_name="truecast", standalone_mode=False) or 0)
        sys.stdout.flush()
    except typer.TyperException as error:
        return complain(usage_sentence(error, given), error.exit_code)
    except TruecastError as error:
        return complain(str(error), error.exit_status)
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        return complain(disk_sentence(error), InputError.exit_status)
    except MemoryError:
        return complain("There is not enough memory; `truecast inspect` says what is needed.", InputError.exit_status)
    return status


def require_no_empty_words(words: Sequence[str]) -> None:
    """Raises InputError for an empty word where none can be: a path would become the current folder."""
    named = words[:2] if words[:1] == ["run"] else words  # a prompt says itself that it is empty
    for word in named:
        if not word or EMPTY_OPTION.fullmatch(word):
            raise InputError(f"{word or 'A word of the command'} is empty; give a value, or leave it out.")


def usage_sentence(error: typer.TyperException, given: Sequence[str]) -> str:
    """What is wrong with the command's own words, the nearest right ones, and where to look."""
    near: Sequence[str] = getattr(error, "possibilities", None) or ()
    option: str | None = getattr(error, "option_name", None)
    if option and near:
        return f"There is no option {option}; did you mean {near[0]}?"
    message = error.format_message().replace(". Did you", "; did you")
    if message.endswith("?"):
        return message
    verb = f" {given[0]}" if given and given[0] in verbs() else ""
    return f"{message.rstrip('.')}; see `truecast{verb} --help`."


def verbs() -> list[str]:
    """The names of all verbs."""
    return [command.callback.__name__ for command in app.registered_commands if command.callback is not None]


def disk_sentence(error: OSError) -> str:
    """What the operating system refused, and where."""
    where = error.filename or "A file"
    return f"{where} cannot be used: {error.strerror or error}; check the path, its permissions and the disk's space."
