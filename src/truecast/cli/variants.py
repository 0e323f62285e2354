"""Progress of a study, on standard error: a line per variant on a terminal, a line for each event elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from truecast.cli.progress import SIGN
from truecast.cli.talk import TALK

if TYPE_CHECKING:
    from truecast.study.local import Event, Watch
    from truecast.study.results import Row


class Board:
    """One line per variant: what happens to it, then its speed or the reason why it has none."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._lines: dict[str, TaskID] = {}

    def __call__(self, name: str, event: Event, row: Row | None) -> None:
        """Shows what happens to a variant."""
        if name not in self._lines:
            self._lines[name] = self._display.add_task(name, start=False, total=1, text="")
        line = self._lines[name]
        if event != "waiting":
            self._display.start_task(line)
        self._display.update(line, text=outcome(row) if row is not None else event)
        if row is not None:
            self._display.update(line, completed=1)
            self._display.stop_task(line)


def outcome(row: Row) -> str:
    """What a finished variant is told by: its latency in the first cell, or why it failed."""
    if not row.measured:
        return row.reason
    cell = row.cells[0]
    return f"{cell.p50:#.3g} ms at batch {cell.batch} of {cell.length} tokens"


def _line(name: str, event: Event, row: Row | None) -> None:
    if event != "waiting":
        print(f"{SIGN} {name}: {event if row is None else outcome(row)}", file=sys.stderr, flush=True)


@contextmanager
def board(title: str) -> Iterator[Watch | None]:
    """A display under `title`; where standard output or standard error is no terminal, a line for each event.

    None where a quiet command was asked for.
    """
    talk = TALK.get()
    if talk.quiet:
        yield None
        return
    if talk.verbose or not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield _line
        return
    console = Console(stderr=True)
    console.print(title, markup=False, highlight=False)
    name, text = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[text]"))
    with Progress(SpinnerColumn(finished_text=" "), name, TimeElapsedColumn(), text, console=console) as display:
        yield Board(display)
