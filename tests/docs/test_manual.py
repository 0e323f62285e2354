"""Every command and every piece of Python in the manual runs, and prints what the manual says it prints."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.docs.folders import begins_with_small, furnish
from tests.docs.manual import GENERATED, PAGES, REPOSITORY, WRITTEN, Block, begins_with, blocks, commands, fits
from truecast.cli import main

SLUG = re.compile(r"[^\w\- ]")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<path>[^)#\s]*)(?:#(?P<heading>[^)\s]+))?\)")
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def runnable(page: Path) -> list[Block]:
    found = blocks(page.read_text())
    return [it for it in found if it.kind in ("sh", "python") and "elsewhere" not in it.words and it.possible]


@pytest.mark.parametrize("page", [page for page in WRITTEN if runnable(page)], ids=lambda page: page.name)
def test_the_page_is_true(
    page: Path,
    pristine: Path,
    pristine_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in begins_with(page.read_text()):
        furnish(tmp_path / name, pristine, pristine_artifact)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in runnable(page):
        capsys.readouterr()
        if block.kind == "python":
            cell(block.body, f"{page.name}:{block.line}", namespace)
        else:
            shell(block, page)
        out, err = capsys.readouterr()
        if block.printed is not None:
            assert fits(out + err, block.printed), f"{page.name}:{block.line} printed\n{out}{err}"


def shell(block: Block, page: Path) -> None:
    """Runs each line; `truecast` in this process, which spares it the time to import PyTorch."""
    for command in commands(block.body):
        words = shlex.split(command, comments=True)
        if words[0] == "truecast" and not {"|", ">", "&&"} & set(words):
            status = main([*words[1:], "--quiet"])  # a reader at a terminal sees a bar, not a line for each stage
        else:
            done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
            print(done.stdout + done.stderr, end="")
            status = done.returncode
        assert status == block.status, f"{page.name}:{block.line}: `{command}` gave status {status}"


def cell(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Runs Python as a notebook does: the value of a last expression is shown."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
        if value is not None:
            print(repr(value))


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_a_reader_is_told_where_a_pages_commands_work(page: Path) -> None:
    text = page.read_text()
    told = f"*The commands below work in `out/manual/{page.stem}`, which `make manual` writes.*"
    assert (told in text) == bool(begins_with_small(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text()):
        if link["path"].startswith(("http://", "https://", "mailto:")):
            continue
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        assert target.exists() or target.name in GENERATED, f"{page.name}: {link[0]}"
        if link["heading"]:
            assert link["heading"] in slugs(target.read_text()), f"{page.name}: {link[0]}"


def slugs(text: str) -> set[str]:
    """The names that headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {SLUG.sub("", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_commands_for_elsewhere_exist(page: Path) -> None:
    for block in blocks(page.read_text()):
        if block.kind == "sh" and "elsewhere" in block.words:
            for command in commands(block.body):
                words = [word for word in shlex.split(command, comments=True) if "=" not in word]
                if words[:1] == ["make"]:
                    assert set(words[1:]) <= MAKE_TARGETS, f"{page.name}:{block.line}: {command}"


def test_wildcards_stand_for_anything_and_nothing_else() -> None:
    assert fits("took 3 s\nin all  \n", "took … s\nin all")
    assert not fits("took 3 s\nin part", "took … s\nin all")
    assert not fits("a b", "a")


def test_blocks_are_found_with_what_they_print() -> None:
    text = "x\n```sh status=2\ntruecast\n```\n\n```text\nno\n```\nwords\n```text\nnothing's\n```\n```python\n1\n```\n"
    assert [(it.kind, it.status, it.printed) for it in blocks(text)] == [
        ("sh", 2, "no\n"),
        ("text", 0, None),
        ("python", 0, None),
    ]
