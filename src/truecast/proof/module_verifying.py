"""Proving a published module again, from what its manifest says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from truecast.artifact import Certificate, Check, GraphInfo, Manifest, Status, TensorInfo
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.memory import STATE, state_digest
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.measure.environment import environment
from truecast.proof.files import TIER, data_files, files_check, named_adapter, source_check
from truecast.proof.modules import prove_module
from truecast.proof.pairing import paired, require_pair
from truecast.proof.tally import counted
from truecast.trace.opening import ModuleSource, open_author

Progress = Callable[[str, int, int], None]


def verify_module(
    folder: Path,
    manifest: Manifest,
    source: ModuleSource,
    progress: Progress | None = None,
) -> Certificate:
    """Proves the artifact in `folder` against what `source` names, or what its manifest does.

    Raises InputError when the source is gone, or was in memory and is not given.
    """
    report = progress or (lambda stage, done, total: None)
    named = _named(folder, manifest, source)
    if named.factory is None and named.module is None and named.path is not None:
        require_pair(folder, manifest, open_checkpoint(named.path))
    data = data_files(folder, manifest)
    checks = [files_check(folder, manifest, data, report)]
    _, checkpoint = open_author(named)
    checks.append(_source_check(manifest, checkpoint, report))
    if not all((folder / name).is_file() for name in (*manifest.files, *data)):
        return Certificate(status=Status.FAILED, environment=environment(), checks=checks)
    with paired(folder, checkpoint, checks[-1].passed):
        proof = prove_module(folder, named, manifest, progress=progress)
    held = proof.status is Status.PROVEN and all(check.passed for check in checks)
    status = Status.PROVEN if held else Status.FAILED
    return proof.model_copy(update={"status": status, "checks": [*checks, *proof.checks]})


def _named(folder: Path, manifest: Manifest, given: ModuleSource) -> ModuleSource:
    """What the artifact was made from: the user's word first, then the manifest's."""
    factory: Any = manifest.settings.get("module")
    dynamic = {info.name: dict(_axes(info, manifest.graph)) for info in manifest.graph.inputs}
    if given.module is not None:
        return replace(given, dynamic=dynamic)
    in_memory = manifest.source.format == "module"
    if in_memory and factory is None:
        raise InputError(
            f"{folder} was made from a module in memory; prove it again in Python, with "
            "truecast.open(OUT).verify(module, example_inputs=…)."
        )
    path = given.path or Path(manifest.source.path)
    if not path.exists():
        raise InputError(
            f"{path}, which {folder} was made from, is gone; pass the place of the original checkpoint with --against."
        )
    task = None if in_memory else manifest.task
    adapter = named_adapter(folder, manifest)
    return replace(given, path=path, factory=factory, task=task, dynamic=dynamic, adapter=adapter)


def _axes(info: TensorInfo, graph: GraphInfo) -> Iterator[tuple[int, str]]:
    """The free axes of an input, as `Axis.parse` reads them."""
    for index, size in enumerate(info.shape):
        if isinstance(size, str):
            yield index, f"{size}={graph.axes[size]}" if size in graph.axes else size  # it follows from another


def _source_check(manifest: Manifest, checkpoint: Checkpoint, report: Progress) -> Check:
    if checkpoint.files:
        return source_check(manifest, checkpoint, report)
    same = manifest.source.sha256.get(STATE) == state_digest(checkpoint)
    faults = [] if same else ["the module's state is not what it was when the artifact was made"]
    return counted(TIER, "state of the module", faults, "states")
