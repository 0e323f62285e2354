"""Each check that the proof can write has a line of meaning in docs/proof.md, and each line stands for a check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.check_names import ANYTHING, Sources
from tests.docs.manual import REPOSITORY
from truecast.artifact import read_manifest

ROW = re.compile(r"^\| (?P<name>[^|]+?) \| (?P<meaning>[^|]+?) \|$", re.MULTILINE)
TABLE = re.compile(r"^## Every check\n(?P<body>.*?)^## ", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def rows() -> set[str]:
    table = TABLE.search((REPOSITORY / "docs" / "proof.md").read_text())
    assert table is not None
    return {row["name"] for row in ROW.finditer(table["body"])} - {"check"}


@pytest.fixture(scope="module")
def names() -> set[str]:
    return Sources.read().names() - {ANYTHING}


def covers(row: str, name: str) -> bool:
    """Whether a row's name is this one, where `…` stands for any part of either."""
    pairs = ((row, name), (name, row))
    return any(re.fullmatch(".+".join(map(re.escape, one.split(ANYTHING))), other) for one, other in pairs)


def test_every_check_that_the_proof_can_write_has_a_line_of_meaning(names: set[str], rows: set[str]) -> None:
    assert not {name for name in names if not any(covers(row, name) for row in rows)}


def test_every_line_of_meaning_is_one_of_a_check(names: set[str], rows: set[str]) -> None:
    assert not {row for row in rows if not any(covers(row, name) for name in names)}


def test_the_checks_of_an_artifact_have_their_lines(pristine_artifact: Path, rows: set[str]) -> None:
    found = {check.name for check in read_manifest(pristine_artifact).certificate.checks}
    assert found and not {name for name in found if not any(covers(row, name) for row in rows)}


def test_names_are_followed_to_where_they_are_given(names: set[str]) -> None:
    assert {
        "one thread or several",
        "kernels",
        "price of the int… cache, mean KL",
        "… at the end of the context",
    } <= names
