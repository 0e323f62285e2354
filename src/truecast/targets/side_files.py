"""The files that go along with a graph, and what the manifest says of the model beside them, from the checkpoint.

Data flow: checkpoint and target → the checkpoint's own files → what the target adds or corrects.
"""

from __future__ import annotations

import json
from pathlib import Path

from truecast.artifact import GraphInfo
from truecast.checkpoint.folder import CONFIG_NAME, GENERATION_FILE, read_side_file, written_config
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.schemes import CONFIG_KEYS
from truecast.errors import InputError
from truecast.targets.model import Target


def write_side_files(checkpoint: Checkpoint, target: Target, graph: GraphInfo, folder: Path) -> None:
    """Copies what goes along with the weights into `folder`, and writes what the target adds."""
    for name, content in checkpoint.side_files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content())
    if checkpoint.quantization is not None:  # the weights are no longer stored as these settings say
        plain = {key: value for key, value in checkpoint.config.items() if key not in CONFIG_KEYS}
        (folder / CONFIG_NAME).write_bytes(written_config(plain))
    target.write_side_files(folder, checkpoint.config, graph)


LONGROPE = "longrope"


def context_length(checkpoint: Checkpoint) -> int | None:
    """Positions that the model was made for, or None where its configuration does not say."""
    found = (checkpoint.config.get(name) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((int(length) for length in found if length), None)


def restarts_behind(checkpoint: Checkpoint) -> int | None:
    """Length behind which longrope takes its long factors, for earlier positions as well; None for other rotations."""
    config = checkpoint.config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for entry in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if entry.get("rope_type", entry.get("type")) == LONGROPE:
            trained = entry.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
            return int(trained) if trained else None
    return None


def eos_token_ids(checkpoint: Checkpoint, rows: int | None = None) -> list[int]:
    """The union of what config.json and generation_config.json say: the first often lacks the end of a turn.

    Ids that the model's vocabulary of `rows` tokens does not have are left out: none of them is ever the next token.
    Raises InputError where generation_config.json cannot be read, or one of them names what is no token id.
    """
    ids: list[int] = []
    generation = read_side_file(checkpoint.side_files, GENERATION_FILE)
    for name, source in ((CONFIG_NAME, checkpoint.config), (GENERATION_FILE, generation)):
        found = source.get("eos_token_id")
        listed = found if isinstance(found, list) else [] if found is None else [found]
        if wrong := [one for one in listed if not isinstance(one, int) or isinstance(one, bool)]:
            raise InputError(
                f"{name} of {checkpoint.path} has the eos_token_id {wrong[0]!r}, which is no token id; correct it."
            )
        ids += listed
    return sorted({index for index in ids if index >= 0 and (rows is None or index < rows)})


def tokens_without_rows(checkpoint: Checkpoint, rows: int | None) -> tuple[str, ...]:
    """A notice where tokenizer.json has tokens that the model's vocabulary of `rows` does not."""
    tokenizer = checkpoint.side_files.get("tokenizer.json")
    if tokenizer is None or rows is None:
        return ()
    content = json.loads(tokenizer())
    added = {entry["id"]: entry["content"] for entry in content.get("added_tokens") or ()}
    vocabulary = (content.get("model") or {}).get("vocab") or ()
    named = {index: text for text, index in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    beyond = sorted(index for index in {*added, *named, *range(rows, len(vocabulary))} if index >= rows)
    if not beyond:
        return ()
    first = {**named, **added}.get(beyond[0], "")
    return (
        f"tokenizer.json has {len(beyond)} tokens from {first!r} ({beyond[0]}) on, but the "
        f"model's vocabulary has {rows}; a text with one of them is refused.",
    )
