"""Reading a page of the manual: its fenced blocks, what each is, and what it is said to print.

Blocks are told apart by the words behind the fence:

| words | what happens |
|---|---|
| `sh` | each line runs in the page's folder; `status=N` behind it is the exit status it must give |
| `python` | runs as a cell of a notebook: one namespace for the page, and a last expression is shown |
| … `needs=M` | is left out where the module M is not installed |
| `sh elsewhere` | for another machine or a long time; only its `make` targets and file names are checked |
| `text` | right behind one of the above: what it prints, where `…` stands for anything |
| `text elsewhere` | what another input prints, from a real run |
| others | are not looked at |
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
GENERATED = {"conformance.md", "survey.md"}
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
WRITTEN = [page for page in PAGES if page.name not in GENERATED]

FENCE = re.compile(r"^```(?P<words>[^\n`]*)\n(?P<body>.*?)^```\s*?$", re.DOTALL | re.MULTILINE)
BEGINS = re.compile(r"^<!-- begins with: (?P<names>.*?) -->$", re.MULTILINE)
"""A comment that says what a page's folder holds before its first block."""


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is its number in the page, `printed` what the page says it prints (None: it does not)."""

    line: int
    words: tuple[str, ...]
    body: str
    printed: str | None = None

    @property
    def kind(self) -> str:
        """`sh`, `python`, `text`, … or nothing."""
        return self.words[0] if self.words else ""

    @property
    def status(self) -> int:
        """The exit status that every line of a shell block must give."""
        return next((int(word.removeprefix("status=")) for word in self.words if word.startswith("status=")), 0)

    @property
    def possible(self) -> bool:
        """Whether the optional module that the block needs is installed."""
        needed = [word.removeprefix("needs=") for word in self.words if word.startswith("needs=")]
        return all(find_spec(name) is not None for name in needed)


def blocks(text: str) -> list[Block]:
    """All blocks that run or are checked, in order, with what they are said to print."""
    found: list[Block] = []
    end = -1
    for match in FENCE.finditer(text):
        words = tuple(match["words"].split())
        if words == ("text",) and found and not text[end : match.start()].strip():
            found[-1] = replace(found[-1], printed=match["body"])
        else:
            found.append(Block(text.count("\n", 0, match.start()) + 1, words, match["body"]))
        end = match.end()
    return found


def begins_with(text: str) -> list[str]:
    """What the page's folder holds at the start."""
    match = BEGINS.search(text)
    return match["names"].split(", ") if match else []


def commands(body: str) -> Iterator[str]:
    """The commands of a shell block, with continued lines joined."""
    joined = body.replace("\\\n", " ")
    yield from (line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def fits(printed: str, expected: str) -> bool:
    """Whether the text printed is the one expected, where `…` stands for anything and ends of lines do not count."""
    want = r"[\s\S]*?".join(re.escape(part) for part in _trimmed(expected).split("…"))
    return re.fullmatch(want, _trimmed(printed)) is not None


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
