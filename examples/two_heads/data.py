"""Makes the example's rows of Debian's fortunes: `data.py FOLDER`, the folder with the fortunes' files.

A fortune's category is the file that it is in; it is attributed when it ends in a line `-- Name`, which is cut off.
Both labels are the collectors' own. Writes fortunes-train.jsonl and fortunes-test.jsonl beside this file; every fourth
fortune, by a digest of its text, is for testing.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

CATEGORIES = ("art", "computers", "education", "food", "law", "politics", "science", "sports", "work")
ATTRIBUTION = re.compile(r"^\s*-- \S", re.MULTILINE)
SHORTEST, LONGEST = 20, 500
"""Characters of a text."""
TEST_SHARE = 4


def rows(folder: Path) -> Iterator[dict[str, str | int]]:
    """The usable fortunes of all categories, each text once."""
    seen: set[str] = set()
    for category in CATEGORIES:
        for fortune in (folder / category).read_text(encoding="utf-8").split("\n%\n"):
            found = ATTRIBUTION.search(fortune)
            text = " ".join((fortune[: found.start()] if found else fortune).split())
            if SHORTEST <= len(text) <= LONGEST and text not in seen:
                seen.add(text)
                yield {"text": text, "category": category, "attributed": int(found is not None)}


def is_for_testing(text: str) -> bool:
    """One text in four, the same ones every time."""
    return hashlib.sha256(text.encode()).digest()[0] % TEST_SHARE == 0


def write(folder: Path, out: Path) -> None:
    """Writes both files."""
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for row in rows(folder):
        part = "test" if is_for_testing(str(row["text"])) else "train"
        parts[part].append(json.dumps(row, ensure_ascii=False))
    for name, lines in parts.items():
        (out / f"fortunes-{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"fortunes-{name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(__file__).parent)
