"""The folder of a study: a result file per variant, each written at once and read again when the study goes on.

OUT/study.json               marks the folder
OUT/rows/VARIANT.json        the finished rows
OUT/variants/VARIANT/        logs of the variant's processes, and its artifact
OUT/reference.npz            what PyTorch computed in float32
OUT/report.{json,md,html}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from truecast.errors import InputError
from truecast.study.results import Row
from truecast.study.variants import Variant

MARK = "study.json"


class Store:
    """A study's folder, made when it is not there; raises InputError for a folder that is something else."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{out} is a file, not a folder; choose another place.")
        if self.out.is_dir() and any(self.out.iterdir()) and not _is_study(self.out):
            raise InputError(f"{out} is no folder of a study, so nothing is written to it; choose another folder.")
        (self.out / "rows").mkdir(parents=True, exist_ok=True)
        if not (self.out / MARK).is_file():
            (self.out / MARK).write_text('{"schema_version": 1}\n', encoding="utf-8")

    @property
    def reference(self) -> Path:
        """Where the float32 outputs are kept."""
        return self.out / "reference.npz"

    def folder(self, variant: Variant) -> Path:
        """The variant's own folder."""
        return self.out / "variants" / variant.slug

    def kept(self, variant: Variant, key: str) -> Row | None:
        """The finished row of a variant, None when there is none of this key."""
        try:
            row = Row.model_validate_json(self._file(variant).read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None
        return row if row.key == key else None

    def keep(self, row: Row) -> None:
        """Writes a finished row, whole or not at all."""
        replace_text(self._file(row.variant), row.model_dump_json(indent=1) + "\n")

    def prepared(self, variant: Variant, key: str) -> dict[str, Any] | None:
        """What preparing a variant gave, None when that was not done with this key."""
        try:
            found = json.loads((self.folder(variant) / "prepared.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        answer: dict[str, Any] = found.get("answer", {})
        return answer if found.get("key") == key else None

    def keep_prepared(self, variant: Variant, key: str, answer: dict[str, Any]) -> None:
        """Notes that a variant is prepared, with what that gave."""
        replace_text(self.folder(variant) / "prepared.json", json.dumps({"key": key, "answer": answer}))

    def _file(self, variant: Variant) -> Path:
        return self.out / "rows" / f"{variant.slug}.json"


def _is_study(folder: Path) -> bool:
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(mark, dict) and "schema_version" in mark


def replace_text(file: Path, text: str) -> None:
    """Writes a file under another name and renames it, so that nobody sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
