"""What the files beside a model set for its session: truecast's manifest and genai_config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from truecast.artifact import MANIFEST_NAME, read_manifest
from truecast.diagnosis.evidence import Settings
from truecast.errors import InputError

GENAI = "genai_config.json"
GIVEN = "the command line"
THREADS = "intra_op_num_threads"


def read_settings(folder: Path, given: Mapping[str, str]) -> Settings:
    """The settings beside a model, and `given` over them."""
    entries: dict[str, str] = {}
    origins: dict[str, str] = {}
    providers: dict[str, str] = {}
    threads: int | None = None
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_manifest(folder)
        entries |= manifest.graph.session_entries
        origins |= dict.fromkeys(manifest.graph.session_entries, MANIFEST_NAME)
    for options in _session_options(folder / GENAI):
        found = {key: str(value) for key, value in options.get("config_entries", {}).items()}
        entries |= found
        origins |= dict.fromkeys(found, GENAI)
        providers |= {name.lower(): GENAI for block in options.get("provider_options", []) for name in block}
        threads = options.get(THREADS, threads)
    return Settings({**entries, **given}, {**origins, **dict.fromkeys(given, GIVEN)}, providers, threads)


def _session_options(file: Path) -> Iterator[dict[str, Any]]:
    """Every `session_options` of a genai_config.json."""
    if not file.is_file():
        return
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no JSON ({error}); mend it or take it away.") from error
    pending = [document]
    while pending:
        held = pending.pop()
        if isinstance(held, dict):
            if isinstance(options := held.get("session_options"), dict):
                yield options
            pending += held.values()
