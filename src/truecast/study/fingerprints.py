"""What a row depends on, as one digest: a study goes on where nothing that it depends on has changed."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from truecast import __version__
from truecast.artifact import sha256_of
from truecast.study.plan import Plan
from truecast.study.variants import Variant

PACKAGES = ("onnxruntime", "torch", "transformers", "torchao")


def fingerprint(plan: Plan) -> str:
    """The digest of all that every row depends on: model, rows, measuring, and the libraries.

    The files of the model go in by size and time of change, all others by content.
    """
    module = (plan.model.module or "").rpartition(":")[0]
    facts: dict[str, Any] = {
        "model": plan.model.model_dump(mode="json"),
        "files": _folder(plan.model.source),
        "module": sha256_of(Path(module)) if module.endswith(".py") else module,
        "data": plan.data.model_dump(mode="json"),
        "rows": sha256_of(plan.data.file),
        "measure": plan.measure.model_dump(mode="json"),
        "libraries": {"truecast": __version__} | {name: _version(name) for name in PACKAGES},
    }
    return _digest(facts)


def row_key(fingerprint: str, variant: Variant) -> str:
    """The digest of all that one variant's row depends on."""
    files = [Path(variant.settings[name]) for name in ("file", "calibration") if name in variant.settings]
    return _digest([fingerprint, variant.model_dump(mode="json"), [_stamp(file) for file in files]])


def _folder(place: Path) -> Any:
    if place.is_file():
        return _stamp(place)
    return [[str(path.relative_to(place)), *_stamp(path)] for path in sorted(place.rglob("*")) if path.is_file()]


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
