"""Places names beside dots so that no name lies on another, or on a dot.

Data flow: dots and names → for each dot, highest first, the nearest free place among those beside and around it →
labels, with a thin line back to the dot where a name had to move away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LETTER, LINE = 7.2, 13.0
"""Pixels of an average letter and of a line of the 12 px type that the charts are written in."""
REACH = 10.0
"""From a dot's centre to its name."""
DOT = 8.0
"""Half the side of the square around a dot that stays free."""
RISE = 4.0
"""From the middle of a line of text down to its baseline."""


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels; y grows downward."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def holds(self, other: Box) -> bool:
        """Whether `other` lies inside."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True)
class Label:
    """A name with the start of its baseline; `leader` is the line (x1, y1, x2, y2) from the dot where one is needed."""

    text: str
    x: float
    y: float
    leader: tuple[float, float, float, float] | None = None

    @property
    def box(self) -> Box:
        """What the name covers."""
        return Box(self.x, self.y + RISE - LINE, self.x + LETTER * len(self.text), self.y + RISE)


def place_labels(dots: Sequence[tuple[float, float]], names: Sequence[str], frame: Box) -> list[Label]:
    """A label for every dot (x, y), in the order of the dots; inside `frame` where its name fits there."""
    taken = [Box(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in dots]
    placed: dict[int, Label] = {}
    for number in sorted(range(len(dots)), key=lambda one: (dots[one][1], dots[one][0])):
        choices = list(_choices(dots[number], names[number], frame))
        placed[number] = min(choices, key=lambda label: sum(label.box.overlap(box) for box in taken))
        taken.append(placed[number].box)
    return [placed[number] for number in range(len(dots))]


def _choices(dot: tuple[float, float], name: str, frame: Box) -> Iterator[Label]:
    """The places of a name, the best first: right, left, then line by line further below and above."""
    x, y = dot
    width = LETTER * len(name)
    last = max(frame.left, frame.right - width)
    right, left = min(x + REACH, last), max(frame.left, x - REACH - width)
    yield Label(name, right, y + RISE)
    yield Label(name, left, y + RISE)
    for step in range(1, int((frame.bottom - frame.top) / LINE) + 1):
        for moved in (y + step * LINE, y - step * LINE):
            for start in (right, left):
                leader = (x, y, start if start >= x else start + width, moved)
                label = Label(name, start, moved + RISE, leader if step > 1 else None)
                if frame.holds(label.box):
                    yield label
