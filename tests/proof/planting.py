"""Spoiling an artifact on purpose: in its graph, in its data file, in its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from truecast.artifact import Certificate, Check, Manifest, read_manifest, write_manifest
from truecast.checkpoint import open_checkpoint
from truecast.proof import prove

GRAPH, DATA = "model.onnx", "model.onnx.data"


def reprove(folder: Path) -> Certificate:
    """The proof of a folder as it is, its files' hashes not asked for."""
    manifest = read_manifest(folder)
    return prove(folder, open_checkpoint(manifest.source.path), manifest)


def failed(certificate: Certificate) -> dict[str, Check]:
    """The checks that failed, by name."""
    return {check.name: check for check in certificate.checks if not check.passed}


def change_graph(folder: Path, change: Callable[[ir.Model], None]) -> None:
    """Rewrites the graph; the data file stays."""
    model = ir.load(folder / GRAPH)
    change(model)
    ir.save(model, folder / GRAPH)


def change_manifest(folder: Path, **changes: object) -> None:
    """Rewrites fields of the manifest."""
    write_manifest(folder, read_manifest(folder).model_copy(update=changes))


def node_of(model: ir.Model, name: str) -> ir.Node:
    """The node of that name."""
    return next(node for node in model.graph if node.name == name)


def place_of(folder: Path, initializer: str) -> tuple[int, int]:
    """Offset and length of an initializer in the data file."""
    tensor = ir.load(folder / GRAPH).graph.initializers[initializer].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None and tensor.length is not None
    return tensor.offset, tensor.length


def change_data(folder: Path, initializer: str, change: Callable[[np.ndarray], None]) -> None:
    """Rewrites an initializer's bytes in the data file, and the manifest's hashes, so that only the values tell."""
    offset, length = place_of(folder, initializer)
    data = np.memmap(folder / DATA, np.uint8, "r+")
    change(data[offset : offset + length])
    data.flush()
    rehash(folder)


def rehash(folder: Path) -> None:
    """Makes the manifest's hashes those of the bytes in the data file."""
    manifest = read_manifest(folder)
    data = (folder / DATA).read_bytes()
    weights = []
    for info in manifest.weights:
        digest = hashlib.sha256()
        for name in info.initializers:
            offset, length = place_of(folder, name)
            digest.update(data[offset : offset + length])
        weights.append(info.model_copy(update={"sha256": digest.hexdigest()}))
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest.files}
    write_manifest(folder, manifest.model_copy(update={"weights": weights, "files": files}))


def manifest_of(folder: Path) -> Manifest:
    """The manifest."""
    return read_manifest(folder)
