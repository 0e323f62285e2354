"""The three forms of a report, written into the study's folder."""

from __future__ import annotations

from pathlib import Path

from truecast.study.report_html import html
from truecast.study.report_markdown import markdown
from truecast.study.results import Report
from truecast.study.storing import replace_text


def write_reports(report: Report, folder: Path) -> None:
    """Writes report.json, report.md and report.html."""
    replace_text(folder / "report.json", report.model_dump_json(indent=1) + "\n")
    replace_text(folder / "report.md", markdown(report))
    replace_text(folder / "report.html", html(report))
