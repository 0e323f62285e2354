"""Proving a published folder again, from what its manifest says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from truecast.artifact import Certificate, Manifest, Status, read_manifest
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.measure.environment import environment
from truecast.proof.files import data_files, files_check, named_adapter, source_check
from truecast.proof.module_verifying import verify_module
from truecast.proof.pairing import paired, require_pair, require_used
from truecast.proof.proving import prove
from truecast.trace.opening import ModuleSource

Progress = Callable[[str, int, int], None]


def verify(
    folder: Path | str,
    against: Path | str | None = None,
    progress: Progress | None = None,
    *,
    trust_remote_code: bool = False,
    module: Any = None,
    example_inputs: Any = None,
) -> Certificate:
    """Proves the artifact in `folder` against its source, or against the checkpoint at `against`.

    `module` and `example_inputs` are what an artifact of a module in memory was made from. Files first: each must have
    the hash of the manifest, and so must the source's. Changes nothing on disk.

    Raises:
        InputError: the folder is no artifact, its graph is gone, or the source is (then give `against`).
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    require_used(folder, manifest, module, example_inputs)
    if manifest.graph.cache is None:
        path = None if against is None else Path(against)
        source = ModuleSource(path, module, example_inputs=example_inputs, trust_remote_code=trust_remote_code)
        return verify_module(folder, manifest, source, progress)
    checkpoint = _source(folder, manifest, against)
    require_pair(folder, manifest, checkpoint)
    report = progress or (lambda stage, done, total: None)
    data = data_files(folder, manifest)
    checks = [files_check(folder, manifest, data, report), source_check(manifest, checkpoint, report)]
    if not all((folder / name).is_file() for name in (*manifest.files, *data)):
        return Certificate(status=Status.FAILED, environment=environment(), checks=checks)
    with paired(folder, checkpoint, checks[1].passed):
        proof = prove(folder, checkpoint, manifest, progress=progress, trust_remote_code=trust_remote_code)
    held = proof.status is Status.PROVEN and all(check.passed for check in checks)
    status = Status.PROVEN if held else Status.FAILED
    return proof.model_copy(update={"status": status, "checks": [*checks, *proof.checks]})


def _source(folder: Path, manifest: Manifest, against: Path | str | None) -> Checkpoint:
    path = Path(manifest.source.path if against is None else against)
    if against is None and not path.exists():
        raise InputError(
            f"{path}, which {folder} was made from, is gone; pass the place of the original checkpoint with --against."
        )
    return open_checkpoint(path, named_adapter(folder, manifest))
