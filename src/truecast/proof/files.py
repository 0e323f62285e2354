"""Tier 0: the files of an artifact and of its source, against the hashes of when it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from truecast.artifact import MANIFEST_NAME, Check, Manifest, document_digest, sha256_of
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.proof.held import load_graph
from truecast.proof.tally import counted

TIER = "files"
FOR_PEOPLE = ("README", "LICENSE", "NOTICE")
Progress = Callable[[str, int, int], None]


def data_files(folder: Path, manifest: Manifest) -> list[str]:
    """The files that hold the graph's weights, whose bytes have hashes of their own, one for each weight."""
    if not (folder / manifest.graph.file).is_file():
        return []
    tensors = (value.const_value for value in load_graph(folder, manifest.graph.file).graph.initializers.values())
    return sorted({str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def files_check(folder: Path, manifest: Manifest, data: Sequence[str], report: Progress) -> Check:
    """Whether every file of the artifact is there and as it was written, and no other is; weights have own hashes."""
    faults = [f"{name} is missing" for name in data if not (folder / name).is_file()]
    document = json.loads((folder / MANIFEST_NAME).read_bytes())
    if document["certificate"].get("manifest_sha256") != document_digest(document):
        faults.append(f"{MANIFEST_NAME} has changed")
    faults += [f"{name} was added" for name in added_files(folder, {*manifest.files, *data})]
    for index, (name, digest) in enumerate(sorted(manifest.files.items())):
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_of(path) != digest:
            faults.append(f"{name} has changed")
        report("check files", index + 1, len(manifest.files))
    return counted(TIER, "files of the artifact", faults, "files", f"{len(manifest.files)} files")


def added_files(folder: Path, known: Collection[str]) -> list[str]:
    """Files of a folder that are none of the `known`; those that say something to people only do not count."""
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [path for path in paths if not any(part.startswith((".", *FOR_PEOPLE)) for part in path.parts)]
    return [path.as_posix() for path in shown if path.as_posix() not in {*known, MANIFEST_NAME}]


def named_adapter(folder: Path, manifest: Manifest) -> Path | None:
    """The adapter that an artifact was made with, where it lay in a folder of its own.

    Raises InputError when that folder is gone.
    """
    source = manifest.source
    if source.adapter is None or source.adapter == source.path:
        return None  # one beside the weights comes with them
    if not Path(source.adapter).is_dir():
        raise InputError(
            f"{source.adapter}, whose adapter {folder} was made with, is gone; bring it back to that place."
        )
    return Path(source.adapter)


def source_check(manifest: Manifest, checkpoint: Checkpoint, report: Progress) -> Check:
    """The checkpoint's files against the hashes of when the artifact was made: tensors, and what goes along."""
    files = checkpoint.file_names
    known = manifest.source.sha256
    faults = [f"{name} is not in {checkpoint.path}" for name in sorted(set(known) - set(files))]
    faults += [f"{name} was not there when the artifact was made" for name in sorted(set(files) - set(known))]
    both = sorted(set(known) & set(files))
    for index, name in enumerate(both):
        if sha256_of(files[name]) != known[name]:
            faults.append(f"{name} has changed")
        report("check source", index + 1, len(both))
    faults += _side_faults(manifest, checkpoint)
    return counted(
        TIER, "files of the source", faults, "files", f"{len(known) + len(manifest.source.side_sha256)} files"
    )


def _side_faults(manifest: Manifest, checkpoint: Checkpoint) -> Iterator[str]:
    """Tokenizer, configuration and the like that are not what they were."""
    known = manifest.source.side_sha256
    for name in sorted({*known, *checkpoint.side_files} if checkpoint.format == manifest.source.format else ()):
        if name not in checkpoint.side_files:
            yield f"{name} is not in {checkpoint.path}"
        elif checkpoint.format == "safetensors":
            if name not in known:
                yield f"{name} was not there when the artifact was made"
            elif hashlib.sha256(checkpoint.side_files[name]()).hexdigest() != known[name]:
                yield f"{name} has changed"
