"""The command line: one thin function per verb over `truecast.api`; `--help` imports nothing heavy.

`main` is the entry point, and the outermost guard: nothing below it may end in a traceback, Ctrl-C while something is
imported neither.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from truecast.cli.ending import INTERRUPTED, Interruption, interrupted, unforeseen

TERMINATED = 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line with `arguments`, else with those of the process; returns the exit status."""
    if arguments is None:
        signal.signal(signal.SIGTERM, _terminate)
    given = list(sys.argv[1:] if arguments is None else arguments)
    with Interruption() as seen:
        try:
            from truecast.cli.entry import run

            status = run(given)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except Exception as error:
            status = INTERRUPTED if seen.happened else unforeseen(error, given)
    return interrupted() if status == INTERRUPTED else status


def _terminate(number: int, frame: object) -> NoReturn:
    """Ends the process as an exception, so that whatever is half done is cleaned up."""
    sys.exit(TERMINATED)
