"""The tables of a report, once for all forms: headings, and rows of texts with the numbers to sort them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from truecast.study.results import Footprint, Head, Report, Row, speed_ratio


@dataclass(frozen=True)
class Entry:
    """One field: its text, and its value to sort by (None: behind all others)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Headings and rows; the first column names things, the others are numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]


def summary(report: Report) -> Table:
    """One row per variant: speed, scores, memory, size."""
    columns = [*_speed_columns(report), *_score_columns(report), *FOOTPRINT_COLUMNS]
    rows = [(Entry(row.variant.name), *(column(row) for _, column in columns)) for row in report.rows if row.measured]
    return Table("Variants", ("variant", *(name for name, _ in columns)), tuple(rows))


def failures(report: Report) -> Table:
    """The variants that did not work, with the reasons."""
    rows = tuple((Entry(row.variant.name), Entry(row.reason)) for row in report.rows if not row.measured)
    return Table("Did not work", ("variant", "reason"), rows)


def latencies(report: Report) -> Table:
    """One row per variant and cell."""
    headings: tuple[str, ...] = ("variant", "threads", "batch", "tokens", "p50 ms", "p90 ms", "p99 ms")
    headings += ("p50 ms per row", "p90 ms per row", "p99 ms per row", "rows/s", "speed (torch fp32 = 1)")
    rows = []
    for row in report.rows:
        for cell in row.cells:
            other = report.reference.cell(cell.place)
            numbers = (cell.p50, cell.p90, cell.p99, cell.p50_per_sample, cell.p90_per_sample, cell.p99_per_sample)
            rows.append(
                (
                    Entry(row.variant.name),
                    *(Entry(str(size), size) for size in cell.place),
                    *(_number(number) for number in (*numbers, cell.samples_per_second)),
                    _fixed(other.p50 / cell.p50 if other else None, 2),
                )
            )
    return Table("Latency", headings, tuple(rows))


Column = tuple[str, Callable[[Row], Entry]]


def _speed_columns(report: Report) -> list[Column]:
    return [("speed (torch fp32 = 1)", lambda row: _fixed(speed_ratio(row, report.reference), 2))]


def _score_columns(report: Report) -> list[Column]:
    """The scores of each head, then the cosines to float32."""
    columns: list[Column] = []
    for head in report.reference.heads:
        if head.accuracy is None:
            columns.append((f"{head.output} Spearman", _of_head(head.output, lambda one: one.spearman)))
            continue
        columns.append((f"{head.output} accuracy", _of_head(head.output, lambda one: one.accuracy)))
        columns.append((f"{head.output} 95 % interval", _interval_of(head.output)))
        columns.append((f"{head.output} macro F1", _of_head(head.output, lambda one: one.macro_f1)))
    for likeness in report.reference.likenesses:
        columns.append((f"{likeness.output} cosine", _of_likeness(likeness.output, "cosine")))
        columns.append((f"{likeness.output} lowest cosine", _of_likeness(likeness.output, "lowest_cosine")))
        if likeness.output not in {head.output for head in report.reference.heads}:
            columns.append((f"{likeness.output} Spearman of similarities", _of_likeness(likeness.output, "spearman")))
    return columns


def _of_head(output: str, value: Callable[[Head], float | None]) -> Callable[[Row], Entry]:
    return lambda row: _fixed(next((value(head) for head in row.heads if head.output == output), None), 4)


def _interval_of(output: str) -> Callable[[Row], Entry]:
    def entry(row: Row) -> Entry:
        found = next((head.interval for head in row.heads if head.output == output), None)
        return Entry("") if found is None else Entry(f"{found[0]:.3f} to {found[1]:.3f}", found[0])

    return entry


def _of_likeness(output: str, field: str) -> Callable[[Row], Entry]:
    return lambda row: _fixed(next((getattr(one, field) for one in row.likenesses if one.output == output), None), 5)


def _of_footprint(value: Callable[[Footprint], Entry]) -> Callable[[Row], Entry]:
    return lambda row: Entry("") if row.footprint is None else value(row.footprint)


FOOTPRINT_COLUMNS: Sequence[Column] = (
    ("anonymous MB", _of_footprint(lambda it: _megabytes(it.anonymous))),
    ("of it without a model", _of_footprint(lambda it: _megabytes(it.bare_anonymous))),
    ("file-backed MB", _of_footprint(lambda it: _megabytes(it.file_backed))),
    ("peak MB", _of_footprint(lambda it: _megabytes(it.peak))),
    ("device MB", _of_footprint(lambda it: Entry("") if it.device is None else _megabytes(it.device))),
    ("disk MB", _of_footprint(lambda it: _megabytes(it.disk))),
    ("load s", _of_footprint(lambda it: _fixed(it.load_seconds, 2))),
)


def without_empty(table: Table) -> Table:
    """The table without columns that no row fills."""
    kept = [place for place, _ in enumerate(table.headings) if any(row[place].text for row in table.rows)]
    return _columns(table, kept)


def fitted(table: Table, width: int) -> list[Table]:
    """The table in parts that are at most `width` characters wide, each with the first column; no field is cut.

    A heading may be broken between its words. A part has at least one column beside the first, however wide.
    """
    sizes = column_widths(table)
    parts: list[list[int]] = []
    room = 0
    for place in range(1, len(sizes)):
        needed = sizes[place] + BORDER
        if not parts or needed > room:
            parts.append([])
            room = width - 1 - sizes[0] - BORDER
        parts[-1].append(place)
        room -= needed
    return [_columns(table, [0, *part]) for part in parts]


BORDER = 3
"""Characters that a column takes beside its text: a space on either side, and a line."""


def column_widths(table: Table) -> list[int]:
    """Characters of every column's widest field, or of the longest word of its heading."""
    words = [max(map(len, heading.split())) for heading in table.headings]
    return [max(words[place], *(len(row[place].text) for row in table.rows), 1) for place in range(len(words))]


def _columns(table: Table, places: Sequence[int]) -> Table:
    rows = tuple(tuple(row[place] for place in places) for row in table.rows)
    return Table(table.title, tuple(table.headings[place] for place in places), rows)


def _megabytes(size: int) -> Entry:
    return Entry(f"{size / 1e6:.1f}", size)


def _fixed(value: float | None, digits: int) -> Entry:
    return Entry("" if value is None else f"{value:.{digits}f}", value)


def _number(value: float) -> Entry:
    """Three digits that count."""
    if value >= 100:
        return Entry(f"{value:.0f}", value)
    return Entry(f"{value:#.3g}", value)
