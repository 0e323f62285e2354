"""Reports: well-formed, self-contained, and true to the rows, whatever characters they hold."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations, groupby
from pathlib import Path

import pytest

from tests.study.building import PLAN, plan_of, row
from truecast.study.charts import memory_chart, scatter_chart, speed_chart
from truecast.study.labels import Box, place_labels
from truecast.study.plan import Accept
from truecast.study.report_html import html
from truecast.study.report_markdown import escaped, markdown
from truecast.study.reports import write_reports
from truecast.study.results import Noted, Report, Row
from truecast.study.tables import BORDER, column_widths, failures, fitted, latencies, summary, without_empty
from truecast.study.verdict import judge

HOSTILE = "<script>alert('x')</script> & \"quotes\" | pipes ]]>"
FINDING = Noted(
    code="float64", severity="warning", title=HOSTILE, count=2, detail="a & b", cost="Twice the time.", fix="Cast it."
)
CELLS = {(1, 1, 32): 10.0, (1, 32, 128): 400.0}


def report(folder: Path, *rows: Row) -> Report:
    given = rows or (
        row("torch fp32", CELLS),
        row("torchao int8", failed=HOSTILE),
        row("onnx fp32", {place: 0.5 * ms for place, ms in CELLS.items()}),
        row("onnx int8", {place: 0.2 * ms for place, ms in CELLS.items()}, accuracy=0.7, findings=(FINDING,)),
    )
    plan = plan_of(folder, f'name = "A <study> & more"\n{PLAN}').model_dump(mode="json")
    verdict = judge(given, Accept(), 1.02)
    return Report(name="A <study> & more", plan=plan, rows=given, drift=1.02, verdict=verdict)


def document(folder: Path, *rows: Row) -> ElementTree.Element:
    text = html(report(folder, *rows))
    assert text.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


def test_html_is_well_formed_and_fetches_nothing(tmp_path: Path) -> None:
    root = document(tmp_path)
    for element in root.iter():
        assert element.tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action", "data"} & set(element.attrib), element.tag
    text = html(report(tmp_path))
    assert not re.search(r"https?:|//\w|url\(|@import|fetch\(|XMLHttpRequest", text)
    assert len(list(root.iter("script"))) == 1


def test_what_is_not_ours_is_text_and_never_markup(tmp_path: Path) -> None:
    root = document(tmp_path)
    assert HOSTILE in "".join(root.itertext())
    assert root.findtext(".//h1") == "A <study> & more"


def test_html_has_tables_charts_findings_and_versions(tmp_path: Path) -> None:
    root = document(tmp_path)
    titles = [element.text for element in root.iter("h2")]
    assert titles == [
        *("Variants", "Did not work", "Score against latency", "Speed", "Accuracy", "Memory", "Latency", "Findings"),
        *("How it was measured", "Versions and processor"),
    ]
    tables = [table for table in root.iter("table") if table.get("class") == "sortable"]
    assert len(tables) == 2
    for table in tables:
        widths = {len(list(line)) for line in table.iter("tr")}
        assert len(widths) == 1
        assert all(field.get("data-value") is not None for line in table.findall("./tbody/tr") for field in line[1:])
    summary_of = [element.text for element in root.iter("summary")]
    assert summary_of == ["onnx fp32: 0", "onnx int8: 1"]
    assert "float64" in [element.text for element in root.iter("code")]
    assert "1.31" in "".join(root.itertext())


def test_the_chart_shows_every_point_and_the_front(tmp_path: Path) -> None:
    root = document(tmp_path)
    scatter, speed, accuracy, memory = root.iter("svg")
    circles = list(scatter.iter("circle"))
    assert len(circles) == 3
    (line,) = scatter.iter("polyline")
    corners = {tuple(map(float, corner.split(","))) for corner in line.attrib["points"].split()}
    ringed = {(float(it.attrib["cx"]), float(it.attrib["cy"])) for it in circles if "best" in it.attrib["class"]}
    assert corners == ringed
    assert len(corners) == 2  # float32 in ONNX beats it in PyTorch; int8 is cheaper still and worse
    box = [float(number) for number in scatter.attrib["viewBox"].split()]
    assert all(0 < float(it.attrib["cx"]) < box[2] and 0 < float(it.attrib["cy"]) < box[3] for it in circles)
    assert len(list(memory.iter("rect"))) == 6
    assert len(list(speed.iter("rect"))) == len(list(accuracy.iter("rect"))) == 3
    assert "0.700 (0.382 to 0.898)" in [text.text for text in accuracy.iter("text")]


def test_speeds_have_the_clocks_noise_on_either_side(tmp_path: Path) -> None:
    noisy = report(tmp_path).model_copy(update={"drift": 1.25})
    chart = ElementTree.fromstring(speed_chart(noisy))
    bars = [float(bar.attrib["x"]) + float(bar.attrib["width"]) for bar in chart.iter("rect")]
    start = float(next(chart.iter("rect")).attrib["x"])
    ends = [(float(line.attrib["x1"]), float(line.attrib["x2"])) for line in chart.iter("line")][::3]
    for bar, (low, high) in zip(bars, ends, strict=True):
        assert (high - start) / (bar - start) == pytest.approx(1.25, abs=0.01)
        assert (bar - start) / (low - start) == pytest.approx(1.25, abs=0.01)


def test_no_name_lies_on_another_or_on_a_dot() -> None:
    dots = [(400.0 + x, 200.0 + y) for x in (0.0, 3.0, 30.0) for y in (0.0, 1.0, 6.0, 12.0)] + [(790.0, 30.0)]
    labels = place_labels(dots, [f"onnx variant {number}" for number in range(len(dots))], Box(80, 20, 820, 370))
    for one, other in combinations(labels, 2):
        assert one.box.overlap(other.box) == 0
    for label in labels:
        assert all(label.box.overlap(Box(x - 6, y - 6, x + 6, y + 6)) == 0 for x, y in dots)
        assert Box(80, 20, 820, 370).holds(label.box)


def test_no_colour_is_fixed_outside_the_style_sheet(tmp_path: Path) -> None:
    text = html(report(tmp_path))
    style, body = text.split("</style>")
    assert "prefers-color-scheme: dark" in style
    assert not re.search(r"#[0-9a-f]{3,6}\b", body.split("<script>")[0])


@pytest.mark.parametrize("width", [80, 100, 240])
def test_a_table_is_parted_rather_than_cut(tmp_path: Path, width: int) -> None:
    whole = without_empty(summary(report(tmp_path)))
    parts = fitted(whole, width)
    assert [heading for part in parts for heading in part.headings[1:]] == list(whole.headings[1:])
    for part in parts:
        assert [row[0] for row in part.rows] == [row[0] for row in whole.rows]
        assert 1 + sum(size + BORDER for size in column_widths(part)) <= width
    assert (len(parts) == 1) == (width == 240)


def test_charts_of_one_point_and_of_none(tmp_path: Path) -> None:
    one = report(tmp_path, row("torch fp32"), row("onnx", failed="x"))
    ElementTree.fromstring(scatter_chart(one))
    ElementTree.fromstring(memory_chart(one))
    assert scatter_chart(one.model_copy(update={"rows": one.rows[1:]})) == "<p>Nothing was measured.</p>"


def test_tables_hold_the_numbers(tmp_path: Path) -> None:
    made = report(tmp_path)
    table = without_empty(summary(made))
    by_name = dict(zip(table.headings, table.rows[2], strict=True))
    assert by_name["variant"].text == "onnx int8"
    assert by_name["speed (torch fp32 = 1)"].text == "5.00"
    assert by_name["logits accuracy"].text == "0.7000"
    assert by_name["anonymous MB"].text == "100.0"
    assert by_name["file-backed MB"].text == "50.0"
    assert "device MB" not in by_name
    times = latencies(made)
    line = dict(zip(times.headings, times.rows[1], strict=True))
    assert [entry.text for entry in times.rows[1]][:7] == ["torch fp32", "1", "32", "128", "400", "440", "480"]
    assert line["p50 ms per row"].value == pytest.approx(12.5)
    assert line["p99 ms per row"].value == pytest.approx(15.0)
    assert line["rows/s"].value == pytest.approx(80.0)
    assert failures(made).rows[0][1].text == HOSTILE


def test_markdown_has_the_verdict_first_and_even_tables(tmp_path: Path) -> None:
    lines = markdown(report(tmp_path)).splitlines()
    assert lines[0] == "# A \\<study> & more"
    assert lines[2].startswith("**Use onnx fp32: 2.00 times as fast")
    tables = [line for line in lines if line.startswith("|")]
    blocks = [list(block) for is_table, block in groupby(lines, lambda line: line.startswith("|")) if is_table]
    assert len(blocks) == 4
    assert all(len({len(re.split(r"(?<!\\)\|", line)) for line in block}) == 1 for block in blocks)
    assert any("pipes" in line and "\\|" in line for line in tables)


def test_findings_say_what_they_are_about(tmp_path: Path) -> None:
    named = FINDING.model_copy(update={"detail": "", "nodes": ("one", "two")})
    text = markdown(
        report(tmp_path, row("torch fp32"), row("onnx", findings=(named,)), row("onnx b", findings=(FINDING,)))
    )
    assert "- onnx: float64 (warning, 2): " in text
    assert ": one, two\n" in text
    assert text.count(": a & b\n") == 1


def test_markdown_leaves_signs_alone() -> None:
    assert escaped("a|b *c* `d`\n<e> [f]") == "a\\|b \\*c\\* \\`d\\` \\<e> \\[f]"


def test_all_forms_are_written(tmp_path: Path) -> None:
    made = report(tmp_path)
    write_reports(made, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.html", "report.json", "report.md"]
    assert Report.model_validate_json((tmp_path / "new" / "report.json").read_text()) == made


def test_numbers_that_are_none_stay_readable_json(tmp_path: Path) -> None:
    broken = row("onnx fp16", cosine=None)
    made = report(tmp_path, row("torch fp32"), broken)
    assert Report.model_validate_json(made.model_dump_json()) == made
    ElementTree.fromstring(html(made).removeprefix("<!DOCTYPE html>\n"))
