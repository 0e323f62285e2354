"""Proving a published folder again, from what its manifest says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from truecast.artifact import Certificate, Check, Manifest, Status, read_manifest, sha256_of
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.proof.environment import environment
from truecast.proof.held import load_graph
from truecast.proof.proving import prove
from truecast.proof.tally import counted

TIER = "files"
Progress = Callable[[str, int, int], None]


def verify(
    folder: Path | str,
    against: Path | str | None = None,
    progress: Progress | None = None,
    *,
    trust_remote_code: bool = False,
) -> Certificate:
    """Proves the artifact in `folder` against its source, or against the checkpoint at `against`.

    Files first: each must have the hash of the manifest, and so must the source's. Changes nothing on disk.

    Raises:
        InputError: the folder is no artifact, its graph is gone, or the source is (then give `against`).
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    checkpoint = _source(folder, manifest, against)
    report = progress or (lambda stage, done, total: None)
    data = _data_files(folder, manifest)
    checks = [_files_check(folder, manifest, data, report), _source_check(manifest, checkpoint, report)]
    if not all((folder / name).is_file() for name in (*manifest.files, *data)):
        return Certificate(status=Status.FAILED, environment=environment(), checks=checks)
    proof = prove(folder, checkpoint, manifest, progress=progress, trust_remote_code=trust_remote_code)
    held = proof.status is Status.PROVEN and all(check.passed for check in checks)
    status = Status.PROVEN if held else Status.FAILED
    return proof.model_copy(update={"status": status, "checks": [*checks, *proof.checks]})


def _source(folder: Path, manifest: Manifest, against: Path | str | None) -> Checkpoint:
    if against is not None:
        return open_checkpoint(against)
    path = Path(manifest.source.path)
    if not path.exists():
        raise InputError(
            f"{path}, which {folder} was made from, is gone; pass the place of the original checkpoint with --against."
        )
    return open_checkpoint(path)


def _data_files(folder: Path, manifest: Manifest) -> list[str]:
    """The files that hold the graph's weights, whose bytes have hashes of their own, one for each weight."""
    if not (folder / manifest.graph.file).is_file():
        return []
    tensors = (value.const_value for value in load_graph(folder, manifest.graph.file).graph.initializers.values())
    return sorted({str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def _files_check(folder: Path, manifest: Manifest, data: Sequence[str], report: Progress) -> Check:
    faults = [f"{name} is missing" for name in data if not (folder / name).is_file()]
    for index, (name, digest) in enumerate(sorted(manifest.files.items())):
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_of(path) != digest:
            faults.append(f"{name} has changed")
        report("check files", index + 1, len(manifest.files))
    return counted(TIER, "files of the artifact", faults, "files", f"{len(manifest.files)} files")


def _source_check(manifest: Manifest, checkpoint: Checkpoint, report: Progress) -> Check:
    """The checkpoint's tensor files against the hashes of when the artifact was made."""
    files = {path.name: path for path in checkpoint.files}
    known = manifest.source.sha256
    faults = [f"{name} is not in {checkpoint.path}" for name in sorted(set(known) - set(files))]
    faults += [f"{name} was not there when the artifact was made" for name in sorted(set(files) - set(known))]
    both = sorted(set(known) & set(files))
    for index, name in enumerate(both):
        if sha256_of(files[name]) != known[name]:
            faults.append(f"{name} has changed")
        report("check source", index + 1, len(both))
    return counted(TIER, "files of the source", faults, "files", f"{len(known)} files")
