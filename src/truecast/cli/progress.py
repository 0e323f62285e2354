"""Progress of long work on a terminal, on standard error; silent when the output goes elsewhere."""

from __future__ import annotations

import sys
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
    """One line per stage; a stage of a single step has no bar to fill, only the time it takes."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` steps of `stage` are done."""
        if stage not in self._tasks:
            self._tasks[stage] = self._display.add_task(stage, total=None)
        shown = None if total <= 1 and done < total else total
        self._display.update(self._tasks[stage], completed=done, total=shown)


@contextmanager
def stages(title: str) -> Iterator[Report | None]:
    """A display of stages under `title`, or None when standard output or standard error is no terminal."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield None
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
        yield Stages(display)
