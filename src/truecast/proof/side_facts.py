"""What decides how a model is used: the artifact's side files and token ids against what the source gives.

Data flow: source → the files that an export would write, in a folder of its own → compared with the artifact's, byte by
byte. The writer is the exporter's; what it writes from is the source, never the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from truecast.artifact import SAVED_NAME, Check, Manifest
from truecast.checkpoint.model import Checkpoint
from truecast.proof.files import added_files, data_files
from truecast.proof.genai_tokens import genai_token_checks
from truecast.proof.tally import broke, broken, counted
from truecast.proof.transformers_tokens import transformers_notes
from truecast.runtime.text import added_ids
from truecast.targets import find_target
from truecast.targets.side_files import context_length, eos_token_ids, restarts_behind, write_side_files

TIER, NAME = "files", "side files as the source gives them"
GENAI = "genai"


def side_checks(folder: Path, checkpoint: Checkpoint, manifest: Manifest) -> tuple[list[Check], list[str]]:
    """The checks of what goes along with the graph in `folder`, and notes."""
    try:
        target = find_target(manifest.target)
        with TemporaryDirectory() as scratch:
            rows = manifest.graph.vocab_size
            stated: dict[str, Any] = {
                "eos_token_ids": eos_token_ids(checkpoint, rows),
                "context_length": context_length(checkpoint),
            }
            if manifest.graph.cache is None:
                del stated["eos_token_ids"]
            else:
                stated["restarts_behind"] = restarts_behind(checkpoint)
            write_side_files(checkpoint, target, manifest.graph.model_copy(update=stated), Path(scratch))
            stated |= {"ids_before_text": [], "ids_behind_text": []} | added_ids(Path(scratch))
            faults = [*_file_faults(folder, Path(scratch), manifest), *_stated_faults(manifest, stated)]
    except Exception as error:  # a manifest may say anything
        return [broken(TIER, NAME, broke(error))], []
    tokens, notes = genai_token_checks(folder) if target.name == GENAI else ([], [])
    notes += transformers_notes(folder)
    return [counted(TIER, NAME, faults, "facts", f"{len(checkpoint.side_files)} files of the source"), *tokens], notes


def _stated_faults(manifest: Manifest, stated: dict[str, Any]) -> Iterator[str]:
    for name, value in stated.items():
        if (found := getattr(manifest.graph, name)) != value:
            yield f"the manifest states {name} {found} instead of {value}"


def _file_faults(folder: Path, wanted: Path, manifest: Manifest) -> Iterator[str]:
    names = [path.relative_to(wanted).as_posix() for path in sorted(wanted.rglob("*")) if path.is_file()]
    for name in names:
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif (found := (folder / name).read_bytes()) != (want := (wanted / name).read_bytes()):
            yield f"{name} differs{_where(found, want)}"
    graph = [manifest.graph.file, *data_files(folder, manifest)]
    for name in added_files(folder, {*names, *graph}):
        if not name.startswith(SAVED_NAME):
            yield f"{name} is none of the source's"


def _where(found: bytes, want: bytes) -> str:
    """The first key that two JSON objects do not share; empty for other files."""
    try:
        ours, theirs = json.loads(found), json.loads(want)
    except ValueError:
        return ""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return ""
    keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    return f" in {keys[0]}" if keys else ""
