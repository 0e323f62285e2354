"""Tier 0: the files of an artifact and of its source, against the hashes of when it was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from truecast.artifact import Check, Manifest, sha256_of
from truecast.checkpoint.model import Checkpoint
from truecast.proof.held import load_graph
from truecast.proof.tally import counted

TIER = "files"
Progress = Callable[[str, int, int], None]


def data_files(folder: Path, manifest: Manifest) -> list[str]:
    """The files that hold the graph's weights, whose bytes have hashes of their own, one for each weight."""
    if not (folder / manifest.graph.file).is_file():
        return []
    tensors = (value.const_value for value in load_graph(folder, manifest.graph.file).graph.initializers.values())
    return sorted({str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def files_check(folder: Path, manifest: Manifest, data: Sequence[str], report: Progress) -> Check:
    """Whether every file of the artifact is there and as it was written; weights have hashes of their own."""
    faults = [f"{name} is missing" for name in data if not (folder / name).is_file()]
    for index, (name, digest) in enumerate(sorted(manifest.files.items())):
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_of(path) != digest:
            faults.append(f"{name} has changed")
        report("check files", index + 1, len(manifest.files))
    return counted(TIER, "files of the artifact", faults, "files", f"{len(manifest.files)} files")


def source_check(manifest: Manifest, checkpoint: Checkpoint, report: Progress) -> Check:
    """The checkpoint's tensor files against the hashes of when the artifact was made."""
    files = checkpoint.file_names
    known = manifest.source.sha256
    faults = [f"{name} is not in {checkpoint.path}" for name in sorted(set(known) - set(files))]
    faults += [f"{name} was not there when the artifact was made" for name in sorted(set(files) - set(known))]
    both = sorted(set(known) & set(files))
    for index, name in enumerate(both):
        if sha256_of(files[name]) != known[name]:
            faults.append(f"{name} has changed")
        report("check source", index + 1, len(both))
    return counted(TIER, "files of the source", faults, "files", f"{len(known)} files")
