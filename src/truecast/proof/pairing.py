"""Whether a checkpoint can be what an artifact was made from at all: a proof against another model says nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truecast.artifact import Manifest, sha256_of
from truecast.checkpoint.folder import CONFIG_NAME
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError, TruecastError

SIZES = re.compile(r"(^model_type|_size|_heads|_layers?|_dim|_experts|^n_(embd|head|layer|inner))$")
"""Keys of config.json that no two versions of one model differ in."""


def require_used(folder: Path, manifest: Manifest, module: Any, example_inputs: Any) -> None:
    """Raises InputError for a module or example inputs that the proof of this artifact would not look at."""
    if example_inputs is not None and module is None:
        raise InputError("example_inputs go with a module, and none is given; give it, or leave them out.")
    if module is not None and manifest.source.format != "module":
        raise InputError(f"{folder} was made from {manifest.source.path}, not from a module; give the path.")


def require_pair(folder: Path, manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raises InputError when the checkpoint's kind or sizes are not those of the artifact's own config.json.

    A config.json that is not as it was written tells nothing here; that it has changed is a failed check.
    """
    file = folder / CONFIG_NAME
    if not file.is_file() or sha256_of(file) != manifest.files.get(CONFIG_NAME):
        return
    ours, theirs = dict(_sizes(json.loads(file.read_bytes()))), dict(_sizes(checkpoint.config))
    for name in sorted(ours.keys() & theirs.keys(), key=lambda name: (name != "model_type", name)):
        if ours[name] != theirs[name]:
            facts = f"its {name} is {theirs[name]}, not {ours[name]}"
            raise InputError(
                f"{checkpoint.path} is not what {folder} was made from ({facts}); give the original checkpoint."
            )


def _sizes(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value, f"{place}{key}.")
        elif isinstance(value, int | str) and SIZES.search(key):
            yield f"{place}{key}", value


@contextmanager
def paired(folder: Path, checkpoint: Checkpoint, same_files: bool) -> Iterator[None]:
    """Turns what breaks in a proof against other files than the artifact was made from into an InputError."""
    try:
        yield
    except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, AssertionError) as error:
        if same_files or isinstance(error, TruecastError):
            raise
        raise InputError(
            f"{checkpoint.path} is not what {folder} was made from, and cannot be compared with it "
            f"({type(error).__name__}); give the original checkpoint."
        ) from error
