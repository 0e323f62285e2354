"""The charts of a report as inline SVG: score against latency with the Pareto front, speed, accuracy, and memory.

Colours are classes of the report's style sheet, which has them for a light and for a dark background.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from truecast.study.labels import Box, place_labels
from truecast.study.pareto import Point, front, points
from truecast.study.results import Report, speed_ratio
from truecast.study.verdict import clock_noise

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 820, 420, 80, 50, 20, 170
BAR, GAP, LABEL, VALUE = 18, 8, 230, 150
TICKS = 5
NOTHING = "<p>Nothing was measured.</p>"


def scatter_chart(report: Report) -> str:
    """Median milliseconds per row (logarithmic) against the score, every variant a dot, the front a line."""
    found = points(report.rows)
    if not found:
        return NOTHING
    return "\n".join((f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', *_scatter(found, report), "</svg>"))


class _Axes:
    """Where values lie in the picture; both axes have a margin, and a single value gets one, too."""

    def __init__(self, found: Sequence[Point]) -> None:
        costs, scores = [math.log(one.cost) for one in found], [one.score for one in found]
        self.left, self.right = min(costs) - 0.1, max(costs) + 0.1
        margin = 0.1 * (max(scores) - min(scores)) or 0.01
        self.low, self.high = min(scores) - margin, max(scores) + margin

    def x(self, cost: float) -> float:
        share = (math.log(cost) - self.left) / (self.right - self.left)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, score: float) -> float:
        share = (score - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)


def _scatter(found: Sequence[Point], report: Report) -> Iterator[str]:
    axes, best = _Axes(found), front(found)
    yield from _grid(axes)
    path = " ".join(f"{axes.x(point.cost)},{axes.y(point.score)}" for point in best)
    yield f'<polyline points="{path}" class="front" stroke-dasharray="5 4"/>'
    names = {point.name for point in best}
    torch = {row.variant.name for row in report.rows if row.variant.kind == "torch"}
    places = [(axes.x(one.cost), axes.y(one.score)) for one in found]
    for point, (x, y) in zip(found, places, strict=True):
        kind = "torch" if point.name in torch else "onnx"
        title = f"{point.name}: {point.cost:.3g} ms per row, score {point.score:.4f}"
        side = " best" if point.name in names else ""
        yield f'<circle cx="{x}" cy="{y}" r="6" class="{kind}{side}"><title>{escape(title)}</title></circle>'
    frame = Box(LEFT, TOP, WIDTH, HEIGHT - BOTTOM)
    for label in place_labels(places, [one.name for one in found], frame):
        if label.leader is not None:
            yield _line(*label.leader, "leader")
        yield _text(label.x, label.y, label.text, "start")


def _grid(axes: _Axes) -> Iterator[str]:
    bottom, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    for step in range(TICKS):
        share = step / (TICKS - 1)
        cost = math.exp(axes.left + share * (axes.right - axes.left))
        score = axes.low + share * (axes.high - axes.low)
        yield _line(axes.x(cost), TOP, axes.x(cost), bottom, "grid")
        yield _line(LEFT, axes.y(score), end, axes.y(score), "grid")
        yield _text(axes.x(cost), bottom + 18, f"{cost:.3g}", "middle")
        yield _text(LEFT - 8, axes.y(score) + 4, f"{score:.4f}", "end")
    yield _text((LEFT + end) / 2, HEIGHT - 10, "milliseconds per row (median, mean over all cells)", "middle")
    yield _text(LEFT, TOP - 7, "score (mean over the heads; without labels the mean cosine)", "start")


def speed_chart(report: Report) -> str:
    """A bar per variant: how many times faster than PyTorch in float32, with the clock's noise on either side."""
    noise = clock_noise(report.drift)
    found = [(row, ratio) for row in report.rows if (ratio := speed_ratio(row, report.reference)) is not None]
    if not found:
        return NOTHING
    scale = (WIDTH - LABEL - VALUE) / (max(ratio for _, ratio in found) * (1 + noise))
    lines: list[str] = []
    for place, (row, ratio) in enumerate(found):
        kind = "torch" if row.variant.kind == "torch" else "onnx"
        lines += _bar(place, row.variant.name, [(ratio * scale, kind)])
        low, high = ratio / (1 + noise) * scale, ratio * (1 + noise) * scale
        lines += _whisker(place, low, high)
        lines.append(_text(LABEL + high + 6, _top(place) + 13, f"{ratio:.2f}", "start"))
    words = f"speed over PyTorch in float32; the whiskers are the clock's noise, {noise:.0%}"
    return _bars(lines, len(found), words)


def accuracy_chart(report: Report) -> str:
    """A bar per variant and labelled output, with its 95 % interval; nothing where no output has classes."""
    lines: list[str] = []
    place, scale = 0, WIDTH - LABEL - VALUE
    for head in report.reference.heads:
        for row in report.rows:
            own = next((one for one in row.heads if one.output == head.output), None)
            if own is None or own.accuracy is None or own.interval is None:
                continue
            kind = "torch" if row.variant.kind == "torch" else "onnx"
            low, high = own.interval
            lines += _bar(place, f"{row.variant.name}, {head.output}", [(own.accuracy * scale, kind)])
            lines += _whisker(place, low * scale, high * scale)
            text = f"{own.accuracy:.3f} ({low:.3f} to {high:.3f})"
            lines.append(_text(LABEL + high * scale + 6, _top(place) + 13, text, "start"))
            place += 1
    return _bars(lines, place, "accuracy; the whiskers are the 95 % interval for so many rows") if place else ""


def memory_chart(report: Report) -> str:
    """A bar per variant: anonymous memory, and file-backed memory behind it."""
    rows = [(row.variant.name, row.footprint) for row in report.rows if row.footprint is not None]
    if not rows:
        return NOTHING
    scale = (WIDTH - LABEL - VALUE) / max(found.process for _, found in rows)
    lines: list[str] = []
    for place, (name, found) in enumerate(rows):
        lines += _bar(place, name, [(found.anonymous * scale, "onnx"), (found.file_backed * scale, "mapped")])
        text = f"{found.anonymous / 1e6:.0f} + {found.file_backed / 1e6:.0f} MB"
        lines.append(_text(LABEL + found.process * scale + 6, _top(place) + 13, text, "start"))
    return _bars(lines, len(rows), "anonymous (dark) + file-backed (light), of the whole process")


def _top(place: int) -> int:
    return place * (BAR + GAP)


def _bar(place: int, name: str, parts: Sequence[tuple[float, str]]) -> Iterator[str]:
    """A name and its bar of one or more parts, each a length and a class."""
    yield _text(LABEL - 8, _top(place) + 13, name, "end")
    start = float(LABEL)
    for length, kind in parts:
        width = round(length, 1)
        yield f'<rect x="{start:.1f}" y="{_top(place)}" width="{width}" height="{BAR}" class="{kind}"/>'
        start += width


def _whisker(place: int, low: float, high: float) -> Iterator[str]:
    """A line from `low` to `high` over a bar, with an end at either side."""
    top, middle = _top(place) + 4, _top(place) + BAR / 2
    left, right = round(LABEL + low, 1), round(LABEL + high, 1)
    yield _line(left, middle, right, middle, "whisker")
    yield _line(left, top, left, top + BAR - 8, "whisker")
    yield _line(right, top, right, top + BAR - 8, "whisker")


def _bars(lines: Sequence[str], count: int, words: str) -> str:
    height = _top(count) + 30
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img">'
    return "\n".join((head, *lines, _text(LABEL, height - 8, words, "start"), "</svg>"))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
