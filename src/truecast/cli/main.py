"""The entry point: runs a verb and turns what went wrong into one sentence and an exit status.

| status | meaning |
|---|---|
| 0 | done, and proven unless the proof was declined |
| 1 | a proof or a check did not hold |
| 2 | the input cannot be used: a path, a file, an option, the disk |
| 130 | interrupted (Ctrl-C) |
| 143 | ended by SIGTERM, which cleans up as Ctrl-C does |
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from truecast.cli.app import app
from truecast.errors import InputError, TruecastError

INTERRUPTED = 128 + signal.SIGINT
"""As shells report it; typer returns it for a KeyboardInterrupt."""
TERMINATED = 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line with `arguments`, else with those of the process; returns the exit status."""
    if arguments is None:
        signal.signal(signal.SIGTERM, _terminate)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = int(app(args=given or ["--help"], prog_name="truecast", standalone_mode=False) or 0)
    except typer.TyperException as error:
        return complain(usage_sentence(error, given), error.exit_code)
    except TruecastError as error:
        return complain(str(error), error.exit_status)
    except OSError as error:
        return complain(disk_sentence(error), InputError.exit_status)
    except MemoryError:
        return complain("There is not enough memory; `truecast inspect` says what is needed.", InputError.exit_status)
    if status == INTERRUPTED:
        complain("Interrupted; nothing was written.", status)
    return status


def _terminate(number: int, frame: object) -> NoReturn:
    """Ends the process as an exception, so that whatever is half done is cleaned up."""
    sys.exit(TERMINATED)


def complain(sentence: str, status: int) -> int:
    """Writes one line to standard error; returns the status."""
    print(" ".join(sentence.split()), file=sys.stderr)
    return status


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
