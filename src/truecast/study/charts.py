"""The charts of a report as inline SVG: score against latency with the Pareto front, and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from truecast.study.pareto import Point, front, points
from truecast.study.results import Report

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 820, 420, 80, 50, 20, 170
TORCH, ONNX, FRONT = "#8a94a3", "#2a6fb8", "#22aa66"
BAR, GAP, LABEL = 18, 8, 230
TICKS = 5
LABEL_WIDTH, LABEL_HEIGHT = 150, 13


def scatter_chart(report: Report) -> str:
    """Median milliseconds per row (logarithmic) against the score, every variant a dot, the front a line."""
    found = points(report.rows)
    if not found:
        return "<p>Nothing was measured.</p>"
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
    bottom, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    for step in range(TICKS):
        share = step / (TICKS - 1)
        cost = math.exp(axes.left + share * (axes.right - axes.left))
        score = axes.low + share * (axes.high - axes.low)
        yield _line(axes.x(cost), TOP, axes.x(cost), bottom, "#e6eaef")
        yield _line(LEFT, axes.y(score), end, axes.y(score), "#e6eaef")
        yield _text(axes.x(cost), bottom + 18, f"{cost:.3g}", "middle")
        yield _text(LEFT - 8, axes.y(score) + 4, f"{score:.4f}", "end")
    yield _text((LEFT + end) / 2, HEIGHT - 10, "milliseconds per row (median, mean over all cells)", "middle")
    yield _text(LEFT, TOP - 7, "score (mean over the heads; without labels the mean cosine)", "start")
    path = " ".join(f"{axes.x(point.cost)},{axes.y(point.score)}" for point in best)
    yield f'<polyline points="{path}" fill="none" stroke="{FRONT}" stroke-width="2" stroke-dasharray="5 4"/>'
    names = {point.name for point in best}
    torch = {row.variant.name for row in report.rows if row.variant.kind == "torch"}
    places = [(axes.x(one.cost), axes.y(one.score)) for one in found]
    labels = dict(zip([one.name for one in found], _spread(places), strict=True))
    for point in found:
        x, y, colour = axes.x(point.cost), axes.y(point.score), TORCH if point.name in torch else ONNX
        ring = f' stroke="{FRONT}" stroke-width="3"' if point.name in names else ""
        title = f"{point.name}: {point.cost:.3g} ms per row, score {point.score:.4f}"
        yield f'<circle cx="{x}" cy="{y}" r="6" fill="{colour}"{ring}><title>{escape(title)}</title></circle>'
        yield _text(x + 10, labels[point.name] + 4, point.name, "start")


def _spread(places: Sequence[tuple[float, float]]) -> list[float]:
    """Heights of labels at (x, y), moved down where they would lie on one above."""
    moved = [y for _, y in places]
    done: list[int] = []
    for one in sorted(range(len(places)), key=lambda number: (places[number][1], places[number][0])):
        for above in done:
            if abs(places[above][0] - places[one][0]) < LABEL_WIDTH and abs(moved[one] - moved[above]) < LABEL_HEIGHT:
                moved[one] = moved[above] + LABEL_HEIGHT
        done.append(one)
    return moved


def memory_chart(report: Report) -> str:
    """A bar per variant: anonymous memory, and file-backed memory behind it."""
    rows = [(row.variant.name, row.footprint) for row in report.rows if row.footprint is not None]
    if not rows:
        return "<p>Nothing was measured.</p>"
    largest = max(found.anonymous + found.file_backed for _, found in rows)
    scale = (WIDTH - LABEL - 150) / largest
    height = len(rows) * (BAR + GAP) + 30
    lines = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img">']
    for place, (name, found) in enumerate(rows):
        y = place * (BAR + GAP)
        own, mapped = round(found.anonymous * scale, 1), round(found.file_backed * scale, 1)
        lines.append(_text(LABEL - 8, y + 13, name, "end"))
        lines.append(f'<rect x="{LABEL}" y="{y}" width="{own}" height="{BAR}" fill="{ONNX}"/>')
        lines.append(f'<rect x="{LABEL + own}" y="{y}" width="{mapped}" height="{BAR}" fill="#b9d1ea"/>')
        text = f"{found.anonymous / 1e6:.0f} + {found.file_backed / 1e6:.0f} MB"
        lines.append(_text(LABEL + own + mapped + 6, y + 13, text, "start"))
    lines.append(_text(LABEL, height - 8, "anonymous (dark) + file-backed (light), of the whole process", "start"))
    return "\n".join((*lines, "</svg>"))


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
