"""Progress at a terminal: what is at work has a name and no full bar."""

from __future__ import annotations

from rich.progress import Progress

from truecast.cli.progress import Stages


def shown(*calls: tuple[str, int, int]) -> dict[str, bool]:
    """Whether each stage is finished, after these reports."""
    display = Progress(disable=True)
    stages = Stages(display)
    for call in calls:
        stages(*call)
    return {task.description: task.finished for task in display.tasks}


def test_a_stage_ends_where_the_next_one_begins() -> None:
    assert shown(("open", 0, 1), ("compare", 0, 3)) == {"open": True, "compare": False}
    assert shown(("open", 0, 1), ("run", 2, 5), ("compare", 0, 3)) == {"open": True, "run": True, "compare": False}


def test_a_stage_that_is_told_twice_ends_once() -> None:
    assert shown(("generate", 0, 1), ("generate", 4, 8), ("end", 0, 1)) == {"generate": True, "end": False}
