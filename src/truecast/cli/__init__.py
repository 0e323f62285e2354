"""The command line: one thin function per verb over `truecast.api`; `--help` imports nothing heavy.

`main` is the entry point, and the outermost guard: nothing below it may end in a traceback, Ctrl-C while something is
imported neither.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from truecast.cli.ending import INTERRUPTED, Interruption, interrupted, unforeseen


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line with `arguments`, else with those of the process; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with Interruption() as seen:
        try:
            from truecast.cli.entry import run

            status = run(given)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except Exception as error:
            status = seen.status or unforeseen(error, given)
    return interrupted() if status == INTERRUPTED else status
