"""Calibration examples as inputs of a graph: texts through the artifact's tokenizer, or arrays as they are.

| file | examples |
|---|---|
| .txt, .jsonl | texts, as `texts` reads them; in batches, padded |
| .npz | one array for every input, the first axis counts the examples |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from truecast.artifact import GraphInfo
from truecast.calibration.prose import PROSE
from truecast.calibration.texts import calibration_codec, read_texts
from truecast.checkpoint.model import Array
from truecast.errors import InputError
from truecast.runtime.encoder import Tokens

AT_ONCE = 8
"""Examples of one run."""
EXAMPLES = 512
"""Examples taken at most."""
LONGEST = 256
"""Tokens of a text at most."""

Feed = dict[str, Array]


def read_feeds(path: Path, folder: Path, info: GraphInfo) -> list[Feed]:
    """The examples of a file as feeds of the graph in `folder`; raises InputError when there are none to use."""
    return _arrays(path, info) if path.suffix == ".npz" else list(text_feeds(read_texts(path), folder, info))


def own_feeds(folder: Path, info: GraphInfo) -> list[Feed]:
    """Feeds of truecast's own text; none where the graph takes no text."""
    try:
        return list(text_feeds(PROSE, folder, info))
    except InputError:  # no tokenizer, or further inputs
        return []


def text_feeds(texts: Sequence[str], folder: Path, info: GraphInfo) -> Iterator[Feed]:
    """Batches of texts; raises InputError when the graph takes more than a tokenizer gives, or there is none."""
    tokens = Tokens(calibration_codec(folder), [tensor.name for tensor in info.inputs], info.context_length)
    chosen = sorted(texts[:EXAMPLES], key=len)  # alike in length, so that little of a batch is padding
    for start in range(0, len(chosen), AT_ONCE):
        feed = tokens.batch(chosen[start : start + AT_ONCE], LONGEST)
        missing = [tensor.name for tensor in info.inputs if tensor.name not in feed]
        if missing:
            raise InputError(
                f"The model takes {missing[0]}, which no text gives; give calibration examples as arrays in an .npz "
                f"file, one for each of {', '.join(tensor.name for tensor in info.inputs)}."
            )
        yield feed


def _arrays(path: Path, info: GraphInfo) -> list[Feed]:
    names = [tensor.name for tensor in info.inputs]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise InputError(f"{path} is no .npz file of arrays ({error}); write one with numpy.savez.") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path} has no array {missing[0]!r}; the model takes {', '.join(names)}.")
    counts = {len(arrays[name]) if arrays[name].ndim else 0 for name in names}
    if len(counts) != 1 or 0 in counts:
        raise InputError(f"{path} holds no usable rows; its arrays must have one first axis, which counts examples.")
    count = min(counts.pop(), EXAMPLES)
    dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in info.inputs}
    return [
        {name: arrays[name][start : min(start + AT_ONCE, count)].astype(dtypes[name]) for name in names}
        for start in range(0, count, AT_ONCE)
    ]
