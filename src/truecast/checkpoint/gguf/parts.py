"""A GGUF model in several files, as llama.cpp's gguf-split writes it, read as one container.

Data flow: any part → the names of all parts → each part's container → one container with every tensor.

Parts are named `NAME-00001-of-00003.gguf` and so on. Each states `split.no` (from 0), `split.count` and
`split.tensors.count` (of all parts together); only the first holds the model's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from truecast.checkpoint.gguf.container import Container, read_container
from truecast.errors import InputError

PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""llama.cpp's `llama_split_path`; numbers count from 1."""


def read_whole(path: Path) -> Container:
    """The container of the file at `path`, or of all parts where it is one part of several.

    Raises:
        InputError: not a whole GGUF file, a missing part, or parts that do not belong together.
    """
    container = read_container(path)
    count = _stated(container, "split.count")
    if count <= 1:
        return container
    paths = _part_paths(path, count)
    parts = [container if part == path else read_container(part) for part in paths]
    for number, part in enumerate(parts):
        _check_part(part, number, count)
    return _joined(parts)


def are_parts_of_one(paths: Sequence[Path]) -> bool:
    """Whether, by their names, all of `paths` are parts of one model."""
    names = [PART_NAME.fullmatch(path.name) for path in paths]
    models = {(name["stem"], name["count"]) if name else None for name in names}
    return len(models) == 1 and None not in models


def _part_paths(path: Path, count: int) -> list[Path]:
    name = PART_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count:
        raise InputError(
            f"{path} is one of {count} parts, but is not named as one; name the parts "
            f"MODEL-00001-of-{count:05}.gguf and so on, as they were."
        )
    paths = [path.with_name(f"{name['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise InputError(
            f"{path} is one of {count} parts, of which {', '.join(missing)} are missing; put all of them in one folder."
        )
    return paths


def _check_part(part: Container, number: int, count: int) -> None:
    stated = _stated(part, "split.no"), _stated(part, "split.count")
    if stated != (number, count):
        raise InputError(
            f"{part.path} is part {stated[0] + 1} of {stated[1]} by its metadata, not {number + 1} of {count} as its "
            "name says; download the parts again."
        )


def _joined(parts: Sequence[Container]) -> Container:
    first = parts[0]
    tensors = {name: entry for part in parts for name, entry in part.tensors.items()}
    held, stated = sum(len(part.tensors) for part in parts), _stated(first, "split.tensors.count", len(tensors))
    if not held == stated == len(tensors):
        raise InputError(
            f"{first.path} states {stated} tensors in all parts, which hold {held}, {len(tensors)} of them different; "
            "download the parts again."
        )
    return Container(first.path, first.metadata, tensors)


def _stated(container: Container, key: str, default: int = 0) -> int:
    value = container.metadata.get(key, default)
    return value if isinstance(value, int) else default
