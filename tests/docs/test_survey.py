"""The survey of published files, which `bench/survey.py` writes."""

from __future__ import annotations

import json

from tests.docs.manual import REPOSITORY
from truecast.diagnosis import RULES

PAGE, LINES = REPOSITORY / "docs" / "survey.md", REPOSITORY / "docs" / "survey.jsonl"


def test_every_finding_in_a_published_file_is_judged_and_the_page_has_them_all() -> None:
    files, page = [json.loads(line) for line in LINES.read_text().splitlines()], PAGE.read_text()
    judged = [finding for file in files for finding in file["findings"]]
    assert (len(files) >= 30, len({file["package"] for file in files}) >= 20) == (True, True)
    assert {finding["verdict"] for finding in judged} <= {"true", "false"}
    assert page.count("| true |") + page.count("| false |") == len(judged)
    assert {finding["code"] for finding in judged} <= {rule.code for rule in RULES}
