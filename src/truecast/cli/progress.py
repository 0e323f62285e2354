"""Progress of long work, on standard error: bars on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from truecast.cli.talk import TALK

SIGN = "·"
"""What lines of progress begin with, so that they can be told from an error."""
Report = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done and the amount in all."""


class RateColumn(ProgressColumn):
    """Steps per second of a task; empty while nothing is known."""

    def render(self, task: Task) -> Text:
        """The rate with a unit prefix, as `35.2 M/s`."""
        speed = task.finished_speed or task.speed
        if not speed or task.total is None or task.total <= 1:
            return Text("")
        unit, suffix = pick_unit_and_suffix(int(speed), ["", "k", "M", "G"], 1000)
        return Text(f"{speed / unit:.1f} {suffix}/s")


class Stages:
    """One line per stage; a stage of a single step has no bar to fill, only the time it takes.

    A stage ends where the next one begins, at the latest: what is still to be seen at work is at work.
    """

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}
        self._latest: TaskID | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` steps of `stage` are done."""
        if stage not in self._tasks:
            self.end()
            self._tasks[stage] = self._display.add_task(stage, total=None)
        self._latest = self._tasks[stage]
        shown = None if total <= 1 and done < total else total
        self._display.update(self._tasks[stage], completed=done, total=shown)

    def end(self) -> None:
        """Ends the stage under way, where its last step was not told."""
        for task in self._display.tasks:
            if task.id == self._latest and not task.finished:
                total = task.total or 1
                self._display.update(task.id, completed=total, total=total)


class Lines:
    """A line on standard error when a stage begins; `timed`, when it ends, too."""

    def __init__(self, timed: bool) -> None:
        self._timed, self._stage, self._began = timed, "", 0.0
        self._seen: set[str] = set()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Notes that `done` of `total` steps of `stage` are done."""
        if stage in self._seen:
            return
        self.end()
        self._seen.add(stage)
        self._stage, self._began = stage, time.monotonic()
        print(f"{SIGN} {stage}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Says how long the stage under way took."""
        if self._timed and self._stage:
            print(f"{SIGN} {self._stage}: {time.monotonic() - self._began:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def stages(title: str) -> Iterator[Report | None]:
    """A display of stages under `title`; where standard output or standard error is no terminal, a line for each.

    None where a quiet command was asked for.
    """
    talk = TALK.get()
    if talk.quiet:
        yield None
        return
    if talk.verbose or not (sys.stdout.isatty() and sys.stderr.isatty()):
        lines = Lines(talk.verbose)
        yield lines
        lines.end()
        return
    console = Console(stderr=True)
    console.print(title, markup=False, highlight=False)
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        shown = Stages(display)
        yield shown
        shown.end()
